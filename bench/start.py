"""How long surefoot takes to begin, beside its bars: wall and processor seconds, the least and the median of N runs.

    python bench/start.py [--runs 15] [--out RECORD]

`import surefoot` (bar 0.15 s), `surefoot --help` (0.3 s), and `train CartPole-v1` up to its first update.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from common import record

TRAIN = "train CartPole-v1 --total-iterations 1 --eval-episodes 0 --quiet --run-dir"
CASES = {
    "python": ["-c", "pass"],
    "import surefoot": ["-c", "import surefoot, sys; assert 'torch' not in sys.modules"],
    "surefoot --help": ["-m", "surefoot", "--help"],
    "first update": ["-m", "surefoot", *TRAIN.split()],
}


def once(args: list[str], where: Path) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    more = [str(where / os.urandom(4).hex())] if "train" in args else []
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    subprocess.run([sys.executable, *args, *more], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, call in CASES.items():
            once(call, Path(folder))  # the files are read
            wall, cpu = zip(*(once(call, Path(folder)) for _ in range(args.runs)), strict=True)
            row = {"what": name, "runs": args.runs, "load": os.getloadavg()[0]}
            for kind, values in (("wall_s", wall), ("cpu_s", cpu)):
                row |= {kind: round(statistics.median(values), 3), f"least_{kind}": round(min(values), 3)}
            print(json.dumps(row), flush=True)
            record(row, args.out, "start.jsonl")


if __name__ == "__main__":
    main()
