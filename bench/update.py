"""What one update of a preset takes on one core, without the rest of a run: the smallest of many, and the median.

    PYTHONPATH=src python bench/update.py CartPole-v1 HalfCheetah-v5 --seconds 4

A line of JSON a task; minibatches are made, and windows numbered, beforehand. To compare two versions of surefoot, name
each one's `src` in PYTHONPATH and take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
from time import perf_counter

import torch
from threadpoolctl import threadpool_limits

from surefoot.algorithm.rollout import collect
from surefoot.algorithm.state import initial
from surefoot.algorithm.update import minibatches, update
from surefoot.parallel.ranks import Alone
from surefoot.presets import find
from surefoot.rng import Purpose, stream
from surefoot.runs.worker import revision


def measure(task: str, seconds: float) -> list[float]:
    """Seconds an update took, each the mean of a pass over eight minibatches of one rollout."""
    cfg, ranks = find(task), Alone()
    state = initial(cfg, ranks)
    shape = cfg.num_steps[0], cfg.num_envs, *state.policy.draws
    noise = torch.from_numpy(stream(cfg.seed, Purpose.ACTIONS, 0).random(shape, "float32"))
    rollout = collect(state.policy, state.envs, noise)
    if hasattr(state.policy, "windows"):  # the versions since
        rollout.windows = state.policy.windows(rollout.preprocessed, rollout.bootstrap_obs)
    weight, target = cfg.advantage(rollout)
    batches = list(
        minibatches(rollout, cfg.normalize(weight), target, cfg, 0, 0, slice(0, cfg.num_envs), bool(state.policy.bound))
    )[:8]
    passes, end = list[float](), perf_counter() + seconds
    while (start := perf_counter()) < end:
        for batch in batches:
            update(state, batch, cfg, ranks)
        passes.append((perf_counter() - start) / len(batches))
    state.envs.close()
    return passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1, "blas")
    for task in args.tasks:
        passes = measure(task, args.seconds)
        figures = {"least_us": round(min(passes) * 1e6), "median_us": round(statistics.median(passes) * 1e6)}
        print(json.dumps({"task": task, "git": revision(), "passes": len(passes), **figures}), flush=True)


if __name__ == "__main__":
    main()
