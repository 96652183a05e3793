"""Policy distributions over actions: sample from given noise, log probability, entropy, divergence.

Built straight from a network's output; `params` is what a rollout stores of the old policy, and a distribution made
from it again is the old policy's. `score` and `cross_entropy_slope` are gradients by that output, written out: autograd
would take longer for them than for an MLP. Tests hold them to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from surefoot.envs.spaces import choices, translator


class Bernoulli:
    """Two actions from one number: P(a = 1) = sigmoid(logit). `logit` [...], actions int64 [...]."""

    def __init__(self, logit: Tensor) -> None:
        self.params = logit

    def probabilities(self) -> Tensor:
        """[..., 2]: probability of action 0, of action 1."""
        return torch.stack((self.params.neg().sigmoid(), self.params.sigmoid()), -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from uniform numbers in [0, 1) of the batch's shape: 1 where noise < P(1)."""
        return (noise < self.params.sigmoid()).long()

    def greedy(self) -> Tensor:
        """The likeliest action."""
        return (self.params > 0).long()

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample."""
        return F.logsigmoid(torch.where(action == 1, self.params, -self.params))

    def score(self, action: Tensor, factor: Tensor) -> Tensor:
        """`factor` grad log pi(a|s) = factor (a - P(1)), [...]."""
        return factor * (action - self.params.sigmoid())

    def cross_entropy(self, old: Any) -> Tensor:
        """H(pi', pi) = -sum_a pi'(a) log pi(a) per sample, in nats."""
        p = self.params.sigmoid()
        return -(p * F.logsigmoid(old.params) + (1 - p) * F.logsigmoid(-old.params))

    def cross_entropy_slope(self, old: Any) -> Tensor:
        """Its gradient, [...]; of the entropy where `old` is this one."""
        p = self.params.sigmoid()
        slope: Tensor = -p * (1 - p) * old.params
        return slope

    def entropy(self) -> Tensor:
        """H(pi') per sample, in nats."""
        return self.cross_entropy(self)

    def kl(self, old: Any) -> Tensor:
        """Exact KL(old || new) per sample, in nats."""
        kl: Tensor = old.cross_entropy(self) - old.entropy()
        return kl


class Categorical:
    """One of A actions by softmax. `logits` [..., A], actions int64 [...]."""

    def __init__(self, logits: Tensor) -> None:
        self.params = logits.log_softmax(-1)  # normalising twice changes nothing

    def probabilities(self) -> Tensor:
        """[..., A]: probability of each action."""
        return self.params.exp()

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from uniform numbers in [0, 1) of the batch's shape, by the inverse of the cumulative sum."""
        total = self.params.exp().cumsum(-1)
        # times the last sum: rounding may leave it below 1, and the noise must not reach past it
        return (total[..., :-1] <= noise[..., None] * total[..., -1:]).sum(-1)

    def greedy(self) -> Tensor:
        """The likeliest action."""
        return self.params.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample."""
        return self.params.gather(-1, action[..., None])[..., 0]

    def score(self, action: Tensor, factor: Tensor) -> Tensor:
        """`factor` grad log pi(a|s) = factor ([a = k] - P(k)), [..., A]."""
        factor = factor[..., None]
        return (self.params.exp() * -factor).scatter_add_(-1, action[..., None], factor)

    def cross_entropy(self, old: Any) -> Tensor:
        """H(pi', pi) = -sum_a pi'(a) log pi(a) per sample, in nats."""
        expected: Tensor = (self.params.exp() * old.params).sum(-1)
        return -expected

    def cross_entropy_slope(self, old: Any) -> Tensor:
        """Its gradient, [..., A]; of the entropy where `old` is this one."""
        p = self.params.exp()
        slope: Tensor = p * ((p * old.params).sum(-1, keepdim=True) - old.params)
        return slope

    def entropy(self) -> Tensor:
        """H(pi') per sample, in nats."""
        return self.cross_entropy(self)

    def kl(self, old: Any) -> Tensor:
        """Exact KL(old || new) per sample, in nats."""
        kl: Tensor = (old.params.exp() * (old.params - self.params)).sum(-1)
        return kl


class DiagonalGaussian:
    """A independent normal numbers. `params` [..., 2A]: means, then logs of deviations; actions float [..., A]."""

    def __init__(self, params: Tensor) -> None:
        self.params = params
        self.mean, self.log_std = params.chunk(2, -1)

    @cached_property
    def precision(self) -> Tensor:
        """1 / sigma, [..., A]."""
        return (-self.log_std).exp()

    def sample(self, noise: Tensor) -> Tensor:
        """mean + sigma z, z the normal distribution's inverse at uniform noise in [0, 1), [..., A].

        The noise is a multiple of 2^-24; the middle of its cell, in double precision, is never 0 or 1 and lies as far
        above 1/2 as below, so that |z| < 5.5.
        """
        z: Tensor = torch.special.ndtri(noise.double() + 2.0**-25)
        return self.mean + self.log_std.exp() * z.to(self.mean.dtype)

    def greedy(self) -> Tensor:
        """The likeliest action."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample: of the action as it was sampled, whatever an environment clips off it."""
        z = (action - self.mean) * self.precision
        constant = LOG_ROOT * self.mean.shape[-1]
        return -constant - torch.addcmul(self.log_std, z, z, value=0.5).sum(-1)

    def score(self, action: Tensor, factor: Tensor) -> Tensor:
        """`factor` grad log pi(a|s) = factor (z / sigma, z^2 - 1) with z = (a - mean) / sigma, [..., 2A]."""
        z = (action - self.mean) * self.precision
        return torch.cat((z * self.precision, z * z - 1), -1) * factor[..., None]

    def cross_entropy(self, old: Any) -> Tensor:
        """H(pi', pi) = -E_pi' log pi per sample, in nats."""
        divergence: Tensor = old.kl(self)
        return self.entropy() + divergence

    def cross_entropy_slope(self, old: Any) -> Tensor:
        """Its gradient, [..., 2A]; of the entropy where `old` is this one."""
        precision = old.precision.square()
        return torch.cat(((self.mean - old.mean) * precision, (2 * self.log_std).exp() * precision), -1)

    def entropy(self) -> Tensor:
        """H(pi') per sample, in nats."""
        return (self.log_std + (LOG_ROOT + 0.5)).sum(-1)

    def kl(self, old: Any) -> Tensor:
        """Exact KL(old || new) per sample, in nats."""
        shift = (old.mean - self.mean) * self.precision
        log_ratio = old.log_std - self.log_std
        kl: Tensor = ((shift * shift + (2 * log_ratio).expm1()) / 2 - log_ratio).sum(-1)
        return kl


class Independent(Categorical):
    """Several choices at once, each a Categorical of its own. `logits` [..., sum of sizes], actions int64 [..., D]."""

    def __init__(self, logits: Tensor, sizes: tuple[int, ...]) -> None:
        self.choices = [Categorical(part) for part in torch.split(logits, list(sizes), -1)]
        self.params = torch.cat([choice.params for choice in self.choices], -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from uniform numbers in [0, 1), [..., D]."""
        return torch.stack([choice.sample(noise[..., d]) for d, choice in enumerate(self.choices)], -1)

    def greedy(self) -> Tensor:
        """The likeliest action."""
        return torch.stack([choice.greedy() for choice in self.choices], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample."""
        return torch.stack([choice.log_prob(action[..., d]) for d, choice in enumerate(self.choices)]).sum(0)

    def score(self, action: Tensor, factor: Tensor) -> Tensor:
        """`factor` grad log pi(a|s) of every choice, side by side."""
        return torch.cat([choice.score(action[..., d], factor) for d, choice in enumerate(self.choices)], -1)

    def cross_entropy_slope(self, old: Any) -> Tensor:
        """Its gradient, of every choice, side by side."""
        both = zip(self.choices, old.choices, strict=True)
        return torch.cat([new.cross_entropy_slope(before) for new, before in both], -1)


Distribution = Bernoulli | Categorical | DiagonalGaussian
LOG_ROOT = math.log(2 * math.pi) / 2
FORBIDDEN = -1e9  # the logit of an action that a mask does not allow: its probability is exactly 0


class Head(NamedTuple):
    """What a policy puts out for an action space."""

    outputs: int
    """numbers of the last layer"""
    draws: tuple[int, ...]
    """shape of the noise that decides one action; () for one number"""
    distribution: Callable[[Tensor], Any]
    """from parameters, as a rollout stores them"""


def head(space: spaces.Space[Any]) -> Head:
    """The head for an action space; raises UserError where it cannot be acted in."""
    translator(space)
    if isinstance(space, spaces.Discrete):
        return Head(int(space.n), (), Categorical)
    if isinstance(space, spaces.Box):
        size = int(np.prod(space.shape))
        return Head(size, (size,), DiagonalGaussian)
    sizes = choices(space)
    return Head(sum(sizes), (len(sizes),), partial(Independent, sizes=sizes))
