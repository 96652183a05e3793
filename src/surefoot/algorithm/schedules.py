"""Schedules: the learning rate, adapted after each minibatch, and what is annealed from iteration to iteration."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.errors import require_range

if TYPE_CHECKING:
    from surefoot.config import Config

# What a Config can choose as `learning_rate`: called with the present rate, the update's KL and the run's progress.


@dataclass(frozen=True)
class FixedRate:
    """A constant learning rate."""

    initial: float = 1e-4
    """step size"""

    def __post_init__(self) -> None:
        require_range(self, "initial", above=True)

    def __call__(self, learning_rate: float, kl: float, progress: float) -> float:
        return self.initial


@dataclass(frozen=True)
class LinearRate:
    """A learning rate that falls linearly to 0 at the end of the run."""

    initial: float = 2.5e-4
    """step size at the start"""

    def __post_init__(self) -> None:
        require_range(self, "initial", above=True)

    def __call__(self, learning_rate: float, kl: float, progress: float) -> float:
        return self.initial * max(0.0, 1 - progress)


@dataclass(frozen=True)
class ScheduledRate:
    """A learning rate that goes in straight lines through `rates`, at equal distances from the start to the end.

    From Python any function of the progress (0 to 1) will do: `of` takes its values, so files hold numbers and no code.
    """

    rates: tuple[float, ...] = (3e-4, 0.0)
    """step sizes, the first at the start of the run, the last at its end"""

    def __post_init__(self) -> None:
        require_range(self, "rates")

    @staticmethod
    def of(function: Callable[[float], float], places: int = 1000) -> ScheduledRate:
        """The schedule that a function of the progress describes."""
        return ScheduledRate(tuple(float(function(k / places)) for k in range(places + 1)))

    @property
    def initial(self) -> float:
        """Step size at the start."""
        return self.rates[0]

    def __call__(self, learning_rate: float, kl: float, progress: float) -> float:
        at, last = min(1.0, progress) * (len(self.rates) - 1), len(self.rates) - 1
        k = min(int(at), max(0, last - 1))
        return self.rates[k] + (at - k) * (self.rates[min(k + 1, last)] - self.rates[k])


@dataclass(frozen=True)
class AdaptiveRate:
    """A learning rate that is adapted after each minibatch to keep KL(old || new) near a desired value.

    Below half of it the rate is multiplied by 1.5, above twice it is divided by 1.5. Sources: Schulman et al. 2017,
    section 4 (there for the penalty's coefficient); Rudin et al. 2022 (for the learning rate).
    """

    initial: float = 1e-3
    """step size at the start"""
    desired_kl: float = 0.02
    """KL(rollout's policy || present policy) in nats, found before each step, that the rate is steered towards"""
    end_factor: float = 1.0
    """factor on desired_kl at the end of the run; in between it is end_factor^progress"""
    cap: float = 5e-3
    """largest learning rate"""
    floor: float = 1e-5
    """smallest learning rate"""

    def __post_init__(self) -> None:
        require_range(self, "initial", "desired_kl", "end_factor", above=True)
        require_range(self, "cap", "floor")

    def __call__(self, learning_rate: float, kl: float, progress: float) -> float:
        target = self.desired_kl * self.end_factor ** min(1.0, progress)
        factor = 1.5 if kl < target / 2 else 1 / 1.5 if kl > target * 2 else 1.0
        return min(self.cap, max(self.floor, learning_rate * factor))


LearningRate = FixedRate | LinearRate | ScheduledRate | AdaptiveRate


def linear(end_factor: float, progress: float) -> float:
    """A factor that goes linearly from 1 to `end_factor` while progress goes from 0 to 1, and stays there."""
    return 1 + (end_factor - 1) * min(1.0, progress)


def annealed(cfg: Config, iteration: int, progress: float, kl_coef: float = 0.0) -> Config:
    """The Config with objective, bonus and penalty of this iteration, when `progress` (0 to 1) of the run is done.

    A part that changes during a run has a method `at(iteration, progress)`. `kl_coef`: an AdaptivePenalty's
    coefficient as adapted so far.
    """
    parts = {"objective": cfg.objective, "entropy": cfg.entropy}
    now = copy(cfg)  # not `replace`, which checks everything again: a hundredth of a rollout of CartPole
    vars(now).update({k: part.at(iteration, progress) for k, part in parts.items() if hasattr(part, "at")})
    vars(now)["kl_penalty"] = cfg.kl_penalty.as_adapted(kl_coef)
    return now
