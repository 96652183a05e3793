"""How hard the policy is pushed: gains per sample, to be maximised, and the terms that go with them.

Everything here is a pure function of arrays of one shape (`[B]` or `[T, N]`); no mean is taken, no sign is turned.
What is learned from is a gain's `slope` in log pi(a|s): in REINFORCE's gradient, w grad log pi(a|s), it stands where
the weight stood. Tests hold every slope to what autograd makes of the gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.arrays import Array, namespace
from surefoot.errors import require_range

if TYPE_CHECKING:
    from surefoot.models.distributions import Distribution


def trajectory_ratio(logp: Array, logp_old: Array) -> Array:
    """Re-weighting factor of whole trajectories, P(tau; theta') / P(tau; theta) = prod_t pi'(a_t|s_t) / pi(a_t|s_t).

    The environment's own probabilities cancel. `logp`, `logp_old` [T, N], one trajectory a column; returns [N].
    Averages over old games, weighted with it, are averages over the new policy's games; its variance grows with T
    (`effective_sample_size`), which is why the surrogate keeps only the factor of the step itself.
    """
    return namespace(logp).exp((logp - logp_old).sum(0))


def effective_sample_size(ratio: Array) -> Array:
    """How many equally weighted samples the weighted ones are worth, (sum w)^2 / sum w^2. `ratio` [N]; scalar.

    Source: Kish 1965.
    """
    return ratio.sum() ** 2 / (ratio * ratio).sum()


def value_loss(value: Array, target: Array) -> Array:
    """The critic's squared error, (V - target)^2 per sample, to be minimised; same shape in and out."""
    error = value - target
    return error * error


def value_slope(value: Array, target: Array) -> Array:
    """The derivative of `value_loss` by the value, 2 (V - target)."""
    return 2 * (value - target)


def clipped_value_slope(value: Array, value_old: Array, target: Array, clip_range: float) -> Array:
    """The derivative of `clipped_value_loss` by the value: `value_slope`, or 0 where moving on wins nothing."""
    xp, move = namespace(value), value - value_old
    near = value_old + move.clip(-clip_range, clip_range)
    enough = (abs(move) > clip_range) & (value_loss(near, target) > value_loss(value, target))
    return xp.where(enough, 0.0, value_slope(value, target))


def clipped_value_loss(value: Array, value_old: Array, target: Array, clip_range: float) -> Array:
    """The larger of (V - target)^2 and (V_old + clip(V - V_old, -eps, eps) - target)^2 per sample, to be minimised.

    Beyond eps there is nothing more to win by moving on towards the target. Source: Schulman et al. 2017, their code.
    """
    near = value_old + (value - value_old).clip(-clip_range, clip_range)
    return namespace(value).maximum(value_loss(value, target), value_loss(near, target))


def clipped(ratio: Array, clip_range: float) -> Array:
    """1 where a sample's ratio has left [1 - clip_range, 1 + clip_range], 0 elsewhere; same shape in and out."""
    return namespace(ratio).where(abs(ratio - 1) > clip_range, 1.0, 0.0)


def straight_line(end_factor: float, progress: float) -> float:
    """A factor that goes from 1 to `end_factor` while progress goes from 0 to 1, and stays there."""
    return 1 + (end_factor - 1) * min(1.0, progress)


# What a Config can choose. Each is `gain(logp, logp_old, weight) -> gain per sample`, with its `slope` in logp.


@dataclass(frozen=True)
class Reinforce:
    """Gain w log pi(a|s), whose gradient is w grad log pi. Source: Williams 1992."""

    def at(self, iteration: int, progress: float = 0.0) -> Reinforce:
        """This objective as it stands at an iteration: it does not change."""
        return self

    def __call__(self, logp: Array, logp_old: Array, weight: Array) -> Array:
        return weight * logp

    def slope(self, logp: Array, logp_old: Array, weight: Array) -> Array:
        """w."""
        return weight


@dataclass(frozen=True)
class Surrogate:
    """Gain r w with r = pi'(a|s) / pi(a|s): old games, re-weighted. Source: Kakade & Langford 2002."""

    def at(self, iteration: int, progress: float = 0.0) -> Surrogate:
        """This objective as it stands at an iteration: it does not change."""
        return self

    def __call__(self, logp: Array, logp_old: Array, weight: Array) -> Array:
        return namespace(logp).exp(logp - logp_old) * weight

    def slope(self, logp: Array, logp_old: Array, weight: Array) -> Array:
        """r w."""
        return self(logp, logp_old, weight)


@dataclass(frozen=True)
class ClippedSurrogate:
    """Gain min(r w, clip(r, 1 - eps, 1 + eps) w): nothing more to win outside. Source: Schulman et al. 2017."""

    clip_range: float = 0.1
    """how far the ratio may move before the gain is flat"""
    decay: float = 1.0
    """factor on clip_range after each iteration"""
    end_factor: float = 1.0
    """factor on clip_range at the end of the run; in between it moves in a straight line"""

    def __post_init__(self) -> None:
        require_range(self, "clip_range", "end_factor")
        require_range(self, "decay", high=1)

    def at(self, iteration: int, progress: float = 0.0) -> ClippedSurrogate:
        """This objective as it stands at an iteration, when `progress` (0 to 1) of the run is done."""
        return ClippedSurrogate(self.clip_range * self.decay**iteration * straight_line(self.end_factor, progress))

    def __call__(self, logp: Array, logp_old: Array, weight: Array) -> Array:
        xp = namespace(logp)
        return xp.minimum(xp.exp(logp - logp_old) * weight, self.most(weight))

    def slope(self, logp: Array, logp_old: Array, weight: Array) -> Array:
        """r w, but 0 where there is nothing more to win."""
        xp = namespace(logp)
        plain = xp.exp(logp - logp_old) * weight
        return xp.where(plain > self.most(weight), 0.0, plain)

    def most(self, weight: Array) -> Array:
        """What can be won: (1 + eps) w where w > 0, (1 - eps) w where w < 0, clip(r) w on the side where it bounds."""
        return weight + self.clip_range * abs(weight)


# Regularizers: what is added to the gain, by its `slope(new, old)` in the numbers that the new policy is made of.


@dataclass(frozen=True)
class Entropy:
    """True entropy of the policy, H(pi') = -sum_a pi'(a) log pi'(a): keeps it exploring."""

    coef: float = 0.01
    """its weight at the start"""
    end_factor: float = 1.0
    """factor on the weight at the end; until then it moves in a straight line"""
    until: float = 1.0
    """the part of the run after which it is there"""

    def __post_init__(self) -> None:
        require_range(self, "coef", "end_factor")
        require_range(self, "until", high=1, above=True)

    def at(self, iteration: int, progress: float) -> Entropy:
        """This bonus as it stands when `progress` (0 to 1) of the run is done."""
        return Entropy(self.coef * straight_line(self.end_factor, progress / self.until))

    def slope(self, new: Distribution, old: Distribution) -> Array | None:
        """Coefficient times that of the entropy; without one, nothing is computed."""
        return self.coef * new.cross_entropy_slope(new) if self.coef else None


@dataclass(frozen=True)
class OldPolicyCrossEntropy:
    """The lesson's "entropy", -(p log p_old + (1-p) log(1-p_old)): a cross entropy with the old policy.

    Its gradient at p = p_old pulls towards p = 1/2 as the entropy's does, but later passes push further the same way;
    it is kept for the lesson's presets only.
    """

    coef: float = 0.01
    """its weight at the start"""
    decay: float = 0.995
    """factor on the weight after each iteration"""

    def __post_init__(self) -> None:
        require_range(self, "coef")
        require_range(self, "decay", high=1)

    def at(self, iteration: int, progress: float) -> OldPolicyCrossEntropy:
        """This bonus as it stands at an iteration: coef times decay^iteration."""
        return OldPolicyCrossEntropy(self.coef * self.decay**iteration, 1.0)

    def slope(self, new: Distribution, old: Distribution) -> Array:
        """Coefficient times that of the cross entropy."""
        return self.coef * new.cross_entropy_slope(old)


Objective = Reinforce | Surrogate | ClippedSurrogate
EntropyBonus = Entropy | OldPolicyCrossEntropy
