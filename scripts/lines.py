"""Lines of src/surefoot, per file and per folder, against the limits below; exits 1 where one is exceeded.

A limit may be raised in the same change that says why (docs/design.md).
"""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "surefoot"
FILE, ALL = 350, 21_870  # 150 of them for a run at an address: a lock, a rename and a copy that buckets have not
FOLDERS = {"algorithm": 2190}


def main() -> int:
    """Print the table; returns the exit code."""
    files = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    folders = Counter[str]()
    for path, count in sorted(files.items()):
        folders[path.parts[0] if len(path.parts) > 1 else "."] += count
        print(f"{path.as_posix():<36}{count:>6}")
    sums = [("all", sum(files.values()), ALL), *((f, folders[f], limit) for f, limit in FOLDERS.items())]
    wrong = [(path.as_posix(), count, FILE) for path, count in files.items() if count > FILE]
    for name, count in sorted(folders.items()):
        print(f"{name + '/':<36}{count:>6,}" + (f" of {FOLDERS[name]:,}" if name in FOLDERS else ""))
    print(f"{'all':<36}{sums[0][1]:>6,} of {ALL:,}")
    for name, count, limit in wrong + [row for row in sums if row[1] > row[2]]:
        print(f"{name} has {count:,} lines, {count - limit:,} more than its limit of {limit:,}", file=sys.stderr)
        wrong.append((name, count, limit))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
