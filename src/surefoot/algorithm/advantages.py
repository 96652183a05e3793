"""What each action deserves: total reward, future reward, TD error, GAE, and how they are compared with other games.

Everything here is a pure function of tensors. Shapes: `[T, N]` is T decisions in time order of N parallel games;
column n may hold several episodes, separated by `ended`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.errors import require_range

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.rollout import Rollout


def discounted_sum(x: Tensor, decay: Tensor) -> Tensor:
    """The recurrence behind every return here: S_t = x_t + d_t S_{t+1}, with S_T = 0.

    | symbol | argument | shape  | meaning                                     |
    |--------|----------|--------|---------------------------------------------|
    | x_t    | `x`      | [T, N] | what arrives at t                           |
    | d_t    | `decay`  | [T, N] | how much of the later sum counts; 0 cuts it |
    | S_t    | returned | [T, N] | the sum from t on                           |
    """
    import torch

    total, kept = x.numpy(force=True).copy(), decay.numpy(force=True)
    for t in reversed(range(len(total) - 1)):  # a fifth of PyTorch's time
        total[t] += kept[t] * total[t + 1]
    return torch.from_numpy(total).to(x.device)


def future_return(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Future reward, R_t = sum_{k>=t} gamma^(k-t) r_k up to the episode's end: the past is not this action's doing.

    `reward` [T, N], `ended` [T, N] bool (the transition at t was its episode's last); returns [T, N].
    Source: Williams 1992; Sutton & Barto 2018, section 13.3.
    """
    return discounted_sum(reward, gamma * (~ended).to(reward.dtype))


def future_return_from_start(reward: Tensor, gamma: float) -> Tensor:
    """The lesson's own discounting, gamma^t R_t = sum_{k>=t} gamma^k r_k: counted from the trajectory's start.

    It ranks actions rightly only after `normalize_over_games`, which removes the factor gamma^t that all games share
    at time t. `reward` [T, N], one trajectory a column; returns [T, N].
    """
    import torch

    power = gamma ** torch.arange(len(reward), dtype=reward.dtype)
    return discounted_sum(reward * power[:, None], torch.ones_like(reward))


def episode_return(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Total reward of the episode that the action at t belongs to, R = sum_k gamma^k r_k with k from its first step.

    StepResult before the rollout count for nothing: an episode that began earlier starts at row 0 here.
    `reward` [T, N], `ended` [T, N] bool; returns [T, N], constant within each episode. Source: Williams 1992.
    """
    total = future_return(reward, ended, gamma)
    for t in range(1, len(total)):  # an episode's total is its future return at its first step: carry it along
        total[t] = total[t].where(ended[t - 1], total[t - 1])
    return total


def td_error(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """One-step surprise, delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t).

    A termination is worth 0 afterwards; a truncation is not an ending of the task, so `next_value` still counts.
    All arguments [T, N], `terminated` bool; returns [T, N]. Source: Sutton 1988.
    """
    return reward + gamma * next_value * (~terminated).to(value.dtype) - value


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage, A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}.

    | symbol     | argument     | shape       | meaning                                                      |
    |------------|--------------|-------------|--------------------------------------------------------------|
    | r_t        | `reward`     | [T, N]      | reward of the transition at t                                |
    | V(s_t)     | `value`      | [T, N]      | the critic's value before it                                 |
    | V(s_{t+1}) | `next_value` | [T, N]      | the critic's value of its true successor (never a reset one) |
    |            | `terminated` | [T, N] bool | the task ended: nothing follows                              |
    |            | `ended`      | [T, N] bool | terminated or truncated: the next row is another episode     |

    lambda = 0 is the TD error; lambda = 1 with V = 0 is the future return. Source: Schulman et al. 2016.
    """
    delta = td_error(reward, value, next_value, terminated, gamma)
    return discounted_sum(delta, gamma * gae_lambda * (~ended).to(value.dtype))


def _standardize(weight: Tensor, dim: tuple[int, ...], least: float = 0.0) -> Tensor:
    """(w - mean) / max(sqrt(mean of (w - mean)^2), least) over `dim`; 0 where max - min <= 1e-6 max|w|: all agree."""
    low, high = weight.amin(dim, keepdim=True), weight.amax(dim, keepdim=True)
    agree = high - low <= 1e-6 * weight.abs().amax(dim, keepdim=True)
    centred = weight - weight.mean(dim, keepdim=True)
    sigma = centred.square().mean(dim, keepdim=True).sqrt().clamp(min=least)
    return (centred / sigma.masked_fill(agree, 1.0)).masked_fill(agree, 0.0)


