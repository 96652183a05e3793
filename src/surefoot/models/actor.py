"""Acting: a policy chooses actions step by step, and what a rollout stores of it is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot.models.policy import Policy

Array = NDArray[Any]


class Decisions(NamedTuple):
    """What a policy did in T steps of N environments, on the policy's device."""

    preprocessed: Tensor
    """[T, N, ...] observations, preprocessed"""
    action: Tensor
    """[T, N, ...]"""
    params: Tensor
    """[T, N, ...] of the distributions"""
    value: Tensor
    """[T, N]"""
    bootstrap_obs: Tensor
    """[K, ...] further observations, preprocessed"""
    bootstrap_value: Tensor
    """[K] their values"""


class Actor:
    """Acts with a policy for T steps in N environments; `noise` [T, N, ...]: uniform in [0, 1)."""

    def __init__(self, policy: Policy, noise: Tensor) -> None:
        self.policy, self.device = policy, policy.actor.weight.device
        self.noise: Any = noise.to(self.device).unbind()
        self.steps: list[Any] = [None] * len(noise)

    def act(self, t: int, obs: Array) -> Any:
        """The actions of step t: a list of numbers, or rows of them. Called again for the same t, it replaces them."""
        x = self.policy.preprocess(torch.from_numpy(obs).to(self.device))
        dist, value = self.policy.evaluate(x)
        action = dist.sample(self.noise[t])
        self.steps[t] = x, action, dist.params, value
        return action.tolist() if action.ndim == 1 else action.numpy(force=True)

    def decisions(self, obs: Array, bootstrap: Array) -> Decisions:
        """Everything decided for `obs` [T, N, ...], and the values of the observations `bootstrap` [K, ...]."""
        columns = zip(*self.steps[: len(obs)], strict=True)
        preprocessed, action, params, value = (torch.stack([*map(torch.as_tensor, column)]) for column in columns)
        further = self.policy.preprocess(torch.from_numpy(bootstrap).to(self.device))
        return Decisions(preprocessed, action, params, value, further, self.policy.evaluate(further)[1])
