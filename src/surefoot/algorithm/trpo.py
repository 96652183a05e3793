"""TRPO: one natural-gradient step for each rollout, as long as the bound on the KL divergence allows.

Maximise mean(J) with J = r A (+ bonus - penalty) subject to mean KL(pi_old || pi) <= delta. Near pi_old the bound is
1/2 s^T H s <= delta, with H the Hessian of the mean KL, the Fisher matrix, and the best step is s = sqrt(2 delta /
x^T H x) x with H x = g, g the gradient of mean(J). Source: Schulman et al. 2015, section 6 and appendix C.

Collection, advantages and the critic's minibatches are PPO's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surefoot.algorithm import update as ppo
from surefoot.algorithm.objectives import Entropy, FixedPenalty, Surrogate, TrustRegion
from surefoot.algorithm.update import Batch, Samples, UpdateInfo, loss_backward, ppo_loss

if TYPE_CHECKING:
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.models.policy import Policy
    from surefoot.parallel.ranks import Ranks

PARTS = 8  # of a rollout, where the Fisher matrix is estimated from some of them
SHORTER = 0.8  # factor on a step that was too long


def update_rule(cfg: Config) -> tuple[Callable[..., Iterator[Batch]], Callable[..., UpdateInfo]]:
    """How a Config learns: what yields the batches of a rollout, and what learns from one of them."""
    return (batches, update) if isinstance(cfg.objective, TrustRegion) else (ppo.batches, ppo.update)


class WholeRollout(Batch):
    """All transitions of a rollout, from which the policy learns; further batches are the critic's."""


def batches(
    rollout: Rollout, advantage: Tensor, returns: Tensor, cfg: Config, state: State, ranks: Ranks
) -> Iterator[Batch]:
    """The whole rollout, then the critic's minibatches, epoch after epoch."""
    whole, columns = changed(cfg, minibatch_size=0), ranks.columns(cfg.num_envs)
    valid = rollout.valid_of_all_envs(ranks)
    (batch,) = ppo.minibatches(rollout, advantage, returns, whole, state.iteration, 0, columns, valid=valid)
    yield WholeRollout(**vars(batch))
    if cfg.value_coef:
        yield from ppo.batches(rollout, advantage, returns, critic_alone(cfg), state, ranks)


def update(state: State, batch: Batch, cfg: Config, ranks: Ranks) -> UpdateInfo:
    """The policy's step, or one of the critic's, which leaves the policy as it is."""
    policy = state.policy
    if isinstance(batch, WholeRollout):
        own = policy.critic_body if policy.memory is None else None  # a memory, and so the policy, sees that body
        with single_precision(policy), frozen([*own.parameters()] if own else []):
            return policy_step(state, batch, cfg, ranks)
    with frozen(shared_layers(policy)):
        return ppo.update(state, replace(batch, advantage=0 * batch.advantage), critic_alone(cfg), ranks)


def changed(cfg: Config, **fields: Any) -> Config:
    """The Config with other fields, which are not checked again."""
    other = copy(cfg)
    vars(other).update(fields)
    return other


def critic_alone(cfg: Config) -> Config:
    """The Config whose `ppo_loss` is the value loss alone where all advantages are 0."""
    return changed(cfg, objective=Surrogate(), entropy=Entropy(0.0), kl_penalty=FixedPenalty())


def shared_layers(policy: Policy) -> list[Tensor]:
    """What the policy depends on: nothing of an MLP, whose actor has gradient 0; with a memory the critic's body."""
    own = "critic" if policy.memory is None else "critic."
    others: list[Tensor] = [p for name, p in policy.named_parameters() if not name.startswith(own)]
    return [] if policy.hidden and policy.memory is None else others


