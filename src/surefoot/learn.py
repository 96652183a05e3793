"""Learning from a rollout: minibatches, the loss, one step. The only minus sign and the only .backward() are here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surefoot.credit import OverMinibatch
from surefoot.errors import Fault
from surefoot.noise import Purpose, stream
from surefoot.objectives import ClippedSurrogate, clip_fraction, clipped_value_loss, value_loss

if TYPE_CHECKING:
    from surefoot.config import Config
    from surefoot.ranks import Ranks
    from surefoot.rollout import Rollout
    from surefoot.state import State


PIECE = 512


@dataclass
class Batch:
    """Transitions without their order: one row each, [B, ...]; observations prepared by the policy."""

    obs: Tensor
    action: Tensor
    logp: Tensor
    params: Tensor
    weight: Tensor
    target: Tensor
    value: Tensor

    def pieces(self) -> Iterator[tuple[Batch, float]]:
        """The batch in parts that fit the cache, each with its share; a large batch learns twice as fast so."""
        if len(self.obs) <= PIECE:
            yield self, 1.0
            return
        parts = [x.split(PIECE) for x in vars(self).values()]
        for part in zip(*parts, strict=True):
            yield Batch(*part), len(part[0]) / len(self.obs)


def minibatches(
    rollout: Rollout, weight: Tensor, target: Tensor, cfg: Config, iteration: int, columns: slice
) -> Iterator[Batch]:
    """`cfg.epochs` passes over the rollout, each cut afresh into minibatches.

    Every game gives each minibatch the same number of its own decisions, so a rank needs only its own games
    (`columns`) to give its share of a minibatch that all ranks learn from.
    """
    horizon, n = rollout.action.shape[:2]
    rows = (rollout.prepared, rollout.action, rollout.logp, rollout.params, weight, target, rollout.value)
    flat = Batch(*(x.flatten(0, 1) for x in rows))
    parts = cfg.minibatches(horizon)
    for epoch in range(cfg.epochs):
        if parts == 1:
            yield flat
            continue  # the lesson's way: everything at once, nothing copied
        draws = stream(cfg.seed, Purpose.MINIBATCHES, iteration, epoch).random((horizon, cfg.games))
        order = torch.from_numpy(draws[:, columns].argsort(0)) * n + torch.arange(n)
        for part in order.chunk(parts):
            index = part.flatten().to(weight.device)
            yield Batch(*(x.index_select(0, index) for x in vars(flat).values()))


NAMES = ("kl", "clip_fraction", "entropy", "value_loss", "ratio_drift", "effective_samples", "grad_norm")


def update(state: State, batch: Batch, cfg: Config, ranks: Ranks) -> Tensor:
    """One step up the mean gain; returns the minibatch's figures, in the order of NAMES.

    The loss is -mean(gain + bonus) + value_coef mean (V - target)^2. Where its gradient is not finite nothing is
    changed: the update is skipped `cfg.skip_updates` times a run, then Fault is raised.
    """
    objective = cfg.objective.at(state.iteration, state.progress(cfg))
    bonus = cfg.regularizer.at(state.iteration, state.progress(cfg))
    epsilon = objective.epsilon if isinstance(objective, ClippedSurrogate) else 0.2
    gradient = state.gradient
    gradient.zero_()
    state.games.pulse.rest()
    if isinstance(cfg.normalize, OverMinibatch):
        batch = replace(batch, weight=cfg.normalize.within(batch.weight, ranks.mean))
    stats = gradient.new_zeros(len(NAMES))
    for piece, share in batch.pieces():
        new, value, _ = state.policy.judge(piece.obs)
        old = state.policy.distribution(piece.params)
        logp = new.log_prob(piece.action)
        gain = objective(logp, piece.logp, piece.weight) + bonus(new, old)
        if cfg.value_clip < math.inf:
            error = clipped_value_loss(value, piece.value, piece.target, cfg.value_clip).mean()
        else:
            error = value_loss(value, piece.target).mean()
        loss = -gain.mean() + cfg.value_coef * error
        (share * loss).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            ratio = (logp - piece.logp).exp()
            drift, worth = (ratio - 1).abs().mean(), (ratio.mean(), ratio.square().mean())
            means = new.kl(old).mean(), clip_fraction(ratio, epsilon), new.entropy().mean(), error, drift, *worth
            stats += share * torch.stack(means)
    ranks.average(gradient, stats)
    norm = gradient.norm().item()
    stats[-2], stats[-1] = stats[-2] ** 2 / stats[-1], norm  # the effective sample size's share, of the whole minibatch
    if not norm < float("inf"):
        state.skipped += 1
        if state.skipped > cfg.skip_updates:
            where = f"iteration {state.iteration + 1}, after {state.steps:,} decisions"
            raise Fault(f"the gradient is not finite in {where}: lower the learning rate, or allow --skip-updates")
        return stats
    if norm > cfg.max_grad_norm:
        gradient.mul_(cfg.max_grad_norm / norm)
    state.rate = cfg.rate(state.rate, float(stats[0]), state.progress(cfg))
    state.optimizer.step(state.rate)
    return stats
