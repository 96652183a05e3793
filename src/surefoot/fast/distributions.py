"""The distributions of `models.distributions` for NumPy arrays, with the gradients that `fast.mlp` needs.

NumPy's calls take a third of PyTorch's time, which is most of the time where arrays are small. Gradients are those by
the actor's output, [B, K]. NumPy's loops run faster over long dimensions, so rows are kept column by column.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.models.distributions import LOG_SQRT_2PI, MASKED_LOGIT
from surefoot.models.policy import Policy

Array = NDArray[Any]


def row_sum(x: Array) -> Array:
    """Sum over the last dimension: [B, K] to [B]."""
    total: Array = x @ np.ones(x.shape[-1], x.dtype)
    return total


def split(x: Array, sizes: tuple[int, ...]) -> list[Array]:
    """Columns of [B, sum of sizes] in groups."""
    return [x[:, end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


class NumpyCategorical:
    """`Categorical`: from log probabilities [B, A], actions int64 [B]."""

    def __init__(self, params: Array) -> None:
        self.params, self.probabilities = params, np.exp(params)

    @staticmethod
    def normalize(logits: Array) -> Array:
        """Log probabilities from logits, [B, A]."""
        x = logits.T.copy()
        x -= np.maximum.reduce(x)
        x -= np.log(np.add.reduce(np.exp(x)))
        return x.T

    @staticmethod
    def sample(logits: Array, noise: Array) -> Array:
        """Actions [B] from uniform noise [B]."""
        x = logits.T
        sums = np.add.accumulate(np.exp(x - np.maximum.reduce(x)))
        action: Array = np.add.reduce(sums[:-1] <= noise * sums[-1])
        return action

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s), [B]; keeps where the actions are for the gradient."""
        self.at = np.arange(len(action)), action
        log_prob: Array = self.params[self.at]
        return log_prob

    def grad_log_prob(self, factor: Array) -> Array:
        """factor d log pi(a|s) / d logits = factor ([a = k] - P(k)), [B, A], for the actions of `log_prob`."""
        grad = self.probabilities * -factor[:, None]
        grad[self.at] += factor
        return grad

    def grad_cross_entropy(self, other: Any) -> Array:
        """d/d logits of -sum_a pi(a) log pi_other(a), [B, A]; with `other` itself: of the entropy."""
        p = self.probabilities
        grad: Array = p * (row_sum(p * other.params)[:, None] - other.params)
        return grad

    def kl_from(self, old: Any) -> Array:
        """KL(old || self), [B]."""
        return row_sum(old.probabilities * (old.params - self.params))

    def grad_kl(self, old: Any) -> Array:
        """d/d logits of KL(old || self): P - P_old, [B, A]; of several choices side by side."""
        grad: Array = self.probabilities - old.probabilities
        return grad


class NumpyMultiCategorical(NumpyCategorical):
    """`MultiCategorical`: from log probabilities [B, sum of sizes], actions int64 [B, D]."""

    def __init__(self, params: Array, sizes: tuple[int, ...]) -> None:
        super().__init__(params)
        self.choices = [NumpyCategorical(part) for part in split(params, sizes)]

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s), [B], the sum over the choices."""
        log_prob: Array = np.stack([c.log_prob(action[:, d]) for d, c in enumerate(self.choices)]).sum(0)
        return log_prob

    def grad_log_prob(self, factor: Array) -> Array:
        """Of every choice, side by side."""
        return np.concatenate([choice.grad_log_prob(factor) for choice in self.choices], -1)

    def grad_cross_entropy(self, other: Any) -> Array:
        """Of every choice, side by side."""
        pairs = zip(self.choices, other.choices, strict=True)
        return np.concatenate([choice.grad_cross_entropy(theirs) for choice, theirs in pairs], -1)


class NumpyDiagonalGaussian:
    """`DiagonalGaussian`: `params` [B, 2A], actions float [B, A]. Gradients are by mean and log std, [B, 2A]."""

    def __init__(self, params: Array) -> None:
        self.params = params.T.copy().T if params.flags.c_contiguous else params
        self.size = params.shape[1] // 2
        self.mean, self.log_std = self.params[:, : self.size], self.params[:, self.size :]
        self.precision = np.exp(-self.log_std)  # 1 / sigma

    def log_prob(self, action: Array) -> Array:
        """log pi(a|s), [B]; keeps z = (a - mean) / sigma for the gradient."""
        self.z = (action.T.copy().T - self.mean) * self.precision
        log_prob: Array = -LOG_SQRT_2PI * self.size - row_sum(self.log_std + 0.5 * self.z * self.z)
        return log_prob

    def grad_log_prob(self, factor: Array) -> Array:
        """factor d log pi(a|s) / d (mean, log std) = factor (z / sigma, z^2 - 1), for the actions of `log_prob`."""
        grad: Array = np.concatenate((self.z * self.precision, self.z * self.z - 1), -1) * factor[:, None]
        return grad

    def grad_cross_entropy(self, other: Any) -> Array:
        """d/d (mean, log std) of -E_pi log pi_other, [B, 2A]; with `other` itself: of the entropy."""
        ratio = other.precision / self.precision
        return np.concatenate(((self.mean - other.mean) * other.precision**2, ratio * ratio), -1)

    def kl_from(self, old: Any) -> Array:
        """KL(old || self), [B]."""
        shift = (old.mean - self.mean) * self.precision
        log_ratio = old.log_std - self.log_std
        return row_sum((shift * shift + np.expm1(2 * log_ratio)) / 2 - log_ratio)

    def grad_kl(self, old: Any) -> Array:
        """d/d (mean, log std) of KL(old || self), [B, 2A]."""
        shift, ratio = (self.mean - old.mean) * self.precision, self.precision / old.precision
        return np.concatenate((shift * self.precision, 1 - shift * shift - ratio * ratio), -1)


class NumpyHead:
    """What a policy's head does, for arrays: `Policy.distribution`, `Policy.distribution_of` and sampling."""

    def __init__(self, policy: Policy) -> None:
        self.sizes: tuple[int, ...] = getattr(policy.distribution, "keywords", {}).get("sizes", ())
        self.log_std = None if policy.log_std is None else policy.log_std.detach().numpy()

    def params(self, output: Array, allowed: Array | None) -> Array:
        """The distribution's parameters, as a rollout stores them, from the actor's output and the allowed actions."""
        if self.log_std is not None:
            params = np.empty((2, output.shape[1], len(output)), output.dtype)
            params[0], params[1] = output.T, self.log_std[:, None]
            return params.reshape(-1, len(output)).T
        logits = output if allowed is None else np.where(allowed, output, MASKED_LOGIT)
        if self.sizes:
            return np.concatenate([NumpyCategorical.normalize(part) for part in split(logits, self.sizes)], -1)
        return NumpyCategorical.normalize(logits)

    def distribution(self, params: Array) -> Any:
        """The distribution with these parameters."""
        if self.log_std is not None:
            return NumpyDiagonalGaussian(params)
        return NumpyMultiCategorical(params, self.sizes) if self.sizes else NumpyCategorical(params)

    def sample(self, output: Array, allowed: Array | None, noise: Array) -> Array:
        """Actions from the actor's output and uniform noise; standard normal numbers where they are continuous."""
        if self.log_std is not None:
            action: Array = output + np.exp(self.log_std) * noise
            return action
        logits = output if allowed is None else np.where(allowed, output, MASKED_LOGIT)
        if self.sizes:
            parts = enumerate(split(logits, self.sizes))
            return np.stack([NumpyCategorical.sample(part, noise[:, d]) for d, part in parts], -1)
        return NumpyCategorical.sample(logits, noise)
