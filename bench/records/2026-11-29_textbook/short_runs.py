"""python golden.py OUT.json [name ...]: digests of short runs; works with old and new option names."""
import sys, json, hashlib, tempfile, os
from dataclasses import replace, fields
from pathlib import Path
import torch
import surefoot
from surefoot.config import Config
from surefoot.presets import find
NAMES = {"games": "num_envs", "horizon": "num_steps", "minibatch": "minibatch_size", "epochs": "num_epochs"}
known = {f.name for f in fields(Config)}
def tr(d): return {(k if k in known else NAMES[k]): v for k, v in d.items()}
RUNS = {
 "cartpole-1": ("cartpole", dict(total_steps=512*12), 1),
 "cartpole-2": ("cartpole", dict(total_steps=512*6), 2),
 "cheetah-1": ("HalfCheetah-v5", dict(total_steps=2048*3), 1),
 "cheetah-2": ("HalfCheetah-v5", dict(total_steps=2048*3), 2),
 "walker-1": ("Walker2d-v5", dict(total_steps=1024*4), 1),
 "lander-1": ("LunarLander-v3", dict(total_steps=4096*2), 1),
 "pong-1": ("pong", dict(games=8, minibatch=256, total_steps=1024*3), 1),
 "pong-2": ("pong", dict(games=8, minibatch=256, total_steps=1024*3), 2),
 "pong32-2": ("pong", dict(games=8, minibatch=256, total_steps=1024*3, bf16=False), 2),
 "lesson": ("pong-lesson", dict(total_iterations=2), 1),
 "rung5": ("ppo", dict(total_iterations=2), 1),
 "rung0": ("reinforce", dict(total_iterations=2), 1),
 "nature": ("BreakoutNoFrameskip-v4", dict(total_steps=4096*1, games=8), 1),
}
out, names = sys.argv[1], sys.argv[2:] or list(RUNS)
res = json.load(open(out)) if os.path.exists(out) else {}
for name in names:
    task, fs, ranks = RUNS[name]
    with tempfile.TemporaryDirectory() as d:
        run = Path(d, "run")
        surefoot.train(find(task, **tr(fs | dict(eval_episodes=0, save_every=1e9))), run_dir=run, ranks=ranks, quiet=True)
        try: got = surefoot.load_policy(run)
        except TypeError: got = surefoot.load_policy(run)
        sd = got[0].state_dict()
        flat = torch.cat([v.double().flatten() for k, v in sorted(sd.items())])
        rows = [json.loads(l) for l in open(run/"metrics.jsonl")]
        skip = {"seconds","steps_per_second","env_s","act_s","learn_s"}
        rows = [{k: v for k, v in r.items() if k not in skip} for r in rows]
    res[name] = {"weights": hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16], "norm": float(flat.norm()), "rows": rows}
    print(name, res[name]["weights"], res[name]["norm"], flush=True)
    json.dump(res, open(out, "w"))
