"""Runs killed with SIGKILL at random instants until `--kills` kills have been made of each task and number of ranks.

    python bench/kills.py --kills 20

After every kill the same command goes on; at the end metrics, parameters, checkpoint (policy, optimizer, environments)
and TensorBoard's curve are compared with those of an undisturbed run, byte for byte. A row is written for each run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_kills import CARTPOLE, PONG, assert_same_run, begin, killed_and_gone_on_with  # noqa: E402

RECORD = ROOT / "bench" / "records" / "2026-11-30_kills" / "rows.jsonl"
SMALL = [
    *("--num-envs", "4", "--num-steps", "64", "--minibatch-size", "64", "--num-epochs", "2"),
    *("--network.hidden", "16", "--eval-episodes", "0"),
]
TASKS = {
    "CartPole": [*CARTPOLE, "--total-steps", "122880"],
    "Pong": [*PONG, "--total-steps", "12800"],
    "LunarLander": ["LunarLander-v3", *SMALL, "--total-steps", "20480"],
    "HalfCheetah": ["HalfCheetah-v5", *SMALL, "--total-steps", "20480"],
    "BipedalWalker": ["BipedalWalker-v3", *SMALL, "--total-steps", "10240"],
}


def main() -> int:
    """Kill, compare, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each task and number of ranks")
    parser.add_argument("--each", type=int, default=5, help="at most so many in one run")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, task in TASKS.items():
            for ranks in (1, 2):
                whole, parts, done = Path(folder, f"{name}-{ranks}"), Path(folder, "parts"), 0
                assert begin(task, whole, ranks).wait(600) == 0
                luck = random.Random(f"{args.seed} {name} {ranks}")
                while done < args.kills:
                    story = killed_and_gone_on_with(task, parts, ranks, min(args.each, args.kills - done), luck)
                    row = {"task": name, "ranks": ranks, "killed": story, "same": True}
                    try:
                        assert_same_run(whole, parts)
                    except AssertionError as error:
                        wrong, row = wrong + 1, row | {"same": False, "error": str(error)[:300]}
                    done += len(story)
                    with RECORD.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
                    shutil.rmtree(parts)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
