"""What is learned of the environment's rewards: as they are, their sign, or divided by the returns' deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.errors import require_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RawReward:
    """The environment's reward, unchanged."""

    def __call__(self, reward: Tensor, deviation: float = 1.0) -> Tensor:
        """[T, N] to [T, N]."""
        return reward


@dataclass(frozen=True)
class SignReward:
    """The reward's sign: -1, 0 or 1. Scores stay raw. Source: Mnih et al. 2013."""

    def __call__(self, reward: Tensor, deviation: float = 1.0) -> Tensor:
        """[T, N] to [T, N]."""
        return reward.sign()


@dataclass(frozen=True)
class ScaledReward:
    """Rewards divided by the running standard deviation of the discounted return, so that returns are of size 1.

    Scores stay raw. Source: Engstrom et al. 2020, section 3 (as the field's libraries do it).
    """

    limit: float = 10.0
    """scaled rewards are clipped to [-limit, limit]"""
    center: bool = True
    """where only time limits have ended episodes, first subtract the rewards' mean: the best policy is the same"""

    def __post_init__(self) -> None:
        require_range(self, "limit", above=True)

    def __call__(self, reward: Tensor, deviation: float = 1.0) -> Tensor:
        """[T, N] to [T, N]; `deviation`: that of the returns before the rollout."""
        return (reward / deviation).clamp(-self.limit, self.limit)


Reward = RawReward | SignReward | ScaledReward
