"""A process of the ladder: trains the runs that it reads from standard input, and measures their gradients' noise."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from surefoot.algorithm.advantages import compute_advantages
from surefoot.algorithm.callback import Callback
from surefoot.algorithm.objectives import Entropy
from surefoot.algorithm.rollout import collect_rollout
from surefoot.algorithm.state import initial
from surefoot.algorithm.update import batches, loss_backward
from surefoot.config import Config
from surefoot.errors import UserError
from surefoot.lesson.ladder_rungs import NOISE, read_noise
from surefoot.parallel.launch import die_with_parent
from surefoot.parallel.ranks import Alone
from surefoot.runs.directory import checkpoints, read_config, require_same_config
from surefoot.runs.files import replace_file
from surefoot.runs.policy_file import load_policy
from surefoot.runs.start import resume, start

ROLLOUTS = 24  # that a gradient's noise is measured with
FRESH = 1 << 24  # number of the first rollout: none that a run has learned from


def gradient_noise(cfgs: Sequence[Config], run_dir: Path, rollouts: int) -> dict[str, float]:
    """Noise beside signal in the policy gradient of one rollout, for each rung, at the policy of the run `run_dir`.

    sqrt(tr Cov(g) / |E g|^2), both estimated without bias from `rollouts` gradients g of the objective alone, without
    entropy bonus and value loss. At the policy that has played the ratio is 1 and all objectives have the same
    gradient, so only advantage and normalisation matter. Infinite where no signal can be told from 0. All rungs learn
    from the same rollouts. It is the square root of the "simple noise scale", in rollouts.
    Source: McCandlish et al. 2018.
    """
    alone, state = Alone(), initial(cfgs[0], Alone())
    alike: Any = {"entropy": Entropy(0.0), "num_epochs": 1, "value_coef": 0.0, "fit_value_bias": False}
    plain = {(c.advantage, c.normalize): replace(c, **alike) for c in cfgs}
    gradients: dict[Any, list[torch.Tensor]] = {kind: [] for kind in plain}
    try:
        state.policy.load_state_dict(load_policy(run_dir)[0].state_dict())
        for iteration in range(rollouts):
            state.iteration = FRESH + iteration
            rollout = collect_rollout(cfgs[0], state, alone, Callback())
            assert rollout is not None
            for kind, cfg in plain.items():
                advantage, returns, _ = compute_advantages(rollout, cfg, state, alone)
                (batch,) = batches(rollout, advantage, returns, cfg, state, alone)
                for i, (part, share) in enumerate(batch.microbatches(state.policy.microbatch(batch.obs))):
                    loss_backward(state, cfg, part, share, add=i > 0)
                gradients[kind].append(state.gradient.double().clone())
    finally:
        state.envs.close()
    return {cfg.task: noise_of(torch.stack(gradients[cfg.advantage, cfg.normalize])) for cfg in cfgs}


def noise_of(gradients: torch.Tensor) -> float:
    """sqrt(tr Cov(g) / |E g|^2) of gradients [K, P], without bias in either."""
    mean, count = gradients.mean(0), len(gradients)
    noise = float((gradients - mean).square().sum() / (count - 1))
    signal_squared = float(mean.square().sum()) - noise / count
    return (noise / signal_squared) ** 0.5 if signal_squared > 0 else float("inf")


def train(cfg: Config, run_dir: Path) -> None:
    """Train one run, or continue it, or do nothing where it is finished; the run may have had another end.

    Raises UserError where it differs in more.
    """
    if checkpoints(run_dir):
        require_same_config(replace(cfg, total_steps=read_config(run_dir).total_steps), run_dir)
        resume(run_dir, quiet=True, ranks=1, total_steps=cfg.total_steps, eval_episodes=cfg.eval_episodes)
    else:
        start(cfg, run_dir, quiet=True, ranks=1)


def measure(cfgs: Sequence[Config], run_dir: Path, rollouts: int = ROLLOUTS) -> None:
    """Measure the gradients' noise at a run's policy and write it there, unless that was done."""
    step = int(checkpoints(run_dir)[-1].name)
    if not {cfg.task for cfg in cfgs} <= set(read_noise(run_dir, step)):
        noise = {task: x if x < math.inf else None for task, x in gradient_noise(cfgs, run_dir, rollouts).items()}
        replace_file(run_dir / NOISE, json.dumps({"step": step, "rollouts": rollouts, "noise": noise}).encode())


def main() -> None:
    """Serve orders, a line of JSON each, until there are no more; answer "ok", or why not."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an environment prints is no answer
    for line in sys.stdin:
        what, configs, where = json.loads(line)
        cfgs = [Config.from_json(config) for config in configs]
        try:
            train(cfgs[0], Path(where)) if what == "train" else measure(cfgs, Path(where))
            answer = "ok"
        except UserError as error:
            answer = str(error).replace("\n", " ")
        except KeyboardInterrupt:
            return
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
