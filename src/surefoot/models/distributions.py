"""Policy distributions over actions: sample from given noise, log probability, entropy, divergence.

Built straight from a network's output; `params` is what a rollout stores of the old policy, and a distribution made
from it again, as `known`, is the old policy's. `score` and `cross_entropy_slope` are gradients by that output, written
out: autograd would take longer for them than for an MLP. Tests hold them to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from surefoot.arrays import Array, namespace
from surefoot.envs.spaces import action_converter, choices


def lowered(x: Array) -> Array:
    """x - max x over the last dimension, so that no exponential overflows; same shape."""
    return x - (x.amax(-1, keepdim=True) if isinstance(x, Tensor) else np.maximum.reduce(x, -1, keepdims=True))


def log_softmax(x: Array) -> Array:
    """x - log sum exp x over the last dimension; same shape."""
    if isinstance(x, Tensor):
        return x.log_softmax(-1)
    x = x.T.copy()  # NumPy's sums over a short last dimension take three times as long as over the first
    x -= np.maximum.reduce(x)
    x -= np.log(np.add.reduce(np.exp(x)))
    return x.T


def total(x: Array) -> Array:
    """The sum over the last dimension, [..., K] to [...]; NumPy's own takes long where that is short."""
    return x.sum(-1) if isinstance(x, Tensor) else x @ np.ones(x.shape[-1], x.dtype)


def pick(x: Array, index: Array) -> Array:
    """x[..., index] of each row: [..., K] and whole numbers [...] to [...]; of NumPy's arrays [B, K] and [B]."""
    if isinstance(x, Tensor):
        return x.gather(-1, index[..., None])[..., 0]
    return x[np.arange(len(index)), index]


def add_at(x: Array, index: Array, more: Array) -> Array:
    """`x` itself, after x[..., index] += more in each row."""
    if isinstance(x, Tensor):
        return x.scatter_add_(-1, index[..., None], more[..., None])
    x[np.arange(len(index)), index] += more
    return x


