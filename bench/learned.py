"""Other people's environments learned with what surefoot chooses by itself: no preset, no option but the task's own.

    python bench/learned.py --base .venv --work DIR [--only WORD ...] [--ranks 2]

Each is installed as bench/environments.py does, evaluated untrained, trained, and evaluated again, 50 episodes each.
A row of the record is written as soon as it is known; a task that the record has is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import environments

RECORD = environments.ROOT / "bench" / "records" / "2026-11-30_learned" / "rows.jsonl"
AIRSTRIKER = "stable_retro:make --env.kwargs game=Airstriker-Genesis-v0 --env.wrappers ResizeObservation:shape=84x84"
TASKS = (  # what to install, the task, steps
    ("minigrid", "MiniGrid-Empty-5x5-v0", 100_000),
    ("minigrid", "MiniGrid-DoorKey-5x5-v0", 300_000),
    ("minigrid", "BabyAI-GoToRedBallGrey-v0", 300_000),
    ("flappy-bird-gymnasium", "FlappyBird-v0", 200_000),
    ("panda-gym", "PandaReach-v3", 100_000),
    ("gymnasium-robotics mujoco<3.5", "FetchReach-v4", 200_000),
    ("gymnasium-robotics mujoco<3.5", "FetchReachDense-v4", 200_000),
    ("shimmy[dm-control] mujoco<3.4", "dm_control/cartpole-balance-v0", 200_000),
    ("highway-env", "highway-fast-v0", 30_000),
    ("pettingzoo[classic]", "connect_four:AgainstRandom", 200_000),
    ("stable-retro", f"{AIRSTRIKER} --num-envs 1", 100_000),
)


def score(trial: environments.Trial, run: str) -> dict[str, float]:
    """Mean and spread of the closing evaluation."""
    found = json.loads((trial.folder / run / "evaluation.json").read_text(encoding="utf-8"))
    return {"mean": found["mean"], "std": found["std"], "episodes": len(found["scores"])}


def learn(install: str, task: str, steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    package = re.split(r"[\[=<> ]", install)[0]
    python, why_not = environments.python_with(install, args.base.absolute(), args.work.absolute())
    row: dict[str, Any] = {"install": install, "task": task, "steps": steps, "ranks": args.ranks}
    if why_not:
        return row | {"error": why_not}
    row |= environments.versions(python, package)
    trial = environments.Trial(python, args.work.absolute() / "learned" / re.sub(r"\W+", "-", task)[:60])
    how = f"train {task} --seed {args.seed} --eval-episodes 50 --eval-max-steps 2000"
    for name, more in (("untrained", "--total-iterations 1 learning-rate:fixed-rate --learning-rate.initial 1e-12"),
                       ("learned", f"--total-steps {steps} --ranks {args.ranks}")):  # fmt: skip
        begun = time.monotonic()
        if code := trial.run(f"{how} --run-dir {name} {more}"):
            return row | {"error": "not at an end in time" if code == 124 else [f"exit code {code}", *trial.said()][-1]}
        row[name] = score(trial, name) | {"seconds": round(time.monotonic() - begun, 1)}
    return row | {"notes": [line for line in trial.said() if not environments.PROGRESS(line)]}


def main() -> None:
    """Learn what the record does not have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the venv with PyTorch, NumPy and Gymnasium")
    parser.add_argument("--work", type=Path, required=True, help="folder for the environments and the runs")
    parser.add_argument("--only", nargs="*", default=[], help="only tasks with one of these words")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the training")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    environments.LIMIT = 1800.0
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.touch()
    known = {json.loads(line)["task"] for line in RECORD.read_text(encoding="utf-8").splitlines()}
    for install, task, steps in TASKS:
        if task in known or (args.only and not any(word in task for word in args.only)):
            continue
        row = learn(install, task, steps, args) | {"seed": args.seed}
        with RECORD.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
