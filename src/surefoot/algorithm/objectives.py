"""The formulas, per sample: objectives and bonuses, to be maximised; KL penalties and value losses, to be minimised.

Tensors of one shape in and out, [B] or [T, N], if nothing else is said. `update.ppo_loss` takes mean and sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.algorithm.schedules import linear
from surefoot.errors import require_range

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.models.distributions import Distribution


def squared_error(value: Tensor, returns: Tensor) -> Tensor:
    """The value loss, (V - R)^2 per sample, to be minimised."""
    return (value - returns).square()


def clipped_squared_error(value: Tensor, value_old: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """The clipped value loss, max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) per sample, to be minimised.

    It is flat where V has moved by more than eps towards R. Source: OpenAI's PPO2 (the code, not the paper).
    """
    clipped = value_old + (value - value_old).clamp(-clip_range, clip_range)
    return squared_error(value, returns).maximum(squared_error(clipped, returns))


def is_clipped(ratio: Tensor, clip_range: float) -> Tensor:
    """1 where the ratio lies outside [1 - eps, 1 + eps], 0 elsewhere."""
    return ((ratio - 1).abs() > clip_range).to(ratio.dtype)


# What a Config can choose as `objective`: called with (log pi(a|s), log pi_old(a|s), advantage), to be maximised.


@dataclass(frozen=True)
class Reinforce:
    """log pi(a|s) A, whose gradient is A grad log pi(a|s). Source: Williams 1992."""

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        return logp * advantage


@dataclass(frozen=True)
class Surrogate:
    """r A with the importance ratio r = pi(a|s) / pi_old(a|s). Source: Kakade & Langford 2002."""

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        ratio = (logp - logp_old).exp()
        return ratio * advantage


@dataclass(frozen=True)
class ClippedSurrogate:
    """min(r A, clip(r, 1 - eps, 1 + eps) A): flat beyond eps on the side A rewards. Source: Schulman et al. 2017."""

    clip_range: float = 0.1
    """eps: how far the ratio pi / pi_old may leave 1 before the objective is flat"""
    decay: float = 1.0
    """factor on clip_range after each iteration"""
    end_factor: float = 1.0
    """factor on clip_range at the end of the run, linear in between"""

    def __post_init__(self) -> None:
        require_range(self, "clip_range", "end_factor")
        require_range(self, "decay", high=1)

    def at(self, iteration: int, progress: float = 0.0) -> ClippedSurrogate:
        """This objective in a given iteration, when `progress` (0 to 1) of the run is done."""
        return ClippedSurrogate(self.clip_range * self.decay**iteration * linear(self.end_factor, progress))

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        ratio = (logp - logp_old).exp()
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        return (ratio * advantage).minimum(clipped * advantage)


@dataclass(frozen=True)
class DualClip:
    """max(min(r A, clip(r) A), c A) for A < 0, the clipped surrogate otherwise: a loss is bounded, too.

    Without it an action that has become far more probable, and is bad, has a gradient without limit. Source: Ye et al.
    2020, equation 5.
    """

    clip_range: float = 0.2
    """eps: how far the ratio pi / pi_old may leave 1 before the objective is flat"""
    dual_clip: float = 3.0
    """c: for A < 0 the objective is flat where the ratio is above this"""

    def __post_init__(self) -> None:
        require_range(self, "clip_range")
        require_range(self, "dual_clip", low=1, above=True)

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        clipped = ClippedSurrogate(self.clip_range)(logp, logp_old, advantage)
        return clipped.maximum(self.dual_clip * advantage).where(advantage < 0, clipped)


@dataclass(frozen=True)
class SPO:
    """r A - abs(A) (r - 1)^2 / (2 eps): greatest where the ratio is 1 + eps for A > 0, 1 - eps for A < 0.

    Simple Policy Optimization: beyond eps it leads the ratio back, where the clipped surrogate is flat and lets it
    drift. Source: Xie et al. 2025.
    """

    ratio_range: float = 0.2
    """eps: how far from 1 the ratio pi / pi_old is led"""

    def __post_init__(self) -> None:
        require_range(self, "ratio_range", above=True)

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        ratio = (logp - logp_old).exp()
        return ratio * advantage - advantage.abs() * (ratio - 1).square() / (2 * self.ratio_range)


@dataclass(frozen=True)
class TrustRegion:
    """r A, maximised under a bound on KL(pi_old || pi): TRPO, whose update is in trpo.py.

    Epochs, minibatches, learning rate and optimizer are then the critic's alone. Source: Schulman et al. 2015.
    """

    max_kl: float = 0.01
    """bound on the mean KL(old || new policy) of a rollout, in nats"""
    damping: float = 0.1
    """added to the diagonal of the Fisher matrix"""
    cg_steps: int = 10
    """steps of the conjugate gradient method"""
    backtracks: int = 10
    """lengths of the step that are tried, each 0.8 of the one before"""
    fisher_every: int = 1
    """estimate the Fisher matrix from one part in so many of each rank's rollout; 1: all (Schulman et al. 2015: 10)"""

    def __post_init__(self) -> None:
        require_range(self, "max_kl", above=True)
        require_range(self, "damping")
        require_range(self, "cg_steps", "backtracks", "fisher_every", low=1)

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        return Surrogate()(logp, logp_old, advantage)