@contextmanager
def frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Without a gradient of these parameters."""
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def single_precision(policy: Policy) -> Iterator[None]:
    """Without bfloat16, whose rounding is as large as what the line search looks for."""
    bf16, policy.bf16 = policy.bf16, False
    try:
        yield
    finally:
        policy.bf16 = bf16


def policy_step(state: State, batch: Batch, cfg: Config, ranks: Ranks) -> UpdateInfo:
    """Move the policy along its natural gradient; where no length of the step is better and within the bound, nowhere.

    A gradient that is not finite is skipped as `update` does.
    """
    assert isinstance(cfg.objective, TrustRegion)
    region, flat, gradient = cfg.objective, state.flat.data, state.gradient
    state.envs.heartbeat.rest()
    batch = ppo.normalized(batch, cfg, ranks)
    plain, done = changed(cfg, value_coef=0.0), list[tuple[Samples, Any]]()
    for part, share in batch.microbatches(state.policy.microbatch(batch.obs)):
        done.append((loss_backward(state, plain, part, share / ranks.count, bool(done)), part.logp_old))
    _, norm = ranks.reduce_gradient(gradient, 0.0)
    if not norm < math.inf:
        ppo.skip(state, cfg)
        return UpdateInfo(0.0, norm, done, batch.weight)
    uphill, before = -gradient, flat.clone()  # ppo_loss is minimised
    every = region.fisher_every
    gradients = [*kl_gradients(state, batch, every)] if state.policy.hidden else None  # of an MLP: an image's are large

    def product(vector: Tensor) -> Tensor:
        fisher = fisher_product(state, gradients or kl_gradients(state, batch, every), vector, ranks)
        return fisher + region.damping * vector

    x, curvature = conjugate_gradient(product, uphill, region.cg_steps)
    step = math.sqrt(2 * region.max_kl / curvature) * x if curvature > 0 else x
    gain_before, _ = gain_and_kl(state, batch, plain, ranks)
    for i in range(region.backtracks):
        flat.copy_(before + SHORTER**i * step)
        gain, kl = gain_and_kl(state, batch, plain, ranks)
        if gain > gain_before and kl <= region.max_kl:
            break
    else:
        flat.copy_(before)
        kl = 0.0
    return UpdateInfo(kl, norm, done, batch.weight)


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> tuple[Tensor, float]:
    """About x with H x = b for a positive definite H, of which `product` gives H v; and x^T H x. Vectors [P].

    x^T H x is x^T b, also before x is there, as x is orthogonal to the residual b - H x.
    Residuals are made orthogonal to all before, which they are but for rounding: without that an error along a large
    eigenvalue grows in every step (seen: from 1e-16 to 1e-6 in ten), and two ranks would go another way than one.
    Source: Hestenes & Stiefel 1952.
    """
    x, residual, direction, earlier = torch.zeros_like(b), b.clone(), b.clone(), list[Tensor]()
    square = first = float(b.dot(b))
    for _ in range(steps):
        if square <= 1e-20 * first:
            break
        along = product(direction)
        if (curvature := float(direction.dot(along))) <= 0:  # by rounding, without damping
            break
        alpha = square / curvature
        x += alpha * direction
        earlier.append(residual / math.sqrt(square))
        residual = residual - alpha * along
        for unit in earlier:
            residual -= unit.dot(residual) * unit
        before, square = square, float(residual.dot(residual))
        direction = residual + square / before * direction
    return x, float(x.dot(b))


def kl_gradients(state: State, batch: Batch, every: int) -> Iterator[tuple[Sequence[Tensor | None], float]]:
    """The gradient of mean KL(pi || .) at the present policy pi, which is 0, in a form that can be derived again.

    For each microbatch: by each parameter, and the microbatch's share. Of one part in `every`, about PARTS at equal
    distances in the batch.
    """
    policy, parameters = state.policy, [p for p in state.policy.parameters() if p.requires_grad]
    most, count = policy.microbatch(batch.obs), len(batch.obs)
    small = most if every == 1 else min(most, math.ceil(count / every / PARTS))
    parts = [part for part, _ in batch.microbatches(small)][::every]
    count = sum(len(part.obs) for part in parts)
    for part, share in ((part, batch.weight * len(part.obs) / count) for part in parts):
        with torch.enable_grad():
            dist = policy.evaluate(part.obs, part.sequences)[0]
            kl = dist.kl_from(policy.distribution(dist.params.detach(), stored=True)).mean()
            yield torch.autograd.grad(kl, parameters, create_graph=True, allow_unused=True), share


def fisher_product(
    state: State, gradients: Iterable[tuple[Sequence[Tensor | None], float]], vector: Tensor, ranks: Ranks
) -> Tensor:
    """H v for a vector [P], H the Hessian of mean KL at the present policy, of all ranks: what grad KL . v grows by.

    `gradients`: `kl_gradients`. Source: Pearlmutter 1994.
    """
    start = state.flat.storage_offset()
    learning = [p for p in state.policy.parameters() if p.requires_grad]
    parts = [vector.as_strided(p.shape, p.stride(), p.storage_offset() - start) for p in learning]
    state.gradient.zero_()
    for grads, share in gradients:
        with torch.enable_grad():
            along: Any = sum((g * v).sum() for g, v in zip(grads, parts, strict=True) if g is not None)
        (share / ranks.count * along).backward(retain_graph=True)
    ranks.reduce_gradient(state.gradient, 0.0)
    return state.gradient.clone()


@torch.no_grad()
def gain_and_kl(state: State, batch: Batch, cfg: Config, ranks: Ranks) -> tuple[float, float]:
    """What is maximised, and KL(pi_old || pi): means over the batch, of all ranks."""
    total = torch.zeros(2, dtype=torch.float64)
    for part, share in batch.microbatches(state.policy.microbatch(batch.obs)):
        dist, value = state.policy.evaluate(part.obs, part.sequences)
        loss, samples = ppo_loss(cfg, part, dist, state.policy.distribution(part.params_old, stored=True), value)
        total += share * torch.stack((-loss, samples.dist.kl_from(samples.dist_old).mean())).double().cpu()
    gain, kl = ranks.all_reduce_mean(total).tolist()
    return gain, kl
