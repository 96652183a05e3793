"""Scores of presets at their full budget, several seeds each: the record behind docs/results.md.

    python bench/results.py HalfCheetah-v5 Hopper-v5 --seeds 1 2 3 --work runs/results --out bench/records/DATE_what

Trains every task with every seed, on one rank each and as many at a time as there are cores (`--jobs`); a run that is
in --work goes on, or is only read where it has come to its end. Of each: the largest mean of 100 training episodes, and
100 full episodes with fresh seeds of the policy that is kept, actions sampled; with --greedy the likeliest ones too.
With `-- --eval-every N` the largest mean over the seeds of the evaluations on the way as well, which is what Tianshou's
benchmark calls the maximum average return (10 seeds, 10 episodes each, every 30,000 decisions). Writes
OUT/record.json, OUT/TASK-sSEED.jsonl (the curves, thinned) and OUT/results.png after every task; what is in OUT of
other tasks stays. --read trains nothing and tells what the curves in OUT have in common: the largest mean over the
seeds at one point, and the last.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import Row, read_rows
from surefoot.presets import find
from surefoot.runs.worker import machine

KEEP = (
    "step",
    "seconds",
    "episodes",
    "return_mean",
    "return_window",
    "evaluation",
    "steps_per_second",
    "kl",
    "entropy",
)


def folder(task: str, seed: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', task)}-s{seed}"


def train(task: str, seed: int, args: argparse.Namespace) -> Row | None:
    """One run to its end, and its evaluations; None where it fails (its log says why)."""
    run = args.work / folder(task, seed)
    if (run / "checkpoints").exists():
        call = ["resume", str(run)]
    else:
        call = ["train", task, "--seed", str(seed), "--run-dir", str(run), *args.more]
    call += ["--eval-episodes", "0", "--ranks", "1"]
    args.work.mkdir(parents=True, exist_ok=True)
    with open(args.work / f"{run.name}.log", "ab") as log:
        done = subprocess.run([sys.executable, "-m", "surefoot", *call], stdout=log, stderr=log)
    if done.returncode:
        print(f"{task}, seed {seed} ended with code {done.returncode}: see {log.name}", file=sys.stderr, flush=True)
        return None
    rows = read_rows(run / "metrics.jsonl")
    full = [row["return_mean"] for row in rows if row["return_window"] == 100]
    tried = {str(row["step"]): row["evaluation"] for row in rows if row.get("evaluation") is not None}
    facts: Row = {
        "seed": seed,
        "decisions": rows[-1]["step"],
        "seconds": round(rows[-1]["seconds"], 1),
        "best_training": round(max(full), 2) if full else None,
        "evaluations": tried,
        "last_training": round(rows[-1]["return_mean"], 2),
    }
    for key, more in (("sampled", []), *([("greedy", ["--greedy"])] if args.greedy else [])):
        call = [
            sys.executable,
            "-m",
            "surefoot",
            "evaluate",
            str(run),
            "--episodes",
            str(args.episodes),
            "--json",
            "--ranks",
            "1",
            *more,
        ]
        answer = subprocess.run(call, capture_output=True, text=True)
        facts[key] = {k: v for k, v in json.loads(answer.stdout).items() if k != "source"} if answer.stdout else None
    each = max(1, len(rows) // 200)
    thinned = [
        row for i, row in enumerate(rows, 1) if i % each == 0 or i == len(rows) or row.get("evaluation") is not None
    ]
    lines = [json.dumps({k: row.get(k) for k in KEEP}) for row in thinned]
    (args.out / f"{run.name}.jsonl").write_text("\n".join(lines) + "\n")
    return facts


def summary(runs: list[Row]) -> Row:
    """Over the seeds: mean and deviation of each figure."""
    found: Row = {"seeds": [run["seed"] for run in runs]}
    values = {key: [run[key] for run in runs] for key in ("best_training", "last_training")}
    values |= {key: [run[key]["mean"] for run in runs if run.get(key)] for key in ("sampled", "greedy")}
    for key, numbers in values.items():
        if numbers and len(numbers) == len(runs) and None not in numbers:
            found[key] = {
                "mean": round(statistics.fmean(numbers), 2),
                "deviation": round(statistics.pstdev(numbers), 2),
            }
    tried = [run["evaluations"] for run in runs]
    points = [statistics.fmean(one[step] for one in tried) for step in tried[0] if all(step in one for one in tried)]
    found["max_average_return"] = round(max(points), 2) if points else None
    found["decisions_per_second"] = round(statistics.median(run["decisions"] / run["seconds"] for run in runs))
    return found


def together(task: str, out: Path) -> str:
    """What the curves of all seeds say where they are averaged point by point."""
    curves = [
        {row["step"]: row["return_mean"] for row in read_rows(path) if row["return_window"] == 100}
        for path in sorted(out.glob(f"{folder(task, 0)[:-1]}*.jsonl"))
    ]
    means = {step: statistics.fmean(c[step] for c in curves) for step in curves[0] if all(step in c for c in curves)}
    best, last = max(means, key=lambda step: means[step]), max(means)
    each = statistics.fmean(max(curve.values()) for curve in curves)
    found = f"largest mean over the seeds {means[best]:.2f} at {best:,}, the last {means[last]:.2f} at {last:,}"
    return f"{task}, {len(curves)} seeds: each seed's largest mean {each:.2f}, {found}"


def picture(tasks: list[str], out: Path) -> None:
    from matplotlib.figure import Figure

    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure((4 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid, tasks, strict=False):
        for path in sorted(out.glob(f"{folder(task, 0)[:-1]}*.jsonl")):
            points = read_rows(path)
            seen = [row for row in points if row["return_mean"] is not None]
            axes.plot([row["step"] / 1000 for row in seen], [row["return_mean"] for row in seen], lw=1.2)
        axes.set_title(task, fontsize=10)
        axes.grid(alpha=0.3)
    figure.supxlabel("decisions, thousands", fontsize=9)
    figure.supylabel("mean of the last 100 training episodes", fontsize=9)
    figure.savefig(out / "results.png", dpi=120)


def main() -> None:
    more = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--greedy", action="store_true", help="evaluate with the likeliest actions too")
    parser.add_argument("--read", action="store_true", help="train nothing, read the curves in --out")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="where runs stay")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(sys.argv[1:more])
    if args.read:
        print("\n".join(together(task, args.out) for task in args.tasks))
        return
    args.more, args.work = sys.argv[more + 1 :], args.work.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    git = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True).stdout.strip()
    file = args.out / "record.json"
    record: Row = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "tasks": {}}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {task: [pool.submit(train, task, seed, args) for seed in args.seeds] for task in args.tasks}
        for task, waiting in runs.items():
            there = [facts for facts in (one.result() for one in waiting) if facts]
            if there:
                facts = summary(there) | {"git": git, "jobs": args.jobs, "more": args.more, "runs": there}
                facts["config"] = find(task).to_json()
                record["tasks"][task] = facts
                shown = {key: facts.get(key, {}).get("mean") for key in ("best_training", "sampled", "greedy")}
                shown["max_average_return"] = facts["max_average_return"]
                print(
                    task, len(there), "seeds:", ", ".join(f"{key} {value}" for key, value in shown.items()), flush=True
                )
            file.write_text(json.dumps(record, indent=1))
            picture(list(record["tasks"]), args.out)


if __name__ == "__main__":
    main()
