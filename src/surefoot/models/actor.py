"""Acting: a policy chooses actions step by step, and what a rollout stores of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
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
    memory: Tensor | None = None
    """[T + 1, N, M] what was remembered before each step, and is after the last; None without a memory"""


class Actor:
    """Acts with a policy for T steps in N environments; `noise` [T, N, ...]: uniform in [0, 1).

    `memory` [N, M]: what is remembered of the episodes that go on.
    """

    def __init__(self, policy: Policy, noise: Tensor, memory: Tensor | None = None) -> None:
        self.policy, self.device = policy, policy.actor.weight.device
        self.noise: Any = noise.to(self.device).unbind()
        self.preprocessed: Any = None
        """[T, N, ...], as far as was acted"""
        self.steps: list[Any] = [None] * len(noise)
        self.memory: list[Any] = [memory, *self.steps]
        """before each step"""
        self.after: list[Any] = list(self.steps)
        """after each step, where no episode has been forgotten"""

    def act(self, t: int, obs: Array) -> Any:
        """The actions of step t: a list of numbers, or rows of them. Called again for the same t, it replaces them."""
        x = self.policy.preprocess(torch.from_numpy(obs).to(self.device))
        dist, value, after = self.policy.step(x, self.memory[t])
        self.after[t] = self.memory[t + 1] = after
        action = dist.sample(self.noise[t])
        self.keep(t, x)
        self.steps[t] = action, dist.params, value
        return action.tolist() if action.ndim == 1 else action.numpy(force=True)

    def keep(self, t: int, x: Tensor) -> None:
        """Store step t's preprocessed observations [N, ...] in one tensor: images stacked later are there twice."""
        if self.preprocessed is None:
            like = torch.empty_like(x)  # in its memory format: a channels-last rollout halves a convolution's learning
            self.preprocessed = like.new_empty_strided((len(self.steps), *x.shape), (x.numel(), *like.stride()))
        self.preprocessed[t] = x

    def forget(self, t: int, envs: Sequence[int]) -> None:
        """Episodes of these environments begin at step t."""
        if (memory := self.memory[t]) is not None and envs:
            self.memory[t] = memory.index_fill(0, torch.tensor(envs, device=memory.device), 0.0)

    def decisions(self, obs: Array, bootstrap: Array, at: Sequence[tuple[int, int]] = ()) -> Decisions:
        """Everything decided for `obs` [T, N, ...], and the values of the observations `bootstrap` [K, ...].

        `at`: (t, n) of each of these, which follows step t in environment n: a memory needs it.
        """
        columns = zip(*self.steps[: len(obs)], strict=True)
        action, params, value = (torch.stack([*map(torch.as_tensor, column)]) for column in columns)
        further = self.policy.preprocess(torch.from_numpy(bootstrap).to(self.device))
        memory = after = None
        if self.policy.memory is not None:
            memory, after = torch.stack(self.memory[: len(obs) + 1]), torch.stack([self.after[t][n] for t, n in at])
        value_further = self.policy.step(further, after)[1]
        return Decisions(self.preprocessed[: len(obs)], action, params, value, further, value_further, memory)
