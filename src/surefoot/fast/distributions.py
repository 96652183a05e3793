"""The distributions of `models.distributions` for NumPy arrays, with the gradients that `fast.mlp` needs.

NumPy's calls take a third of PyTorch's time, which is most of the time where arrays are small. Gradients are those by
the actor's output, [B, K]. NumPy's loops run faster over long dimensions, so rows are kept column by column.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.models.distributions import LOG_SQRT_2PI, MASKED_LOGIT, DiagonalGaussian
from surefoot.models.policy import Policy

Array = NDArray[Any]


def row_sum(x: Array) -> Array:
    """Sum over the last dimension: [B, K] to [B]."""
    total: Array = x @ np.ones(x.shape[-1], x.dtype)
    return total


class NumpyCategorical:
    """`Categorical`: `logits` [B, A], actions int64 [B]."""

    def __init__(self, logits: Array, stored: bool = False) -> None:
        self.logits = logits
        if stored:
            self.params = logits

    @cached_property
    def params(self) -> Array:
        """Log probabilities, [B, A]."""
        x = self.logits.T.copy()
        x -= np.maximum.reduce(x)
        x -= np.log(np.add.reduce(np.exp(x)))
        return x.T

    @cached_property
    def probabilities(self) -> Array:
        """[B, A]."""
        p: Array = np.exp(self.params)
        return p

    def sample(self, noise: Array) -> Array:
        """Actions [B] from uniform noise [B]."""
        sums = np.exp(self.logits - np.maximum.reduce(self.logits, -1, keepdims=True)).cumsum(-1)
        action: Array = np.add.reduce(sums[..., :-1] <= noise[..., None] * sums[..., -1:], -1)
        return action

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s), [B]."""
        log_prob: Array = self.params[np.arange(len(action)), action]
        return log_prob

    def grad_log_prob(self, action: Array, factor: Array) -> Array:
        """factor d log pi(a|s) / d logits = factor ([a = k] - P(k)), [B, A]."""
        grad = self.probabilities * -factor[:, None]
        grad[np.arange(len(action)), action] += factor
        return grad

    def grad_cross_entropy(self, other: Any) -> Array:
        """d/d logits of -sum_a pi(a) log pi_other(a), [B, A]; with `other` itself: of the entropy."""
        p = self.probabilities
        grad: Array = p * (row_sum(p * other.params)[:, None] - other.params)
        return grad

    def kl(self, old: Any) -> Array:
        """KL(old || self), [B]."""
        return row_sum(old.probabilities * (old.params - self.params))


class NumpyMultiCategorical(NumpyCategorical):
    """`MultiCategorical`: `logits` [B, sum of sizes], actions int64 [B, D]."""

    def __init__(self, logits: Array, sizes: tuple[int, ...], stored: bool = False) -> None:
        super().__init__(logits, stored)
        parts = (logits[:, end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True))
        self.choices = [NumpyCategorical(part, stored) for part in parts]

    @cached_property
    def params(self) -> Array:
        """Log probabilities of every choice, side by side."""
        return np.concatenate([choice.params for choice in self.choices], -1)

    def sample(self, noise: Array) -> Array:
        """Actions [B, D] from uniform noise [B, D]."""
        return np.stack([choice.sample(noise[:, d]) for d, choice in enumerate(self.choices)], -1)

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s), [B], the sum over the choices."""
        log_prob: Array = np.stack([c.log_prob(action[:, d]) for d, c in enumerate(self.choices)]).sum(0)
        return log_prob

    def grad_log_prob(self, action: Array, factor: Array) -> Array:
        """Of every choice, side by side."""
        return np.concatenate([c.grad_log_prob(action[:, d], factor) for d, c in enumerate(self.choices)], -1)

    def grad_cross_entropy(self, other: Any) -> Array:
        """Of every choice, side by side."""
        pairs = zip(self.choices, other.choices, strict=True)
        return np.concatenate([choice.grad_cross_entropy(theirs) for choice, theirs in pairs], -1)


class NumpyDiagonalGaussian:
    """`DiagonalGaussian`: `params` [B, 2A], actions float [B, A]. Gradients are by mean and log std, [B, 2A]."""

    def __init__(self, params: Array, stored: bool = False) -> None:
        self.params = params.T.copy().T if params.flags.c_contiguous else params
        self.size = params.shape[1] // 2
        self.mean, self.log_std = self.params[:, : self.size], self.params[:, self.size :]

    @cached_property
    def precision(self) -> Array:
        """1 / sigma, [B, A]."""
        precision: Array = np.exp(-self.log_std)
        return precision

    def sample(self, z: Array) -> Array:
        """Actions [B, A] from standard normal numbers [B, A]."""
        action: Array = self.mean + z / self.precision
        return action

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s), [B]; keeps z = (a - mean) / sigma for the gradient."""
        self.z = (action.T.copy().T - self.mean) * self.precision
        log_prob: Array = -LOG_SQRT_2PI * self.size - row_sum(self.log_std + 0.5 * self.z * self.z)
        return log_prob

    def grad_log_prob(self, action: Array, factor: Array) -> Array:
        """factor d log pi(a|s) / d (mean, log std) = factor (z / sigma, z^2 - 1), for the action of `log_prob`."""
        grad: Array = np.concatenate((self.z * self.precision, self.z * self.z - 1), -1) * factor[:, None]
        return grad

    def grad_cross_entropy(self, other: Any) -> Array:
        """d/d (mean, log std) of -E_pi log pi_other, [B, 2A]; with `other` itself: of the entropy."""
        ratio = other.precision / self.precision
        return np.concatenate(((self.mean - other.mean) * other.precision**2, ratio * ratio), -1)

    def kl(self, old: Any) -> Array:
        """KL(old || self), [B]."""
        shift = (old.mean - self.mean) * self.precision
        log_ratio = old.log_std - self.log_std
        return row_sum((shift * shift + np.expm1(2 * log_ratio)) / 2 - log_ratio)


def numpy_distribution(policy: Policy, params: Array, stored: bool = False) -> Any:
    """`policy.distribution` for arrays: the distribution with these parameters."""
    made = policy.distribution
    if made is DiagonalGaussian:
        return NumpyDiagonalGaussian(params)
    sizes = getattr(made, "keywords", {}).get("sizes")
    return NumpyMultiCategorical(params, sizes, stored) if sizes else NumpyCategorical(params, stored)


def numpy_distribution_of(policy: Policy, output: Array, allowed: Array | None) -> Any:
    """`Policy.distribution_of` for arrays: from the actor's output [B, K] and the allowed actions."""
    if allowed is not None:
        output = np.where(allowed, output, MASKED_LOGIT)
    elif policy.log_std is not None:
        params = np.empty((2, output.shape[1], len(output)), output.dtype)
        params[0], params[1] = output.T, policy.log_std.detach().numpy()[:, None]
        output = params.reshape(-1, len(output)).T
    return numpy_distribution(policy, output)
