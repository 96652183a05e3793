"""Distributions over actions, built from a network's output: sample, log probability, entropy, KL divergence.

`params` is what a rollout stores of the policy that acted. A distribution made from stored parameters (`stored=True`)
does not normalise them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from surefoot.envs.actions import action_converter, choices, numbers

LOG_SQRT_2PI = math.log(2 * math.pi) / 2
MASKED_LOGIT = -1e9  # the logit of an action that a mask forbids: its probability is exactly 0


class Bernoulli:
    """Two actions from one number, P(a = 1) = sigmoid(logit). `logit` [...], actions int64 [...]."""

    def __init__(self, logit: Tensor, stored: bool = False) -> None:
        self.params = logit

    def probabilities(self) -> Tensor:
        """[..., 2]: probability of action 0, of action 1."""
        return torch.stack((self.params.neg().sigmoid(), self.params.sigmoid()), -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [...] from uniform noise in [0, 1) of the same shape: 1 where noise < P(1)."""
        return (noise < self.params.sigmoid()).long()

    def greedy(self) -> Tensor:
        """The most probable action."""
        return (self.params > 0).long()

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample."""
        return F.logsigmoid(torch.where(action == 1, self.params, -self.params))

    def cross_entropy(self, other: Any) -> Tensor:
        """-sum_a pi(a) log pi_other(a) per sample, in nats."""
        p = self.params.sigmoid()
        return -(p * F.logsigmoid(other.params) + (1 - p) * F.logsigmoid(-other.params))

    def entropy(self) -> Tensor:
        """H(pi) = -sum_a pi(a) log pi(a) per sample, in nats."""
        return self.cross_entropy(self)

    def kl_from(self, old: Any) -> Tensor:
        """KL(old || self) per sample, exact, in nats."""
        kl: Tensor = old.cross_entropy(self) - old.entropy()
        return kl


class Categorical:
    """One of A actions by softmax. `logits` [..., A], actions int64 [...]."""

    def __init__(self, logits: Tensor, stored: bool = False) -> None:
        self.logits = logits
        if stored:
            self.params = logits

    @cached_property
    def params(self) -> Tensor:
        """Log probabilities, [..., A]."""
        return self.logits.log_softmax(-1)

    def probabilities(self) -> Tensor:
        """[..., A]: probability of each action."""
        return self.params.exp()

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [...] from uniform noise in [0, 1) of the same shape, by inverting the cumulative sum."""
        sums = (self.logits - self.logits.amax(-1, keepdim=True)).exp().cumsum(-1)
        # times the last sum: rounding may leave it below 1, and the noise must not reach past it
        return (sums[..., :-1] <= noise[..., None] * sums[..., -1:]).sum(-1)

    def greedy(self) -> Tensor:
        """The most probable action."""
        return self.params.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample."""
        return self.params.gather(-1, action[..., None])[..., 0]

    def cross_entropy(self, other: Any) -> Tensor:
        """-sum_a pi(a) log pi_other(a) per sample, in nats."""
        cross_entropy: Tensor = -(self.probabilities() * other.params).sum(-1)
        return cross_entropy

    def entropy(self) -> Tensor:
        """H(pi) = -sum_a pi(a) log pi(a) per sample, in nats."""
        return self.cross_entropy(self)

    def kl_from(self, old: Any) -> Tensor:
        """KL(old || self) = sum_a old(a) (log old(a) - log pi(a)) per sample, exact, in nats."""
        kl: Tensor = (old.probabilities() * (old.params - self.params)).sum(-1)
        return kl


class MultiCategorical(Categorical):
    """Several Categoricals at once, independent of each other. `logits` [..., sum of sizes], actions int64 [..., D]."""

    def __init__(self, logits: Tensor, sizes: tuple[int, ...], stored: bool = False) -> None:
        super().__init__(logits, stored)
        self.choices = [Categorical(part, stored) for part in logits.split_with_sizes(sizes, -1)]

    @cached_property
    def params(self) -> Tensor:
        """Log probabilities of every choice, side by side."""
        return torch.cat([choice.params for choice in self.choices], -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [..., D] from uniform noise in [0, 1), [..., D]."""
        return torch.stack([choice.sample(noise[..., d]) for d, choice in enumerate(self.choices)], -1)

    def greedy(self) -> Tensor:
        """The most probable action."""
        return torch.stack([choice.greedy() for choice in self.choices], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample, the sum over the choices."""
        return torch.stack([choice.log_prob(action[..., d]) for d, choice in enumerate(self.choices)]).sum(0)


def standard_normal(noise: Tensor) -> Tensor:
    """Standard normal numbers, float64, from uniform noise in [0, 1), a multiple of 2^-24; same shape.

    The quantile of the middle of the noise's cell, which is never 0 or 1: the result lies between -5.5 and 5.5.
    """
    z: Tensor = torch.special.ndtri(noise.double() + 2.0**-25)
    return z


def colored(noise: Tensor, exponent: float) -> Tensor:
    """Uniform noise [T, ...] with a power spectrum of 1 / f^exponent over T; each number alone is as uniform as before.

    Whatever is drawn from it keeps its distribution, but what is drawn at one step is like what was drawn before.
    Sources: Timmer & Koenig 1995; Hollenstein et al. 2024 (colored noise in PPO).
    """
    if not exponent:
        return noise
    k = torch.arange(len(noise))
    amplitude = torch.minimum(k, len(k) - k).clamp(1).double() ** (-exponent / 2)  # f = 0 as much as the lowest above
    amplitude = (amplitude / amplitude.square().mean().sqrt()).view(-1, *[1] * (noise.ndim - 1))
    x = torch.fft.ifft(torch.fft.fft(standard_normal(noise), dim=0) * amplitude, dim=0).real
    uniform: Tensor = torch.special.ndtr(x).clamp(max=1 - 2.0**-24).to(noise.dtype)
    return uniform


class DiagonalGaussian:
    """A independent normal numbers. `params` [..., 2A]: means, then log standard deviations; actions float [..., A]."""

    def __init__(self, params: Tensor, stored: bool = False) -> None:
        self.params = params
        self.mean, self.log_std = params.chunk(2, -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [..., A] from uniform noise in [0, 1) of the same shape."""
        return self.mean + self.log_std.exp() * standard_normal(noise).to(self.mean.dtype)

    def greedy(self) -> Tensor:
        """The most probable action."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample: of the action as sampled, before an environment clips it to its bounds."""
        z = (action - self.mean) * (-self.log_std).exp()
        log_prob: Tensor = -(self.log_std + 0.5 * z * z).sum(-1) - LOG_SQRT_2PI * z.shape[-1]
        return log_prob

    def cross_entropy(self, other: Any) -> Tensor:
        """-E_pi log pi_other per sample, in nats."""
        cross_entropy: Tensor = self.entropy() + other.kl_from(self)
        return cross_entropy

    def entropy(self) -> Tensor:
        """H(pi) per sample, in nats."""
        entropy: Tensor = (self.log_std + (LOG_SQRT_2PI + 0.5)).sum(-1)
        return entropy

    def kl_from(self, old: Any) -> Tensor:
        """KL(old || self) per sample, exact, in nats."""
        shift = (old.mean - self.mean) * (-self.log_std).exp()
        log_ratio = old.log_std - self.log_std
        kl: Tensor = ((shift * shift + torch.expm1(2 * log_ratio)) / 2 - log_ratio).sum(-1)
        return kl


class Mixed:
    """Choices and numbers at once, all independent.

    `params` [..., sum of sizes + 2A]: of a MultiCategorical, then of a DiagonalGaussian; actions float [..., D + A].
    """

    def __init__(self, params: Tensor, sizes: tuple[int, ...], stored: bool = False) -> None:
        self.size, split = len(sizes), sum(sizes)
        self.choices = MultiCategorical(params[..., :split], sizes, stored)
        self.numbers = DiagonalGaussian(params[..., split:])
        self.parts = self.choices, self.numbers

    @cached_property
    def params(self) -> Tensor:
        """Log probabilities of every choice, means, log standard deviations."""
        return torch.cat([part.params for part in self.parts], -1)

    def _join(self, choices: Tensor, numbers: Tensor) -> Tensor:
        return torch.cat((choices.to(numbers.dtype), numbers), -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [..., D + A] from uniform noise in [0, 1) of the same shape."""
        return self._join(self.choices.sample(noise[..., : self.size]), self.numbers.sample(noise[..., self.size :]))

    def greedy(self) -> Tensor:
        """The most probable action."""
        return self._join(self.choices.greedy(), self.numbers.greedy())

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample, the sum over choices and numbers."""
        logp = self.choices.log_prob(action[..., : self.size].long())
        return logp + self.numbers.log_prob(action[..., self.size :])

    def cross_entropy(self, other: Any) -> Tensor:
        """-E_pi log pi_other per sample, in nats."""
        return self.choices.cross_entropy(other.choices) + self.numbers.cross_entropy(other.numbers)

    def entropy(self) -> Tensor:
        """H(pi) per sample, in nats."""
        return self.choices.entropy() + self.numbers.entropy()

    def kl_from(self, old: Any) -> Tensor:
        """KL(old || self) per sample, exact, in nats."""
        return self.choices.kl_from(old.choices) + self.numbers.kl_from(old.numbers)


Distribution = Bernoulli | Categorical | DiagonalGaussian | Mixed


class Head(NamedTuple):
    """What a policy's last layer puts out for an action space."""

    outputs: int
    """numbers of the last layer"""
    noise_shape: tuple[int, ...]
    """shape of the uniform noise that one action takes; () for one number"""
    distribution: Callable[..., Any]
    """from parameters, as a rollout stores them"""
    numbers: int = 0
    """continuous numbers of an action, the last of the outputs; each has a standard deviation of its own"""


def head(space: spaces.Space[Any]) -> Head:
    """The head for an action space; raises UserError for a space that a policy cannot act in."""
    action_converter(space)
    if isinstance(space, spaces.Discrete):
        return Head(int(space.n), (), Categorical)
    sizes, size = choices(space), numbers(space)
    if not sizes:
        return Head(size, (size,), DiagonalGaussian, size)
    distribution = partial(Mixed if size else MultiCategorical, sizes=sizes)
    return Head(sum(sizes) + size, (len(sizes) + size,), distribution, size)
