"""Learning from a rollout: minibatches, the loss's gradient, one step. The only minus sign is here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from surefoot.algorithm.advantages import OverMinibatch
from surefoot.algorithm.objectives import (
    ClippedSurrogate,
    clipped,
    clipped_value_loss,
    clipped_value_slope,
    value_loss,
    value_slope,
)
from surefoot.algorithm.schedules import AdaptiveRate
from surefoot.arrays import Array, namespace
from surefoot.errors import Fault
from surefoot.rng import Purpose, stream

if TYPE_CHECKING:
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.fast.windows import Windows
    from surefoot.parallel.ranks import Ranks


@dataclass
class Batch:
    """Transitions without their order: one row each, [B, ...]; observations preprocessed by the policy, or windows."""

    obs: Array | Windows
    action: Array
    logp: Array
    params: Array
    weight: Array
    target: Array
    value: Array

    def pieces(self, most: int) -> Iterator[tuple[Batch, float]]:
        """The batch in equal parts of at most so many rows, each with its share."""
        count = len(self.obs)
        size = math.ceil(count / math.ceil(count / most))
        for i in range(0, count, size):
            part = Batch(*(x[i : i + size] for x in vars(self).values())) if size < count else self
            yield part, len(part.obs) / count


def minibatches(
    rollout: Rollout,
    weight: Tensor,
    target: Tensor,
    cfg: Config,
    iteration: int,
    epoch: int,
    columns: slice,
    arrays: bool = False,
) -> Iterator[Batch]:
    """One pass over the rollout, in minibatches that are cut afresh in every `epoch`.

    Every game gives each minibatch the same number of its own decisions, so a rank needs only its own games
    (`columns`) to give its share of a minibatch that all ranks learn from. `arrays`: of NumPy, as an MLP has them.
    """
    num_steps, n = rollout.action.shape[:2]
    rows = (rollout.preprocessed, rollout.action, rollout.logp, rollout.params, weight, target, rollout.value)
    flat: list[Any] = [x.numpy().reshape(num_steps * n, *x.shape[2:]) if arrays else x.flatten(0, 1) for x in rows]
    parts, seen = cfg.minibatches(num_steps), rollout.windows
    if parts == 1:
        yield Batch(seen[: num_steps * n] if seen else flat[0], *flat[1:])
        return  # the lesson's way: everything at once
    draws = stream(cfg.seed, Purpose.MINIBATCHES, iteration, epoch).random((num_steps, cfg.num_envs))
    order: Array = (draws[:, columns].argsort(0) * n + np.arange(n)).ravel()
    size = num_steps // parts * n
    starts = range(0, len(order), size)
    if arrays:
        shuffled = [x.take(order, 0) for x in flat]  # small: all minibatches at once
        yield from (Batch(*(x[i : i + size] for x in shuffled)) for i in starts)
        return
    order = torch.from_numpy(order).to(weight.device)
    shuffled = [x.index_select(0, order) for x in flat[1:]]
    for i in starts:
        some = order[i : i + size]
        yield Batch(seen[some.numpy()] if seen else flat[0].index_select(0, some), *(x[i : i + size] for x in shuffled))


NAMES = ("kl", "clip_fraction", "entropy", "value_loss", "ratio_drift", "effective_samples", "grad_norm")


class Update(NamedTuple):
    """What an update has found: `figures` makes the rest of it once a rollout, since many small sums take long."""

    kl: float
    """of the whole minibatch, all ranks; NaN where nothing depends on it"""
    grad_norm: float
    """the same"""
    pieces: list[tuple[Array, ...]]
    """of this rank's samples: parameters of the new policy and the old one, log probabilities, the critic's error"""


def annealed(cfg: Config, state: State) -> Config:
    """The Config with objective and regularizer as they stand in this iteration."""
    iteration, progress, now = state.iteration, state.progress(cfg), copy(cfg)
    push = {"objective": cfg.objective.at(iteration, progress), "entropy": cfg.entropy.at(iteration, progress)}
    vars(now).update(push)  # not by `replace`, which checks everything again: a hundredth of a rollout of CartPole
    return now


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as 0: processors take many times as long for them, and units that rest have many."""
    torch.set_flush_denormal(True)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # the gradient's norm tells
            yield
    finally:
        torch.set_flush_denormal(False)