# What a Config can choose as `entropy`: a bonus per sample, to be maximised, from the new and the old distribution.


@dataclass(frozen=True)
class Entropy:
    """coef H(pi) with the policy's entropy H(pi) = -sum_a pi(a|s) log pi(a|s): keeps the policy exploring."""

    coef: float = 0.01
    """coefficient at the start of the run"""
    end_factor: float = 1.0
    """factor on the coefficient at the end, linear in between"""
    until: float = 1.0
    """fraction of the run after which the end is reached"""

    def __post_init__(self) -> None:
        require_range(self, "coef", "end_factor")
        require_range(self, "until", high=1, above=True)

    def at(self, iteration: int, progress: float) -> Entropy:
        """This bonus when `progress` (0 to 1) of the run is done."""
        return Entropy(self.coef * linear(self.end_factor, progress / self.until))

    def __call__(self, new: Distribution, old: Distribution) -> Tensor:
        return self.coef * new.entropy()


@dataclass(frozen=True)
class OldPolicyCrossEntropy:
    """coef H(pi, pi_old): what the lesson calls entropy, -(p log p_old + (1 - p) log(1 - p_old)), a cross entropy.

    At pi = pi_old its gradient is the entropy's; later epochs are pushed on in the same direction. For the lesson's
    presets only.
    """

    coef: float = 0.01
    """coefficient at the start of the run"""
    decay: float = 0.995
    """factor on the coefficient after each iteration"""

    def __post_init__(self) -> None:
        require_range(self, "coef")
        require_range(self, "decay", high=1)

    def at(self, iteration: int, progress: float) -> OldPolicyCrossEntropy:
        """This bonus in a given iteration."""
        return OldPolicyCrossEntropy(self.coef * self.decay**iteration, 1.0)

    def __call__(self, new: Distribution, old: Distribution) -> Tensor:
        return self.coef * new.cross_entropy(old)


# What a Config can choose as `kl_penalty`: a loss per sample from the new and the old distribution.


@dataclass(frozen=True)
class FixedPenalty:
    """beta KL(pi_old || pi) with a constant coefficient beta. Source: Schulman et al. 2017, equation 8."""

    coef: float = 0.0
    """beta; 0: no penalty"""

    def __post_init__(self) -> None:
        require_range(self, "coef")

    def as_adapted(self, coef: float) -> FixedPenalty:
        """This penalty, which is never adapted."""
        return self

    def __call__(self, new: Distribution, old: Distribution) -> Tensor | float:
        return self.coef * new.kl_from(old) if self.coef else 0.0


@dataclass(frozen=True)
class AdaptivePenalty:
    """beta KL(pi_old || pi), beta doubled after an iteration that moved the policy too far, halved after too little.

    Source: Schulman et al. 2017, section 4.
    """

    initial: float = 1.0
    """beta at the start"""
    desired_kl: float = 0.01
    """KL(old || new policy) of an iteration in nats that beta is steered towards, up to a factor of 1.5"""

    def __post_init__(self) -> None:
        require_range(self, "initial", "desired_kl", above=True)

    @property
    def coef(self) -> float:
        """beta at the start."""
        return self.initial

    def __call__(self, new: Distribution, old: Distribution) -> Tensor | float:
        return FixedPenalty(self.coef)(new, old)

    def as_adapted(self, coef: float) -> FixedPenalty:
        """The penalty of an iteration, with beta as adapted so far."""
        return FixedPenalty(coef)

    def adapted(self, coef: float, kl: float) -> float:
        """beta after an iteration that had `coef` and moved the policy by `kl`."""
        factor = 2.0 if kl > 1.5 * self.desired_kl else 0.5 if kl < self.desired_kl / 1.5 else 1.0
        return min(1e10, max(1e-10, coef * factor))


Objective = Reinforce | Surrogate | ClippedSurrogate | DualClip | SPO | TrustRegion
KLPenalty = FixedPenalty | AdaptivePenalty
EntropyBonus = Entropy | OldPolicyCrossEntropy


# Of importance sampling, for the lesson's pages: training uses neither.


def trajectory_ratio(logp: Tensor, logp_old: Tensor) -> Tensor:
    """Importance ratio of whole trajectories, P(tau; theta') / P(tau; theta) = prod_t pi'(a_t|s_t) / pi(a_t|s_t).

    The environment's own probabilities cancel. `logp`, `logp_old` [T, N], one trajectory a column; returns [N].
    Averages over old trajectories, weighted with it, are averages over the new policy's; its variance grows with T
    (`effective_sample_size`), which is why the surrogate keeps only the ratio of the step itself.
    """
    return (logp - logp_old).sum(0).exp()


def effective_sample_size(ratio: Tensor) -> Tensor:
    """How many equally weighted samples the weighted ones are worth, (sum r)^2 / sum r^2. `ratio` [N]; scalar.

    Source: Kish 1965.
    """
    return ratio.sum() ** 2 / (ratio * ratio).sum()
