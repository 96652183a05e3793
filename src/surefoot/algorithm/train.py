"""The outer loop: one iteration of policy-gradient learning, from REINFORCE to PPO."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING

from surefoot.algorithm.advantages import compute_advantages
from surefoot.algorithm.rollout import collect_rollout, gather_if_small
from surefoot.algorithm.running_stats import update_running_stats
from surefoot.algorithm.schedules import annealed
from surefoot.algorithm.update import UpdateInfo, batches, flush_denormals, update, update_metrics
from surefoot.envs.interface import Episode

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks


class Callback:
    """What the loop calls: does nothing, and never stops; subclasses show progress, save, or stop the run."""

    def should_stop(self, state: State) -> bool:
        """Whether training is over; asked before every rollout."""
        return False

    def collecting(self) -> AbstractContextManager[None]:
        """Entered while environments are stepped: in it a signal may raise Interrupted."""
        return nullcontext()

    def on_dropped_rollout(self, cause: BaseException | None) -> None:
        """A rollout was dropped, on this rank because of `cause` or for another rank's sake; training ends."""

    def on_iteration(self, state: State, rollout: Rollout, returns: Tensor, metrics: Tensor, learn_s: float) -> None:
        """An iteration is done. `metrics` [updates, len(METRIC_NAMES)]; `learn_s`: seconds from rollout to here."""

    def should_save(self) -> bool:
        """Whether it is time to save; asked after every iteration."""
        return False

    def on_save(self, state: State) -> None:
        """Save; called on every rank where any of them should."""


def train(cfg: Config, state: State, ranks: Ranks, callback: Callback) -> State:
    """Collect a rollout, compute advantages, update for several epochs, repeat.

    All that distinguishes REINFORCE from PPO is in the Config's parts that these lines call.
    """
    while not ranks.any(callback.should_stop(state)):
        collected = collect_rollout(cfg, state, ranks, callback)  # the present policy acts, [T, N]
        if collected is None:
            break
        start = perf_counter()
        rollout, group = gather_if_small(collected, cfg, state, ranks)  # group: the ranks that share a minibatch
        advantage, returns, advantage_std = compute_advantages(rollout, cfg, state, group)  # [T, N]
        now, updates = annealed(cfg, state.iteration, state.progress(cfg)), list[UpdateInfo]()
        with flush_denormals():
            for batch in batches(rollout, advantage, returns, cfg, state, group):  # epochs x minibatches, [B]
                updates.append(update(state, batch, now, group))  # one step down the gradient of ppo_loss
                if updates[-1].kl > cfg.target_kl:
                    break
        metrics = update_metrics(updates, state, now, group)
        if group is not ranks:  # each has computed the same, but for the last bits where processors differ
            ranks.broadcast(state.flat.data)
        state.advantage_std = advantage_std
        finish_iteration(state, collected, cfg, ranks)
        rollout.episodes = collected.episodes
        callback.on_iteration(state, rollout, returns, metrics, perf_counter() - start)
        if ranks.any(callback.should_save()):
            callback.on_save(state)
    return state


def finish_iteration(state: State, rollout: Rollout, cfg: Config, ranks: Ranks) -> None:
    """Update statistics, counters and the moving average; `rollout`, this rank's, gets all ranks' episodes."""
    update_running_stats(state, rollout, cfg, ranks)
    state.snapshot_envs()
    state.steps += len(rollout.reward) * cfg.num_envs
    state.iteration += 1
    state.update_ema(cfg.ema_decay)
    parts = ranks.all_gather_bytes(json.dumps(rollout.episodes).encode())
    episodes = (Episode(*e) for part in parts for e in json.loads(part))
    rollout.episodes = sorted(episodes, key=lambda e: (e.at, e.env))
    state.episodes += len(rollout.episodes)
    state.recent_episodes.extend(rollout.episodes)