def update(state: State, batch: Batch, cfg: Config, ranks: Ranks) -> Update:
    """One step up the mean gain, with objective and regularizer as the Config has them (`present`).

    The loss is -mean(gain + bonus) + value_coef mean (V - target)^2. Where its gradient is not finite nothing is
    changed: the update is skipped `cfg.skip_updates` times a run, then Fault is raised.
    """
    objective, bonus, policy = cfg.objective, cfg.entropy, state.policy
    gradient: Any = policy.bound.gradient if policy.bound else state.gradient
    state.envs.heartbeat.rest()
    if isinstance(cfg.normalize, OverMinibatch):
        batch = replace(batch, weight=cfg.normalize.within(batch.weight, ranks.all_reduce_mean))
    if policy.bound and isinstance(batch.obs, Tensor):
        batch = Batch(*(x.numpy() for x in vars(batch).values()))
    kl, pieces, own = 0.0, list[tuple[Array, ...]](), state.optimizer.part
    steered = isinstance(cfg.learning_rate, AdaptiveRate) or cfg.target_kl < math.inf
    for piece, share in batch.pieces(policy.piece(batch.obs)):
        new, value, pull = policy.traced(piece.obs)
        old, logp = policy.distribution(piece.params, known=True), new.log_prob(piece.action)
        each = share / (len(value) * ranks.count)  # one decision's share of what all ranks learn from
        slope = objective.slope(logp, piece.logp, piece.weight)
        down = new.score(piece.action, slope * -each)  # the gradient of -mean(gain) by what the policy puts out
        if (more := bonus.slope(new, old)) is not None:
            down = down - each * more
        if cfg.value_clip < math.inf:
            error = clipped_value_loss(value, piece.value, piece.target, cfg.value_clip)
            steep = clipped_value_slope(value, piece.value, piece.target, cfg.value_clip)
        else:
            error, steep = value_loss(value, piece.target), value_slope(value, piece.target)
        pull(down, steep * (cfg.value_coef * each), add=bool(pieces))
        kl += each * float(new.kl(old).sum()) if steered else math.nan
        pieces.append((new.params, piece.params, logp, piece.logp, error))
    found = Update(*ranks.reduce_gradient(gradient, kl, state.gradients, own), pieces)
    if not found.grad_norm < float("inf"):
        state.skipped += 1
        if state.skipped > cfg.skip_updates:
            where = f"iteration {state.iteration + 1}, after {state.steps:,} decisions"
            raise Fault(f"the gradient is not finite in {where}: lower the learning rate, or allow --skip-updates")
        return found
    if found.grad_norm > cfg.max_grad_norm:
        gradient[own] *= cfg.max_grad_norm / found.grad_norm
    state.learning_rate = cfg.learning_rate(state.learning_rate, found.kl, state.progress(cfg))
    state.optimizer.step(state.learning_rate)
    if len(state.gradients) > 1:
        ranks.all_reduce_min(0)  # all have stepped their parts
    return found


@torch.no_grad()
def update_metrics(updates: Sequence[Update], state: State, cfg: Config, ranks: Ranks) -> Tensor:
    """What a rollout's updates have found, all ranks together: [updates, len(NAMES)]."""
    clip_range = cfg.objective.clip_range if isinstance(cfg.objective, ClippedSurrogate) else 0.2
    pieces = (piece for found in updates for piece in found.pieces)
    joined = (torch.as_tensor(namespace(some[0]).concatenate(some)) for some in zip(*pieces, strict=True))
    params, before, logp, logp_old, error = (x.reshape(len(updates), -1, *x.shape[1:]) for x in joined)
    new, old = (state.policy.distribution(x, known=True) for x in (params, before))
    ratio = (logp - logp_old).exp()
    found = new.kl(old), clipped(ratio, clip_range), new.entropy(), error, (ratio - 1).abs(), ratio, ratio.square()
    *means, ratio, square = ranks.all_reduce_mean(torch.stack(found).mean(2))  # of whole minibatches
    norm = ratio.new_tensor([each.grad_norm for each in updates])
    return torch.stack((*means, ratio.square() / square, norm), 1)  # the last but one: Kish's effective sample size
