"""Two checkouts of surefoot, the same training in turns: time per iteration and processor time, pair by pair.

    python bench/pairs.py --before ../before --rounds 7 --out RECORD cartpole:40960 HalfCheetah-v5:12288 pong:40960:2

TASK:STEPS[:RANKS[:OPTION...]], options without their dashes, as in no-bf16. Each run is a process of its own,
`surefoot train` with the checkout's src on PYTHONPATH; an iteration's time is its env_s + act_s + learn_s in
metrics.jsonl, the first fifth left out. On a machine that others use processor time is the steadier figure; it includes
the start.
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

from common import record

HERE = Path(__file__).parent.parent


def run(root: Path, task: str, steps: str, ranks: str, options: list[str], seed: int) -> dict[str, float]:
    """One training: median seconds per iteration, and processor seconds of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder, "run")
        command = [sys.executable, "-m", "surefoot", "train", task, "--total-steps", steps, "--ranks", ranks]
        command += ["--seed", str(seed), "--eval-episodes", "0", "--run-dir", str(where), "--quiet"]
        command += [f"--{option}" for option in options]
        env = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=env, check=True, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    spent = [row["env_s"] + row["act_s"] + row["learn_s"] for row in rows[len(rows) // 5 :]]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"iteration_s": statistics.median(spent), "cpu_s": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for spec in args.tasks:
        task, steps, *rest = spec.split(":")
        ranks, *options = rest or ["1"]
        pairs = []
        for seed in range(1, args.rounds + 1):
            order = [("before", args.before), ("after", HERE)]
            found = {
                name: run(root, task, steps, ranks, options, seed)
                for name, root in (order if seed % 2 else order[::-1])
            }
            pairs.append(
                found
                | {
                    "task": task,
                    "steps": int(steps),
                    "ranks": int(ranks),
                    "options": options,
                    "load": os.getloadavg()[0],
                }
            )
            record(pairs[-1], args.out, "pairs.jsonl")
        for figure in ("iteration_s", "cpu_s"):
            ratios = sorted(pair["after"][figure] / pair["before"][figure] for pair in pairs)
            middle = statistics.median(ratios)
            print(f"{spec}, {figure}: after / before {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
