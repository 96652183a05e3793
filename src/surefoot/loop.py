"""The training loop by hand, in one process: what `algorithm.train` does, to be called in a loop of one's own.

    cfg = surefoot.configure("cartpole", total_steps=20_000)
    state = begin(cfg)
    while state.progress(cfg) < 1:
        rollout = collect(cfg, state)
        advantage, returns = advantages(rollout, cfg, state)
        for batch in minibatches(rollout, advantage, returns, cfg, state):
            update(state, batch, cfg)
        finish(state, rollout, cfg)

Nothing is saved or shown; `state.policy` acts, `state.mean_score()` is the mean of the last 100 episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from surefoot.algorithm.advantages import compute_advantages
from surefoot.algorithm.callback import Callback
from surefoot.algorithm.rollout import Rollout, collect_rollout, gather_if_small
from surefoot.algorithm.schedules import annealed
from surefoot.algorithm.state import State, initial
from surefoot.algorithm.train import finish_iteration
from surefoot.algorithm.trpo import update_rule
from surefoot.algorithm.update import Batch, UpdateInfo, flush_denormals
from surefoot.errors import Fault
from surefoot.parallel.ranks import Alone

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.config import Config
    from surefoot.envs.interface import Episode

ALONE = Alone()


class Raising(Callback):
    """What has broken off a rollout is raised."""

    def on_dropped_rollout(self, cause: BaseException | None) -> None:
        """Raise it."""
        raise cause or Fault("the rollout was broken off")


def begin(cfg: Config) -> State:
    """Policy, optimizer and environments before the first step; `state.envs.close()` at the end."""
    return initial(cfg, ALONE)


def collect(cfg: Config, state: State) -> Rollout:
    """The next rollout, [T, N]: the present policy acts. Raises Fault where an environment fails."""
    collected = collect_rollout(cfg, state, ALONE, Raising())
    assert collected is not None
    return gather_if_small(collected, cfg, state, ALONE)[0]


def advantages(rollout: Rollout, cfg: Config, state: State) -> tuple[Tensor, Tensor]:
    """Normalised advantages and the critic's targets, both [T, N]."""
    return compute_advantages(rollout, cfg, state, ALONE)[:2]


def minibatches(rollout: Rollout, advantage: Tensor, returns: Tensor, cfg: Config, state: State) -> Iterator[Batch]:
    """All minibatches of a rollout, epoch after epoch."""
    return update_rule(cfg)[0](rollout, advantage, returns, cfg, state, ALONE)


def update(state: State, batch: Batch, cfg: Config) -> UpdateInfo:
    """One optimizer step down the gradient of `ppo_loss`; returns KL(old || new) and the gradient's norm."""
    with flush_denormals():
        return update_rule(cfg)[1](
            state, batch, annealed(cfg, state.iteration, state.progress(cfg), state.kl_coef), ALONE
        )


def finish(state: State, rollout: Rollout, cfg: Config) -> list[Episode]:
    """The end of an iteration: running statistics, counters, moving average; returns the episodes that ended."""
    state.advantage_std = compute_advantages(rollout, cfg, state, ALONE)[2]
    return finish_iteration(state, rollout, cfg, ALONE)
