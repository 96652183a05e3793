"""The page: one iteration of policy-gradient learning, from REINFORCE to PPO."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import torch

from surefoot.algorithm.advantages import OverBatch
from surefoot.algorithm.rollout import Rollout, collect, with_whom
from surefoot.algorithm.running_stats import measure
from surefoot.algorithm.update import Update, figures, flushed, minibatches, present, update
from surefoot.envs import Episode
from surefoot.errors import Fault, Interrupted
from surefoot.rng import Purpose, stream

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks


class Watcher(Protocol):
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
def train(cfg: Config, state: State, ranks: Ranks, watcher: Watcher) -> State:
    """Play, judge, learn, repeat. Everything a rung of the ladder changes is visible in these lines."""
    played, arrays = ranks.columns(cfg.games), state.policy.bound is not None
    while not ranks.agree(watcher.done(state)):
        horizon = state.horizon(cfg)
        shape = horizon, cfg.games, *state.policy.draws
        noise = stream(cfg.seed, Purpose.ACTIONS, state.iteration).random(shape, "float32")[:, played]
        start = state.iteration if cfg.from_reset else None
        rollout = None
        try:
            with watcher.playing():
                rollout = collect(state.policy, state.games, torch.from_numpy(noise).to(cfg.device), start)
        except (Interrupted, Fault) as cause:
            watcher.dropped(cause)
        length = ranks.least(0 if rollout is None else len(rollout.reward))
        if rollout is None or length == 0:  # on one rank or another; state.place still is where this rollout began
            watcher.dropped(None)
            break
        if length < len(rollout.reward):  # from_reset: all ranks' games stop where the first of them ended
            rollout = rollout.cut(length, state.games.indices)
        began, own = perf_counter(), rollout
        rollout, learners = with_whom(own, state.policy, cfg.minibatch or cfg.games * length, ranks)
        mine = learners.columns(cfg.games)
        rollout.windows = state.policy.windows(rollout.prepared, rollout.beyond)
        weight, target, spread = weigh(rollout, cfg, state, learners)
        updates, now, asked = list[Update](), present(cfg, state), target
        with flushed():
            for epoch in range(cfg.epochs):
                if epoch and cfg.recompute:  # the critic has learned since
                    weight, target, _ = weigh(rollout.judged(state.policy), cfg, state, learners)
                for batch in minibatches(rollout, weight, target, cfg, state.iteration, epoch, mine, arrays):  # [B]
                    updates.append(update(state, batch, now, learners))
                    if updates[-1].kl > cfg.max_kl:  # as all ranks have found
                        break
                else:
                    continue
                break
        if learners is not ranks:  # alike but for the last bits, where processors are of several kinds
            ranks.follow(state.flat.data)
        stats = figures(updates, state, now, learners)
        state.spread = spread
        measure(state, own, cfg, ranks)
        count(state, rollout, cfg, ranks)
        watcher.iteration(state, rollout, asked, stats, perf_counter() - began)
        if ranks.agree(watcher.due()):
            watcher.save(state)
    return state


def weigh(rollout: Rollout, cfg: Config, state: State, ranks: Ranks) -> tuple[Tensor, Tensor, float]:
    """How hard each action is pushed, and what the critic should have said, both [T, N]; and the next `spread`."""
    paid = replace(rollout, reward=cfg.reward(rollout.reward, state.deviation))
    weight, target = cfg.credit(paid)  # what each action earned
    every = ranks.gather(weight)  # compared with all games
    spread = cfg.normalize.remember(state.spread, every) if isinstance(cfg.normalize, OverBatch) else 0.0
    return ranks.own(cfg.normalize(every, state.spread)), target, spread


def count(state: State, rollout: Rollout, cfg: Config, ranks: Ranks) -> None:
    """Count what all ranks have played, average the parameters, keep the window of finished episodes."""
    state.mark()
    state.steps += len(rollout.reward) * cfg.games
    state.iteration += 1
    state.average(cfg.ema_decay)
    parts = ranks.share_bytes(json.dumps(rollout.episodes).encode())
    rollout.episodes = sorted((Episode(*e) for part in parts for e in json.loads(part)), key=lambda e: (e.at, e.game))
    state.episodes += len(rollout.episodes)
    state.window.extend(rollout.episodes)
