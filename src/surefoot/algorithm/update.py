"""Learning from a rollout: minibatches, the PPO loss, its gradient, one optimizer step, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surefoot.algorithm.advantages import OverMinibatch, compute_advantages
from surefoot.algorithm.fast_paths import mlp_backward
from surefoot.algorithm.objectives import TrustRegion, clipped_squared_error, is_clipped, squared_error
from surefoot.algorithm.schedules import AdaptiveRate
from surefoot.errors import Fault
from surefoot.models.recurrent import Sequences
from surefoot.rng import Purpose, stream

if TYPE_CHECKING:
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.models.distributions import Distribution
    from surefoot.parallel.ranks import Ranks


@dataclass
class Batch:
    """Transitions in any order, one row each, [B, ...]: tensors, or NumPy arrays on the fast path of MLPs."""

    obs: Any  # preprocessed observations, or images as their distinct windows
    action: Any
    logp_old: Any  # log pi_old(a|s)
    params_old: Any  # parameters of the old policy's distribution
    advantage: Any
    returns: Any  # the critic's targets
    value_old: Any  # V_old(s)
    weight: float = field(default=1.0, kw_only=True)  # of its mean in that of all ranks: not 1 where sizes differ
    sequences: Sequences | None = field(default=None, kw_only=True)  # which rows a memory takes one after another

    def each(self, change: Callable[[Any], Any]) -> Batch:
        """The batch with every array changed in the same way."""
        *rows, weight, sequences = vars(self).values()
        return Batch(*map(change, rows), weight=weight, sequences=sequences)

    def microbatches(self, most: int) -> Iterator[tuple[Batch, float]]:
        """The batch in nearly equal parts of at most `most` rows, each with its share of the batch.

        Sequences stay whole.
        """
        count = len(self.obs)
        if count <= most:
            yield self, self.weight
            return
        size = math.ceil(count / math.ceil(count / most))
        parts = (
            self.sequences.split(most)
            if self.sequences
            else ((slice(i, i + size), None) for i in range(0, count, size))
        )
        for rows, sequences in parts:
            part = replace(self.each(itemgetter(rows)), sequences=sequences)
            yield part, self.weight * len(part.obs) / count


def batches(
    rollout: Rollout, advantage: Tensor, returns: Tensor, cfg: Config, state: State, ranks: Ranks
) -> Iterator[Batch]:
    """All minibatches of a rollout, epoch after epoch; advantages are recomputed before each if `cfg` says so."""
    if cfg.fit_value_bias and state.policy.critic is not None:
        rollout = replace(rollout, value=rollout.value + fit_value_bias(state.policy.critic, rollout, returns, ranks))
    columns, as_numpy = ranks.columns(cfg.num_envs), mlp_backward(state.mlp, cfg) is not None
    valid = rollout.valid_of_all_envs(ranks)
    for epoch in range(cfg.num_epochs):
        if epoch and cfg.recompute:  # the critic has learned since
            latest = rollout.with_values_of(state.policy)
            advantage, returns, _ = compute_advantages(latest, cfg, state, ranks)
        yield from minibatches(rollout, advantage, returns, cfg, state.iteration, epoch, columns, as_numpy, valid)


@torch.no_grad()
def fit_value_bias(critic: nn.Linear, rollout: Rollout, returns: Tensor, ranks: Ranks) -> float:
    """b += mean(R - V) over all ranks' transitions, `returns` R [T, N]: the bias with the least squared error.

    Small steps find the returns' level late, and by weights whose values then differ between states without a reason.
    Returns what it has added.
    """
    error, valid = ranks.gather_columns(returns - rollout.value), rollout.valid_of_all_envs(ranks)
    shift = float((error if valid is None else error[valid]).mean())
    if not math.isfinite(shift):  # the update will be skipped
        return 0.0
    fitted = critic.bias + shift
    ranks.barrier()  # all have read it, which may be shared memory
    critic.bias.copy_(fitted)
    ranks.barrier()
    return shift


def minibatches(
    rollout: Rollout,
    advantage: Tensor,
    returns: Tensor,
    cfg: Config,
    iteration: int,
    epoch: int,
    columns: slice,
    as_numpy: bool = False,
    valid: Tensor | None = None,
) -> Iterator[Batch]:
    """One epoch: the rollout [T, N] in shuffled minibatches [B]; of NumPy arrays for MLPs (fast/mlp.py).

    The steps of each environment are permuted (with a memory: its sequences), and each gives every minibatch the same
    number of them, so a rank needs only its own environments (`columns`) to give its share of a minibatch that all
    ranks learn from. Rows that are not `valid` [T, all environments] are left out.
    """
    num_steps, n = rollout.action.shape[:2]
    rows = (rollout.preprocessed, rollout.action, rollout.logp, rollout.params, advantage, returns, rollout.value)
    flat: list[Any] = [x.numpy().reshape(num_steps * n, *x.shape[2:]) if as_numpy else x.flatten(0, 1) for x in rows]
    parts, windows = cfg.minibatches(num_steps), rollout.windows
    if parts == 1 and valid is None and rollout.memory is None:  # one full batch, not shuffled (the lesson's presets)
        yield Batch(windows[: num_steps * n] if windows else flat[0], *flat[1:])
        return
    length = cfg.sequence(num_steps)
    draws = stream(cfg.seed, Purpose.MINIBATCHES, iteration, epoch).random((num_steps // length, cfg.num_envs))
    steps = (draws.argsort(0)[:, None] * length + np.arange(length)[:, None]).reshape(num_steps, cfg.num_envs)
    order: Any = by_sequence(steps[:, columns] * n + np.arange(n), length)
    ends, weights = [len(order) // parts * (k + 1) for k in range(parts)], [1.0] * parts
    if valid is not None:
        order, ends, weights = only_valid(steps, columns, valid.numpy(force=True), parts, length)
    spans = list(zip([0, *ends], ends, weights, strict=False))
    if as_numpy:  # small: all minibatches are shuffled at once
        shuffled = [x.take(order, 0) for x in flat]
        yield from (Batch(*(x[i:j] for x in shuffled), weight=weight) for i, j, weight in spans)
        return
    order = torch.from_numpy(order).to(advantage.device)
    shuffled = [x.index_select(0, order) for x in flat[1:]]
    for i, j, weight in spans:
        some, sequences = order[i:j], None
        obs = windows[some.numpy()] if windows else flat[0].index_select(0, some)
        if rollout.memory is not None:
            begins = rollout.begins(length).ravel()[some.numpy(force=True)]
            sequences = Sequences.of(begins, rollout.memory.flatten(0, 1)[some[torch.from_numpy(begins)]])
        yield Batch(obs, *(x[i:j] for x in shuffled), weight=weight, sequences=sequences)


def by_sequence(x: Any, length: int) -> Any:
    """What stands at T steps of N environments, [T, N], as one row: `length` steps of an environment are together."""
    return x.reshape(-1, length, x.shape[1]).swapaxes(1, 2).ravel()


def only_valid(steps: Any, columns: slice, valid: Any, parts: int, length: int) -> tuple[Any, list[int], list[float]]:
    """The order of this rank's valid rows, where each minibatch ends in it, and the weight of each.

    `steps` [T, all environments], `valid` alike, in their order. A minibatch without a valid row here: row 0, weight 0.
    """
    n, share = columns.stop - columns.start, (columns.stop - columns.start) / steps.shape[1]
    here = np.take_along_axis(valid, steps, 0)
    mask = by_sequence(here[:, columns], length)
    counts, totals = (x.reshape(parts, -1).sum(1) for x in (mask, here))
    order = np.insert(by_sequence(steps[:, columns] * n + np.arange(n), length)[mask], counts.cumsum()[counts == 0], 0)
    weights = counts / (share * np.maximum(1, totals))
    return order, counts.clip(1).cumsum().tolist(), weights.tolist()


class Samples(NamedTuple):
    """What an update has computed for each sample of a microbatch: tensors, or NumPy arrays."""

    dist: Any  # the new policy's distributions
    dist_old: Any  # the old policy's
    logp: Any
    value_loss: Any


def ppo_loss(
    cfg: Config, batch: Batch, dist: Distribution, dist_old: Distribution, value: Tensor
) -> tuple[Tensor, Samples]:
    """L = mean(-J) + c_v mean(L_V) - mean(bonus) + mean(penalty) over a batch [B]; scalar, and what it was made of.

    J = min(r A, clip(r, 1 - eps, 1 + eps) A) with r = pi(a|s) / pi_old(a|s) for `ClippedSurrogate`; L_V = (V - R)^2;
    bonus = c_e H(pi); penalty = beta KL(pi_old || pi): the parts of `objectives` that cfg names. There is no factor 1/2
    in L_V, so c_v is half of CleanRL's. Source: Schulman et al. 2017, equations 7, 8 and 9.
    """
    logp = dist.log_prob(batch.action)
    policy_loss = -cfg.objective(logp, batch.logp_old, batch.advantage)
    if cfg.value_clip < math.inf:
        value_loss = clipped_squared_error(value, batch.value_old, batch.returns, cfg.value_clip)
    else:
        value_loss = squared_error(value, batch.returns)
    loss = policy_loss + cfg.value_coef * value_loss - cfg.entropy(dist, dist_old) + cfg.kl_penalty(dist, dist_old)
    return loss.mean(), Samples(dist, dist_old, logp, value_loss)


def loss_backward(state: State, cfg: Config, batch: Batch, scale: float, add: bool) -> Samples:
    """Write (or add) the gradient of scale * ppo_loss into the parameters' gradients."""
    policy = state.policy
    if not add:
        state.gradient.zero_()
    with torch.enable_grad():
        dist, value = policy.evaluate(batch.obs, batch.sequences)
        loss, samples = ppo_loss(cfg, batch, dist, policy.distribution(batch.params_old, stored=True), value)
        (scale * loss).backward()  # type: ignore[no-untyped-call]
    new = policy.distribution(dist.params.detach(), stored=True)
    return samples._replace(dist=new, logp=samples.logp.detach(), value_loss=samples.value_loss.detach())


