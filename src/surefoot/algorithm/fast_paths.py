"""Chooses the faster implementations in `fast/` of acting, evaluating and the gradient, where they apply.

Only this module imports them. Without that folder the plain ones are taken, and the trainer still learns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from surefoot.algorithm.objectives import (
    SPO,
    ClippedSurrogate,
    DualClip,
    Entropy,
    OldPolicyCrossEntropy,
    Reinforce,
    Surrogate,
)
from surefoot.models.actor import Actor
from surefoot.models.layers import Patches

try:
    from surefoot.fast import mlp, packed, windows
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("surefoot.fast"):
        raise
    FAST, GRADIENTS = False, dict[type, Any]()
else:
    FAST = True
    GRADIENTS = {
        Reinforce: mlp.grad_reinforce,
        Surrogate: mlp.grad_surrogate,
        ClippedSurrogate: mlp.grad_clipped,
        DualClip: mlp.grad_dual_clip,
        SPO: mlp.grad_spo,
    }

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.config import Config
    from surefoot.fast.mlp import FastMLP
    from surefoot.models.policy import DistinctWindows, Policy


def mlp_twin(policy: Policy) -> FastMLP | None:
    """An MLP on a processor in NumPy; None for other policies."""
    return mlp.FastMLP.of(policy) if FAST else None


def mlp_backward(twin: FastMLP | None, cfg: Config) -> Callable[..., Any] | None:
    """The twin's `backward` for this Config; None where there is no twin, or its objective's gradient is not known."""
    grad_objective = GRADIENTS.get(type(cfg.objective))
    if twin is None or grad_objective is None or type(cfg.entropy) not in (Entropy, OldPolicyCrossEntropy):
        return None
    return partial(twin.backward, grad_objective, type(cfg.entropy) is Entropy, cfg)


def inference_policy(policy: Policy) -> Policy:
    """The policy to act with: for images a copy whose weights are packed for few environments."""
    return packed.packed_policy(policy) if FAST else policy


def make_actor(policy: Policy, noise: Tensor, memory: Tensor | None = None) -> Actor:
    """What acts in a rollout with this noise; `memory` [N, M]: at its beginning."""
    if twin := mlp_twin(policy):
        return mlp.MLPActor(twin, noise)
    here = policy.actor.weight.is_cpu and policy.memory is None and not policy.is_mixed
    one_body = policy.critic is not None and policy.shares
    if FAST and here and one_body and isinstance(policy.preprocess, Patches):
        return packed.PackedActor(policy, noise)
    return Actor(inference_policy(policy), noise, memory)


def distinct_windows(policy: Policy, *images: Tensor) -> DistinctWindows | None:
    """Preprocessed images as their distinct windows, each convolved once; None where that gains nothing."""
    return windows.windows_of(policy, *images) if FAST else None