def normalize_over_games(weight: Tensor) -> Tensor:
    """Compare each time step with the same step of the parallel games: (w_tn - mean_n w_t) / sigma_n(w_t).

    `weight` [T, N]; returns [T, N]: mean 0 and mean square 1 in every row, or a row of zeros where all games agree
    (rounding leaves sigma a little above 0 there, and would turn equal games into +-1).
    """
    return _standardize(weight, (1,))


def normalize_over_batch(weight: Tensor, least: float = 0.0) -> Tensor:
    """Compare with the whole rollout: (w - mean) / max(sigma, `least`) over all of [T, N]; zeros where all agree."""
    return _standardize(weight, tuple(range(weight.ndim)), least)


# What a Config can choose. Each is a function with its knobs attached.


@dataclass(frozen=True)
class EpisodeReturn:
    """Every action gets the total reward of its trajectory."""

    gamma: float = 0.995
    """discount per decision"""

    def __post_init__(self) -> None:
        require_range(self, "gamma", high=1)

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        total = episode_return(rollout.reward, rollout.ended, self.gamma)
        return total, total


@dataclass(frozen=True)
class FutureReturn:
    """Every action gets the reward that came after it."""

    gamma: float = 0.995
    """discount per decision"""

    def __post_init__(self) -> None:
        require_range(self, "gamma", high=1)

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        future = future_return(rollout.reward, rollout.ended, self.gamma)
        return future, future


@dataclass(frozen=True)
class GAE:
    """Every action gets its generalised advantage; the critic's target is advantage plus value."""

    gamma: float = 0.99
    """discount per decision"""
    gae_lambda: float = 0.95
    """lambda: 0 trusts the critic, 1 trusts the rewards"""

    def __post_init__(self) -> None:
        require_range(self, "gamma", "gae_lambda", high=1)

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        r = rollout
        advantage = gae(r.reward, r.value, r.next_value, r.terminated, r.ended, self.gamma, self.gae_lambda)
        return advantage, advantage + r.value


@dataclass(frozen=True)
class Unnormalized:
    """Take the weights as they are."""

    def __call__(self, weight: Tensor, spread: float = 0.0) -> Tensor:
        return weight


@dataclass(frozen=True)
class OverGames:
    """Normalise each time step over the parallel games (the lesson's way)."""

    def __call__(self, weight: Tensor, spread: float = 0.0) -> Tensor:
        return normalize_over_games(weight)


@dataclass(frozen=True)
class OverBatch:
    """Normalise over all games and time steps of the rollout.

    Where a policy has nearly learned its task most advantages are noise, and dividing them by their own deviation
    makes that noise as large as anything before. With a memory they are divided by no less than the deviation of
    earlier rollouts, s: s^2 <- memory s^2 + (1 - memory) sigma^2.
    """

    memory: float = 0.0
    """of earlier rollouts, a rollout; 0: none, each is taken for itself"""

    def __post_init__(self) -> None:
        require_range(self, "memory", high=1, below=True)

    def __call__(self, weight: Tensor, spread: float = 0.0) -> Tensor:
        """[T, N] to [T, N]; `spread` is s as it was before the rollout."""
        return normalize_over_batch(weight, spread)

    def remember(self, spread: float, weight: Tensor) -> float:
        """The next s, after a rollout with these weights [T, N]; the first rollout's is its own sigma."""
        sigma = float(weight.std(correction=0)) if self.memory else math.inf
        if not sigma < math.inf:  # no memory, or NaN, which the gradient will tell
            return spread
        return math.sqrt(self.memory * spread**2 + (1 - self.memory) * sigma**2) if spread else sigma


@dataclass(frozen=True)
class OverMinibatch:
    """Normalise over each minibatch, afresh in every pass, as Stable-Baselines3 does."""

    def __call__(self, weight: Tensor, spread: float = 0.0) -> Tensor:
        """The rollout's weights as they are: their turn comes in the update."""
        return weight

    def within(self, weight: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        """(w - mean) / sigma of a minibatch [B]; `mean` averages numbers over the ranks that share it."""
        middle = float(mean(weight.mean()))
        weight = weight - middle
        sigma = math.sqrt(mean((weight * weight).mean()))
        return weight / (sigma + 1e-8) if sigma > 1e-6 * abs(middle) else 0 * weight


Advantage = EpisodeReturn | FutureReturn | GAE
Normalize = Unnormalized | OverGames | OverBatch | OverMinibatch