class Bernoulli:
    """Two actions from one number: P(a = 1) = sigmoid(logit). `logit` [...], actions int64 [...]."""

    def __init__(self, logit: Tensor, known: bool = False) -> None:
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

    def __init__(self, logits: Array, known: bool = False) -> None:
        self.logits = logits
        if known:
            self.params = logits

    @cached_property
    def params(self) -> Array:
        """Log probabilities, [..., A]; found when they are asked for, since a sample does without."""
        return log_softmax(self.logits)

    def probabilities(self) -> Array:
        """[..., A]: probability of each action."""
        return namespace(self.params).exp(self.params)

    def sample(self, noise: Array) -> Array:
        """Actions from uniform numbers in [0, 1) of the batch's shape, by the inverse of the cumulative sum."""
        sums = namespace(self.logits).exp(lowered(self.logits)).cumsum(-1)
        # times the last sum: rounding may leave it below 1, and the noise must not reach past it
        below = sums[..., :-1] <= noise[..., None] * sums[..., -1:]
        return below.sum(-1) if isinstance(below, Tensor) else np.add.reduce(below, -1)

    def greedy(self) -> Array:
        """The likeliest action."""
        return self.params.argmax(-1)

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s) per sample."""
        return pick(self.params, action)

    def score(self, action: Array, factor: Array) -> Array:
        """`factor` grad log pi(a|s) = factor ([a = k] - P(k)), [..., A]."""
        return add_at(self.probabilities() * -factor[..., None], action, factor)

    def cross_entropy(self, old: Any) -> Array:
        """H(pi', pi) = -sum_a pi'(a) log pi(a) per sample, in nats."""
        return -total(self.probabilities() * old.params)

    def cross_entropy_slope(self, old: Any) -> Array:
        """Its gradient, [..., A]; of the entropy where `old` is this one."""
        p = self.probabilities()
        return p * (total(p * old.params)[..., None] - old.params)

    def entropy(self) -> Array:
        """H(pi') per sample, in nats."""
        return self.cross_entropy(self)

    def kl(self, old: Any) -> Array:
        """Exact KL(old || new) per sample, in nats."""
        return total(old.probabilities() * (old.params - self.params))


def by_columns(x: Array) -> Array:
    """The same numbers; NumPy's [B, K] column by column, over which its loops run three times as fast as over rows."""
    return x if isinstance(x, Tensor) else x.T.copy().T


def normal(noise: Tensor) -> Tensor:
    """The normal distribution's inverse at uniform noise in [0, 1), in double precision; same shape.

    The noise is a multiple of 2^-24; the middle of its cell is never 0 or 1 and lies as far above 1/2 as below, so that
    the result is below 5.5.
    """
    z: Tensor = torch.special.ndtri(noise.double() + 2.0**-25)
    return z


class DiagonalGaussian:
    """A independent normal numbers. `params` [..., 2A]: means, then logs of deviations; actions float [..., A]."""

    def __init__(self, params: Array, known: bool = False) -> None:
        params, size = by_columns(params), params.shape[-1] // 2
        self.params, self.mean, self.log_std = params, params[..., :size], params[..., size:]
        self.asked: Array | None = None

    @staticmethod
    def joined(mean: Array, log_std: Array) -> Array:
        """Parameters [B, 2A] with one `log_std` [A] for all."""
        if isinstance(mean, Tensor):
            return torch.cat((mean, log_std.expand_as(mean)), -1)
        params = np.empty((2, mean.shape[1], len(mean)), mean.dtype)
        params[0], params[1] = mean.T, log_std[:, None]
        return params.reshape(-1, len(mean)).T

    @cached_property
    def precision(self) -> Array:
        """1 / sigma, [..., A]."""
        return namespace(self.log_std).exp(-self.log_std)

    def sample(self, noise: Tensor) -> Array:
        """Actions from uniform numbers in [0, 1), [..., A]."""
        return self.at(normal(noise).to(self.mean.dtype))

    def at(self, z: Array) -> Array:
        """mean + sigma z, [..., A]."""
        return self.mean + z / self.precision

    def greedy(self) -> Array:
        """The likeliest action."""
        return self.mean

    def scaled(self, action: Array) -> Array:
        """z = (a - mean) / sigma, [..., A]; kept for who asks again about the same actions."""
        if action is not self.asked:
            self.asked, self.z = action, (by_columns(action) - self.mean) * self.precision
        return self.z

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s) per sample: of the action as it was sampled, whatever an environment clips off it."""
        z = self.scaled(action)
        constant = LOG_ROOT * self.mean.shape[-1]
        return -constant - total(self.log_std + 0.5 * z * z)

    def score(self, action: Array, factor: Array) -> Array:
        """`factor` grad log pi(a|s) = factor (z / sigma, z^2 - 1) with z = (a - mean) / sigma, [..., 2A]."""
        z = self.scaled(action)
        return namespace(z).concatenate((z * self.precision, z * z - 1), -1) * factor[..., None]

    def cross_entropy(self, old: Any) -> Array:
        """H(pi', pi) = -E_pi' log pi per sample, in nats."""
        return self.entropy() + old.kl(self)

    def cross_entropy_slope(self, old: Any) -> Array:
        """Its gradient, [..., 2A]; of the entropy, which has 0 and 1, where `old` is this one."""
        if old is self:
            slope, size = namespace(self.params).empty_like(self.params), self.mean.shape[-1]
            slope[..., :size], slope[..., size:] = 0.0, 1.0
            return slope
        ratio = old.precision / self.precision
        return namespace(ratio).concatenate(((self.mean - old.mean) * old.precision**2, ratio * ratio), -1)

    def entropy(self) -> Array:
        """H(pi') per sample, in nats."""
        return total(self.log_std + (LOG_ROOT + 0.5))

    def kl(self, old: Any) -> Array:
        """Exact KL(old || new) per sample, in nats."""
        shift = (old.mean - self.mean) * self.precision
        log_ratio = old.log_std - self.log_std
        return total((shift * shift + namespace(shift).expm1(2 * log_ratio)) / 2 - log_ratio)


class MultiCategorical(Categorical):
    """Several choices at once, each a Categorical of its own. `logits` [..., sum of sizes], actions int64 [..., D]."""

    def __init__(self, logits: Array, sizes: tuple[int, ...], known: bool = False) -> None:
        super().__init__(logits, known)
        parts = [logits[..., end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self.choices = [Categorical(part, known) for part in parts]

    @cached_property
    def params(self) -> Array:
        """Log probabilities of every choice, side by side."""
        return namespace(self.logits).concatenate([choice.params for choice in self.choices], -1)

    def sample(self, noise: Array) -> Array:
        """Actions from uniform numbers in [0, 1), [..., D]."""
        return namespace(self.logits).stack([c.sample(noise[..., d]) for d, c in enumerate(self.choices)], -1)

    def greedy(self) -> Array:
        """The likeliest action."""
        return namespace(self.logits).stack([choice.greedy() for choice in self.choices], -1)

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s) per sample."""
        return namespace(self.logits).stack([c.log_prob(action[..., d]) for d, c in enumerate(self.choices)]).sum(0)

    def score(self, action: Array, factor: Array) -> Array:
        """`factor` grad log pi(a|s) of every choice, side by side."""
        scores = [choice.score(action[..., d], factor) for d, choice in enumerate(self.choices)]
        return namespace(self.logits).concatenate(scores, -1)

    def cross_entropy_slope(self, old: Any) -> Array:
        """Its gradient, of every choice, side by side."""
        both = zip(self.choices, old.choices, strict=True)
        return namespace(self.logits).concatenate([new.cross_entropy_slope(before) for new, before in both], -1)


Distribution = Bernoulli | Categorical | DiagonalGaussian
LOG_ROOT = math.log(2 * math.pi) / 2
FORBIDDEN = -1e9  # the logit of an action that a mask does not allow: its probability is exactly 0


class Head(NamedTuple):
    """What a policy puts out for an action space."""

    outputs: int
    """numbers of the last layer"""
    draws: tuple[int, ...]
    """shape of the noise that decides one action; () for one number"""
    distribution: Callable[..., Any]
    """from parameters, as a rollout stores them"""


def head(space: spaces.Space[Any]) -> Head:
    """The head for an action space; raises UserError where it cannot be acted in."""
    action_converter(space)
    if isinstance(space, spaces.Discrete):
        return Head(int(space.n), (), Categorical)
    if isinstance(space, spaces.Box):
        size = int(np.prod(space.shape))
        return Head(size, (size,), DiagonalGaussian)
    sizes = choices(space)
    return Head(sum(sizes), (len(sizes),), partial(MultiCategorical, sizes=sizes))
