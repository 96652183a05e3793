"""The page: one iteration of policy-gradient learning, from REINFORCE to PPO."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import torch

from surefoot.algorithm.advantages import OverBatch
from surefoot.algorithm.rollout import Rollout, collect, gather_if_small
from surefoot.algorithm.running_stats import measure
from surefoot.algorithm.update import Update, annealed, flush_denormals, minibatches, update, update_metrics
from surefoot.envs.interface import Episode
from surefoot.errors import Fault, Interrupted
from surefoot.rng import Purpose, stream

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks


class Callback(Protocol):
    """Who looks on: shows progress, writes metrics, saves, and may ask to stop."""

    def done(self, state: State) -> bool:
        """Whether training is over."""
        ...

    def iteration(self, state: State, rollout: Rollout, target: Tensor, stats: Tensor, learn_s: float) -> None:
        """One iteration is done. `stats` [updates, len(learn.NAMES)]."""
        ...

    def save(self, state: State) -> None:
        """Rank 0 has decided that it is time to save; called on every rank."""
        ...

    def due(self) -> bool:
        """Whether it is time to save."""
        ...

    def playing(self) -> AbstractContextManager[None]:
        """While games are played a signal may raise Interrupted."""
        ...

    def dropped(self, cause: BaseException | None) -> None:
        """A rollout was dropped, because of `cause` or for another rank's sake: training ends."""
        ...


@torch.no_grad()  # but where a network is gone back through, in Policy.traced
def train(cfg: Config, state: State, ranks: Ranks, callback: Callback) -> State:
    """Play, judge, learn, repeat. Everything a rung of the ladder changes is visible in these lines."""
    played, arrays = ranks.columns(cfg.num_envs), state.policy.bound is not None
    while not ranks.any(callback.done(state)):
        num_steps = state.num_steps(cfg)
        shape = num_steps, cfg.num_envs, *state.policy.draws
        noise = stream(cfg.seed, Purpose.ACTIONS, state.iteration).random(shape, "float32")[:, played]
        start = state.iteration if cfg.from_reset else None
        rollout = None
        try:
            with callback.playing():
                rollout = collect(state.policy, state.envs, torch.from_numpy(noise).to(cfg.device), start)
        except (Interrupted, Fault) as cause:
            callback.dropped(cause)
        length = ranks.all_reduce_min(0 if rollout is None else len(rollout.reward))
        if (
            rollout is None or length == 0
        ):  # on one rank or another; state.env_snapshot still is where this rollout began
            callback.dropped(None)
            break
        if length < len(rollout.reward):  # from_reset: all ranks' games stop where the first of them ended
            rollout = rollout.cut(length, state.envs.indices)
        began, own = perf_counter(), rollout
        rollout, learner_group = gather_if_small(own, state.policy, cfg.minibatch_size or cfg.num_envs * length, ranks)
        mine = learner_group.columns(cfg.num_envs)
        rollout.windows = state.policy.windows(rollout.preprocessed, rollout.bootstrap_obs)
        weight, target, spread = compute_advantages(rollout, cfg, state, learner_group)
        updates, now, asked = list[Update](), annealed(cfg, state), target
        with flush_denormals():
            for epoch in range(cfg.num_epochs):
                if epoch and cfg.recompute:  # the critic has learned since
                    weight, target, _ = compute_advantages(rollout.judged(state.policy), cfg, state, learner_group)
                for batch in minibatches(rollout, weight, target, cfg, state.iteration, epoch, mine, arrays):  # [B]
                    updates.append(update(state, batch, now, learner_group))
                    if updates[-1].kl > cfg.target_kl:  # as all ranks have found
                        break
                else:
                    continue
                break
        if learner_group is not ranks:  # alike but for the last bits, where processors are of several kinds
            ranks.broadcast(state.flat.data)
        stats = update_metrics(updates, state, now, learner_group)
        state.advantage_std = spread
        measure(state, own, cfg, ranks)
        count(state, rollout, cfg, ranks)
        callback.iteration(state, rollout, asked, stats, perf_counter() - began)
        if ranks.any(callback.due()):
            callback.save(state)
    return state


def compute_advantages(rollout: Rollout, cfg: Config, state: State, ranks: Ranks) -> tuple[Tensor, Tensor, float]:
    """How hard each action is pushed, and what the critic should have said, both [T, N]; and the next `spread`."""
    paid = replace(rollout, reward=cfg.reward(rollout.reward, state.return_std))
    weight, target = cfg.advantage(paid)  # what each action earned
    every = ranks.gather_columns(weight)  # compared with all games
    spread = cfg.normalize.remember(state.advantage_std, every) if isinstance(cfg.normalize, OverBatch) else 0.0
    return ranks.local_columns(cfg.normalize(every, state.advantage_std)), target, spread


def count(state: State, rollout: Rollout, cfg: Config, ranks: Ranks) -> None:
    """Count what all ranks have played, average the parameters, keep the window of finished episodes."""
    state.snapshot_envs()
    state.steps += len(rollout.reward) * cfg.num_envs
    state.iteration += 1
    state.update_ema(cfg.ema_decay)
    parts = ranks.all_gather_bytes(json.dumps(rollout.episodes).encode())
    rollout.episodes = sorted((Episode(*e) for part in parts for e in json.loads(part)), key=lambda e: (e.at, e.env))
    state.episodes += len(rollout.episodes)
    state.recent_episodes.extend(rollout.episodes)
