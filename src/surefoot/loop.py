"""The page: one iteration of policy-gradient learning, from REINFORCE to PPO."""

from __future__ import annotations

import json
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import torch

from surefoot.envs import Episode
from surefoot.learn import minibatches, update
from surefoot.noise import Purpose, stream
from surefoot.rollout import Rollout, collect

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.config import Config
    from surefoot.ranks import Ranks
    from surefoot.state import State


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


def train(cfg: Config, state: State, ranks: Ranks, watcher: Watcher) -> State:
    """Play, judge, learn, repeat. Everything a rung of the ladder changes is visible in these lines."""
    mine = ranks.columns(cfg.games)
    while not ranks.agree(watcher.done(state)):
        horizon = state.horizon(cfg)
        noise = stream(cfg.seed, Purpose.ACTIONS, state.iteration).random((horizon, cfg.games), "float32")[:, mine]
        rollout = collect(
            state.policy,
            state.games,
            torch.from_numpy(noise).to(cfg.device),
            state.iteration if cfg.from_reset else None,
        )
        if cfg.from_reset:  # all ranks' games stop where the first of them ended
            rollout = rollout.cut(ranks.least(len(rollout.reward)), state.games.indices)
        began = perf_counter()
        weight, target = cfg.credit(rollout)  # what each action earned             [T, N]
        weight = ranks.own(cfg.normalize(ranks.gather(weight)))  # compared with all games    [T, N]
        batches = minibatches(state.policy, rollout, weight, target, cfg, state.iteration, mine)  # epochs x parts  [B]
        stats = torch.stack([update(state, batch, cfg, ranks) for batch in batches])
        count(state, rollout, ranks)
        watcher.iteration(state, rollout, target, stats, perf_counter() - began)
        if ranks.agree(watcher.due()):
            watcher.save(state)
    return state


def count(state: State, rollout: Rollout, ranks: Ranks) -> None:
    """Count what all ranks have played; rank 0 keeps the window of finished episodes."""
    state.steps += rollout.reward.numel() * ranks.count
    state.iteration += 1
    finished = [
        Episode(*e) for part in ranks.collect_bytes(json.dumps(rollout.episodes).encode()) for e in json.loads(part)
    ]
    state.episodes += len(finished)
    state.window.extend(finished)
    rollout.episodes = finished
