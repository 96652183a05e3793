"""What one update of a preset takes on one core, without the rest of a run: the smallest of many, and the median.

    PYTHONPATH=src python bench/update.py CartPole-v1 HalfCheetah-v5 --seconds 4

A line of JSON a task; minibatches are made, and windows numbered, beforehand. To compare two versions of surefoot, name
each one's `src` in PYTHONPATH and take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import islice
from time import perf_counter

import torch
from threadpoolctl import threadpool_limits

from surefoot.algorithm.advantages import compute_advantages
from surefoot.algorithm.rollout import collect, gather_if_small
from surefoot.algorithm.state import initial
from surefoot.algorithm.update import batches, update
from surefoot.config import Config
from surefoot.parallel.ranks import Alone
from surefoot.presets import find
from surefoot.rng import Purpose, stream
from surefoot.runs.worker import revision


def finish(device: str) -> None:
    """Wait for what a GPU still computes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def measure(cfg: Config, seconds: float) -> list[float]:
    """Seconds an update took, each the mean of a pass over up to eight minibatches of one rollout."""
    ranks = Alone()
    state = initial(cfg, ranks)
    shape = cfg.num_steps[0], cfg.num_envs, *state.policy.noise_shape
    noise = torch.from_numpy(stream(cfg.seed, Purpose.ACTIONS, 0).random(shape, "float32")).to(cfg.device)
    rollout = collect(state.policy, state.envs, noise)
    rollout, _ = gather_if_small(rollout, cfg, state, ranks)
    advantage, returns, _ = compute_advantages(rollout, cfg, state, ranks)
    some = list(islice(batches(rollout, advantage, returns, cfg, state, ranks), 8))
    passes, end = list[float](), perf_counter() + seconds
    while (start := perf_counter()) < end:
        for batch in some:
            update(state, batch, cfg, ranks)
        finish(cfg.device)
        passes.append((perf_counter() - start) / len(some))
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
        passes = measure(find(task), args.seconds)
        figures = {"least_us": round(min(passes) * 1e6), "median_us": round(statistics.median(passes) * 1e6)}
        print(json.dumps({"task": task, "git": revision(), "passes": len(passes), **figures}), flush=True)


if __name__ == "__main__":
    main()