class UpdateInfo(NamedTuple):
    """One update; `update_metrics` computes the rest once a rollout, since many small sums take long."""

    kl: float  # mean KL(old || new) over the minibatch, all ranks, before the step; NaN where nothing depends on it
    grad_norm: float  # of all ranks' mean gradient, before clipping
    microbatches: list[tuple[Samples, Any]]  # of this rank: samples, and log pi_old(a|s)
    weight: float = 1.0  # of this rank's means in those of all ranks, as the batch's


def update(state: State, batch: Batch, cfg: Config, ranks: Ranks) -> UpdateInfo:
    """One optimizer step down the gradient of `ppo_loss`, with objective and bonus `annealed` to this iteration.

    Where the gradient is not finite nothing is changed: the update is skipped, `cfg.skip_updates` times a run; then
    Fault is raised.
    """
    # autograd through `ppo_loss`, or for MLPs the same gradient written out, fast/mlp.py; a test holds them equal
    backward = mlp_backward(state.mlp, cfg) or partial(loss_backward, state, cfg)
    gradient: Any = state.gradient.numpy() if state.mlp else state.gradient
    state.envs.heartbeat.rest()
    batch = normalized(batch, cfg, ranks)
    needs_kl = isinstance(cfg.learning_rate, AdaptiveRate) or cfg.target_kl < math.inf
    kl, done = 0.0 if needs_kl else math.nan, list[tuple[Samples, Any]]()
    for microbatch, share in batch.microbatches(state.policy.microbatch(batch.obs)):
        scale = share / ranks.count
        samples = Samples(*backward(microbatch, scale, bool(done)))
        if needs_kl:
            kl += scale / len(microbatch.obs) * float(samples.dist.kl_from(samples.dist_old).sum())
        done.append((samples, microbatch.logp_old))
    shard = state.optimizer.part  # what this rank steps: everything, or its share of the parameters (ZeRO)
    kl, grad_norm = ranks.reduce_gradient(gradient, kl, state.gradients, shard)
    info = UpdateInfo(kl, grad_norm, done, batch.weight)
    if not info.grad_norm < math.inf:
        skip(state, cfg)
        return info
    if info.grad_norm > cfg.max_grad_norm:  # gradient clipping
        gradient[shard] *= cfg.max_grad_norm / info.grad_norm
    state.learning_rate = cfg.learning_rate(state.learning_rate, info.kl, state.progress(cfg))
    state.optimizer.step(state.learning_rate)
    if ranks.count > 1 and len(state.gradients) > 1:
        ranks.barrier()  # all have stepped their parts
    return info


