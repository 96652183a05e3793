import json, sys, math
a, b = (json.load(open(p)) for p in sys.argv[1:3])
for n in b:
    if n not in a: continue
    same = a[n]["weights"] == b[n]["weights"]
    rowsame = a[n]["rows"] == b[n]["rows"]
    worst = {}
    for r, s in zip(a[n]["rows"], b[n]["rows"]):
        for k in r:
            if k in s and isinstance(r[k], (int,float)) and isinstance(s[k], (int,float)):
                e = abs(r[k]-s[k])/(abs(r[k])+1e-9)
                worst[k] = max(worst.get(k,0), e)
    w = sorted(worst.items(), key=lambda x:-x[1])[:3]
    print(f"{n:12} bits {'SAME' if same else 'differ'} rows {'SAME' if rowsame else 'differ'} norm {a[n]['norm']:.10g} {b[n]['norm']:.10g}", "" if rowsame else w)
