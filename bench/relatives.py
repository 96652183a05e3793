"""PPO's relatives on MuJoCo, as table 1 of the PPO paper compares them: clipping, KL penalties, neither, SPO, TRPO.

    python bench/relatives.py --work runs/relatives --out bench/records/DATE_relatives

Trains every method on every task with every seed, all with the settings of the paper's table 3, one rank each and as
many at a time as there are cores (`--jobs`). Runs stay in --work: the same command goes on where it was stopped, task
by task, and `--tasks`, `--methods`, `--seeds` say which are wanted. The score of a run is the mean of its last 100
training episodes; on each task 0 is what uniformly random actions reach, and 1 the best method's mean over the seeds.
Writes OUT/record.json and OUT/relatives.png after every task; what is in OUT already stays, and a task that not all
methods have finished is left out of the means. Source: Schulman et al. 2017, sections 4 and 6.1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import surefoot
from common import Row, read_rows
from surefoot.algorithm.objectives import SPO, AdaptivePenalty, ClippedSurrogate, FixedPenalty, Surrogate, TrustRegion
from surefoot.algorithm.schedules import FixedRate
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.presets import CONTROL
from surefoot.runs.worker import machine

TASKS = ("HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d")
SETTINGS: Row = {"num_steps": (256,), "recompute": False, "learning_rate": FixedRate(3e-4), "ema_decay": 0.0}
METHODS: dict[str, tuple[Row, float | None]] = {  # what changes, and the paper's figure
    "no clipping or penalty": ({"objective": Surrogate()}, -0.39),
    "clipping 0.1": ({"objective": ClippedSurrogate(0.1)}, 0.76),
    "clipping 0.2": ({"objective": ClippedSurrogate(0.2)}, 0.82),
    "clipping 0.3": ({"objective": ClippedSurrogate(0.3)}, 0.70),
    "adaptive KL 0.01": ({"objective": Surrogate(), "kl_penalty": AdaptivePenalty(1.0, 0.01)}, 0.74),
    "fixed KL 3": ({"objective": Surrogate(), "kl_penalty": FixedPenalty(3.0)}, 0.72),
    "SPO 0.2": ({"objective": SPO(0.2)}, None),
    "TRPO 0.01": ({"objective": TrustRegion(0.01), "learning_rate": FixedRate(1e-3)}, None),
}
Scores = Mapping[str, Mapping[str, Mapping[str, float]]]  # by task, method and seed


def config(task: str, method: str, seed: int, steps: int) -> Config:
    """The Config of one run: 8 environments of 256 steps are a rollout of the paper's 2,048."""
    env, per_rollout = Gymnasium(f"{task}-v5"), CONTROL.num_envs * SETTINGS["num_steps"][0]
    budget: Row = {"total_steps": -(-steps // per_rollout) * per_rollout, "eval_episodes": 0}
    return replace(CONTROL, **SETTINGS | METHODS[method][0] | budget, env=env, task=f"{task}-v5", seed=seed)


def folder(task: str, method: str, seed: int) -> str:
    return f"{task}-{re.sub(r'[^A-Za-z0-9.]+', '-', method)}-s{seed}"


def train(task: str, method: str, seed: int, args: argparse.Namespace) -> float | None:
    """One run to its end, in a process of its own; its score, None where it fails (its log says why)."""
    name = folder(task, method, seed)
    call = [sys.executable, __file__, "--run", task, method, str(seed), "--steps", str(args.steps)]
    with open(args.work / f"{name}.log", "ab") as log:
        done = subprocess.run([*call, "--work", args.work, "--out", args.out], stdout=log, stderr=log)
    if done.returncode:
        print(f"{name} ended with code {done.returncode}: see {log.name}", file=sys.stderr, flush=True)
        return None
    score = read_rows(args.work / name / "metrics.jsonl")[-1]["return_mean"]
    return None if score is None else round(score, 3)


def random_score(task: str, episodes: int = 100) -> float:
    """Mean score of uniformly random actions."""
    import gymnasium

    env, scores = gymnasium.make(f"{task}-v5"), list[float]()
    env.action_space.seed(0)
    for episode in range(episodes):
        env.reset(seed=episode)
        score, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            score, over = score + float(reward), terminated or truncated
        scores.append(score)
    env.close()
    return round(statistics.fmean(scores), 3)


def mean(seeds: Mapping[str, float]) -> float:
    return statistics.fmean(seeds.values())


def normalised(scores: Scores, at_random: Mapping[str, float]) -> dict[str, dict[str, list[float]]]:
    """By task and method, each seed: 0 is random, 1 the best method's mean over the seeds."""
    spans = {task: max(map(mean, found.values())) - at_random[task] for task, found in scores.items()}
    return {
        task: {m: [(x - at_random[task]) / spans[task] for x in seeds.values()] for m, seeds in found.items()}
        for task, found in scores.items()
    }


def table(record: Row, methods: list[str]) -> Row:
    """Means over the tasks that all these methods have finished with all seeds, and their standard errors by seeds.

    A task where none of them is better than random actions is left out.
    """
    runs, seeds = record["scores"], [*map(str, record["seeds"])]
    done = [task for task, found in runs.items() if all({*seeds} <= {*found.get(m, ())} for m in methods)]
    whole = {task: {m: {seed: runs[task][m][seed] for seed in seeds} for m in methods} for task in done}
    whole = {task: found for task, found in whole.items() if max(map(mean, found.values())) > record["random"][task]}
    each = normalised(whole, record["random"])
    means = {task: {m: round(statistics.fmean(x), 3) for m, x in found.items()} for task, found in each.items()}
    facts: Row = {"tasks": list(whole), "normalised": means, "mean": {}, "error": {}}
    for m in methods if whole else ():
        facts["mean"][m] = round(statistics.fmean(x for found in each.values() for x in found[m]), 3)
        if len(seeds) > 1:
            variance = sum(statistics.variance(found[m]) for found in each.values()) / len(seeds)
            facts["error"][m] = round(variance**0.5 / len(whole), 3)
    return facts


def picture(facts: Row, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((8, 4.2), layout="constrained")
    axes, names = figure.add_subplot(), list(facts["mean"])[::-1]
    means, errors = [facts["mean"][name] for name in names], [facts["error"].get(name) for name in names]
    xerr = errors if facts["error"] else None
    axes.barh(names, means, xerr=xerr, color="#1f6f8b", ecolor="#1f6f8b", alpha=0.55, label="mean, standard error")
    for i, task in enumerate(facts["tasks"]):
        each = [facts["normalised"][task][name] for name in names]
        axes.plot(each, names, "o", ms=4, color=f"C{i}", label=task)
    paper = [(METHODS[name][1], name) for name in names if METHODS[name][1] is not None]
    axes.plot(*zip(*paper, strict=True), "k|", ms=14, label="the paper") if paper else None
    axes.set_xlim(max(-1.0, min([-0.5, *facts["mean"].values()])), 1.05)
    axes.set_xlabel("score: random actions 0, the best method 1")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False, fontsize=7, loc="lower left")
    figure.savefig(out / "relatives.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("runs/relatives"), help="where runs stay")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", nargs=3, metavar=("TASK", "METHOD", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work, args.seeds = args.work.resolve(), list(dict.fromkeys(args.seeds))
    if args.run:
        task, method, seed = args.run
        cfg = config(task, method, int(seed), args.steps)
        surefoot.train(cfg, run_dir=args.work / folder(task, method, int(seed)), ranks=1, quiet=True)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.out / "record.json"
    record: Row = json.loads(file.read_text()) if file.exists() else {"random": {}, "scores": {}}
    if record.setdefault("steps", args.steps) != args.steps:
        parser.error(f"{file} is of runs of {record['steps']:,} steps")
    record |= {"machine": machine(), "jobs": args.jobs, "seeds": args.seeds}
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting: dict[str, dict[tuple[str, int], Any]] = {
            task: {(m, seed): pool.submit(train, task, m, seed, args) for seed in args.seeds for m in args.methods}
            for task in args.tasks
        }
        for task, runs in waiting.items():
            there = record["scores"].setdefault(task, {})
            for (method, seed), run in runs.items():
                if (score := run.result()) is not None:
                    there.setdefault(method, {})[str(seed)] = score
            record["random"].setdefault(task, random_score(task))
            record["table"] = facts = table(record, args.methods)
            file.write_text(json.dumps(record, indent=1))
            print(task, {m: round(mean(s), 1) for m, s in there.items()}, flush=True)
            if facts["tasks"]:
                picture(facts, args.out)
    for m, x in facts["mean"].items():
        print(f"{m:<24}{x:>7.3f}" + (f" ± {facts['error'][m]:.3f}" if m in facts["error"] else ""))
    if missing := [task for task in TASKS if task not in facts["tasks"]]:
        print(f"still open: {', '.join(missing)}")


if __name__ == "__main__":
    main()