def skip(state: State, cfg: Config) -> None:
    """Count an update whose gradient is not finite; raises Fault where there were too many."""
    state.skipped += 1
    if state.skipped > cfg.skip_updates:
        where = f"iteration {state.iteration + 1}, after {state.steps:,} steps"
        raise Fault(f"the gradient is not finite in {where}: lower the learning rate, or allow --skip-updates")


def normalized(batch: Batch, cfg: Config, ranks: Ranks) -> Batch:
    """The batch with its advantages normalised, where the Config does that within minibatches."""
    if not isinstance(cfg.normalize, OverMinibatch):
        return batch
    weighted = partial(weighted_mean, ranks, batch.weight)
    return replace(batch, advantage=cfg.normalize.within(batch.advantage, weighted))


def weighted_mean(ranks: Ranks, weight: float, numbers: Any) -> Any:
    """The mean over the ranks of numbers that are means of their rows; `weight`: this rank's."""
    return ranks.all_reduce_mean(weight * numbers)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as 0: processors take many times as long for them, and inactive units have many."""
    torch.set_flush_denormal(True)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # update() checks the gradient's norm
            yield
    finally:
        torch.set_flush_denormal(False)


METRIC_NAMES = ("kl", "clip_fraction", "entropy", "value_loss", "ratio_drift", "effective_samples", "grad_norm")


@torch.no_grad()
def update_metrics(updates: Sequence[UpdateInfo], state: State, cfg: Config, ranks: Ranks) -> Tensor:
    """Means over each minibatch of a rollout's updates, all ranks together: [updates, len(METRIC_NAMES)].

    KL(old || new); fraction of ratios outside the clip range (0.2 for objectives without one); entropy; value loss;
    |r - 1|; effective sample size of the ratios (Kish), as a fraction; norm of the gradient. TRPO's KL is its step's.
    """
    clip_range = getattr(cfg.objective, "clip_range", 0.2)
    each = [(s.dist.params, s.dist_old.params, s.logp, old, s.value_loss) for u in updates for s, old in u.microbatches]
    rows = (torch.cat([torch.as_tensor(x) for x in column]) for column in zip(*each, strict=True))
    params, params_old, logp, logp_old, value_loss = rows
    sizes = [sum(len(s.logp) for s, _ in u.microbatches) for u in updates]
    new, old = (state.policy.distribution(x, stored=True) for x in (params, params_old))
    ratio = (logp - logp_old).exp()
    per_sample = (
        new.kl_from(old), is_clipped(ratio, clip_range), new.entropy(), value_loss,
        (ratio - 1).abs(), ratio, ratio.square(),
    )  # fmt: skip
    together = torch.stack(per_sample)
    if len(set(sizes)) == 1:
        mean = together.view(len(per_sample), len(updates), -1).mean(2)
    else:
        first = np.cumsum([0, *sizes[:-1]])
        mean = torch.as_tensor(np.add.reduceat(together.numpy(force=True), first, 1) / sizes).to(together)
    mean *= mean.new_tensor([u.weight for u in updates])
    *means, ratio_mean, square_mean = ranks.all_reduce_mean(mean)
    if isinstance(cfg.objective, TrustRegion):  # samples are from before the step
        means[0] = torch.full_like(means[0], updates[0].kl)
    grad_norm = ratio.new_tensor([u.grad_norm for u in updates])
    return torch.stack((*means, ratio_mean.square() / square_mean, grad_norm), 1)
