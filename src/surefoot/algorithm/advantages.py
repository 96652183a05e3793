"""Returns and advantages: total reward, future reward, TD error, GAE, and their normalisation.

Shapes: `[T, N]` is T steps in time order of N parallel environments; column n may hold several episodes, separated by
`ended`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surefoot.errors import require_range

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks


def discounted_sum(x: Tensor, decay: Tensor) -> Tensor:
    """The recurrence behind every return here: S_t = x_t + d_t S_{t+1}, with S_T = 0.

    | symbol | argument | shape  | meaning                                     |
    |--------|----------|--------|---------------------------------------------|
    | x_t    | `x`      | [T, N] | what arrives at t                           |
    | d_t    | `decay`  | [T, N] | how much of the later sum counts; 0 cuts it |
    | S_t    | returned | [T, N] | the sum from t on                           |
    """
    import torch

    total, decays = x.numpy(force=True).copy(), decay.numpy(force=True)
    for t in reversed(range(len(total) - 1)):  # a fifth of PyTorch's time
        total[t] += decays[t] * total[t + 1]
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

    Rewards before the rollout are not counted: an episode that began earlier starts at row 0.
    `reward` [T, N], `ended` [T, N] bool; returns [T, N], constant within each episode. Source: Williams 1992.
    """
    total = future_return(reward, ended, gamma)
    for t in range(1, len(total)):  # an episode's total is its future return at its first step: carry it along
        total[t] = total[t].where(ended[t - 1], total[t - 1])
    return total


def td_error(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """One-step TD error, delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t).

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


def _normalize(x: Tensor, dim: tuple[int, ...], min_std: float = 0.0) -> Tensor:
    """(x - mean) / max(std, min_std) over `dim`; 0 where all are equal, max - min <= 1e-6 max|x|."""
    if not x.numel():  # every step was a reset
        return x
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    equal = high - low <= 1e-6 * x.abs().amax(dim, keepdim=True)
    centred = x - x.mean(dim, keepdim=True)
    std = centred.square().mean(dim, keepdim=True).sqrt().clamp(min=min_std)
    return (centred / std.masked_fill(equal, 1.0)).masked_fill(equal, 0.0)


def normalize_over_games(advantage: Tensor) -> Tensor:
    """Each time step compared with the same step of the parallel environments: (A_tn - mean_n A_t) / std_n(A_t).

    `advantage` [T, N]; returns [T, N]: mean 0 and mean square 1 in every row, or a row of zeros where all are equal
    (rounding leaves a std a little above 0 there, and would turn equal ones into +-1).
    """
    return _normalize(advantage, (1,))


def normalize_over_batch(advantage: Tensor, min_std: float = 0.0) -> Tensor:
    """(A - mean) / max(std, min_std) over the whole rollout [T, N]; zeros where all are equal."""
    return _normalize(advantage, tuple(range(advantage.ndim)), min_std)


# What a Config can choose as `advantage`: called with a Rollout, returns advantages and the critic's targets, [T, N].


@dataclass(frozen=True)
class EpisodeReturn:
    """The total reward of the trajectory, for each of its actions."""

    gamma: float = 0.995
    """discount per step"""

    def __post_init__(self) -> None:
        require_range(self, "gamma", high=1)

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        total = episode_return(rollout.reward, rollout.ended, self.gamma)
        return total, total


@dataclass(frozen=True)
class FutureReturn:
    """The discounted reward that came after the action."""

    gamma: float = 0.995
    """discount per step"""

    def __post_init__(self) -> None:
        require_range(self, "gamma", high=1)

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        future = future_return(rollout.reward, rollout.ended, self.gamma)
        return future, future


@dataclass(frozen=True)
class GAE:
    """The generalised advantage; the critic's target is advantage plus value."""

    gamma: float = 0.99
    """discount per step"""
    gae_lambda: float = 0.95
    """0: one-step TD errors, from the critic; 1: whole returns, from the rewards"""

    def __post_init__(self) -> None:
        require_range(self, "gamma", "gae_lambda", high=1)

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        r = rollout
        advantage = gae(r.reward, r.value, r.next_value, r.terminated, r.ended, self.gamma, self.gae_lambda)
        return advantage, advantage + r.value


# What a Config can choose as `normalize`: called with advantages [T, N] of all environments.


@dataclass(frozen=True)
class Unnormalized:
    """Advantages as they are."""

    def __call__(self, advantage: Tensor, min_std: float = 0.0) -> Tensor:
        return advantage


@dataclass(frozen=True)
class OverGames:
    """Normalise each time step over the parallel environments (the lesson's way)."""

    def __call__(self, advantage: Tensor, min_std: float = 0.0) -> Tensor:
        return normalize_over_games(advantage)


@dataclass(frozen=True)
class OverBatch:
    """Normalise over all environments and time steps of the rollout.

    Where a policy has nearly learned its task most advantages are noise, and dividing them by their own std makes that
    noise as large as anything before; so are all of them where no reward has come yet. With a memory they are divided
    by no less than a running std of earlier rollouts, s^2 <- memory s^2 + (1 - memory) std^2.
    """

    memory: float = 0.0
    """how much of s^2 is kept each rollout; 0: every rollout is normalised by itself"""
    floor: float = 0.0
    """advantages are divided by no less than this; beside `ScaledReward`, where returns have std 1, less is noise"""

    def __post_init__(self) -> None:
        require_range(self, "memory", high=1, below=True)
        require_range(self, "floor")

    def __call__(self, advantage: Tensor, min_std: float = 0.0) -> Tensor:
        """[T, N] to [T, N]; `min_std`: s before the rollout."""
        return normalize_over_batch(advantage, max(min_std, self.floor))

    def update_std(self, std: float, advantage: Tensor) -> float:
        """The next s, after a rollout with these advantages [T, N]; the first rollout's is its own std."""
        new = float(advantage.std(correction=0)) if self.memory else math.inf
        if not new < math.inf:  # no memory, or NaN, which the gradient's check will report
            return std
        return math.sqrt(self.memory * std**2 + (1 - self.memory) * new**2) if std else new


@dataclass(frozen=True)
class OverMinibatch:
    """Normalise over each minibatch, anew in every epoch; Stable-Baselines3 does so with the sample's std (n - 1)."""

    def __call__(self, advantage: Tensor, min_std: float = 0.0) -> Tensor:
        """The rollout's advantages as they are: `within` is called in each update."""
        return advantage

    def within(self, advantage: Any, mean: Callable[[Any], Any]) -> Any:
        """(A - mean) / std of a minibatch [B]; `mean` averages numbers over the ranks that share it."""
        middle = float(mean(advantage.mean()))
        centred = advantage - middle
        std = math.sqrt(mean((centred * centred).mean()))
        return centred / (std + 1e-8) if std > 1e-6 * abs(middle) else 0 * centred


Advantage = EpisodeReturn | FutureReturn | GAE
Normalize = Unnormalized | OverGames | OverBatch | OverMinibatch


def centered(reward: Tensor, terminated: Tensor, shift: float, gamma: float) -> Tensor:
    """r - c, and at terminations r - c / (1 - gamma), as if c were paid for ever after; all [T, N], `shift` c.

    Every value is less by c / (1 - gamma), and every advantage the same. Source: Naik et al. 2024 (reward centering).
    """
    return reward - shift - forgone(terminated, shift, gamma) if shift else reward


def forgone(terminated: Tensor, shift: float, gamma: float) -> Tensor | float:
    """gamma c / (1 - gamma) where the task terminated, 0 elsewhere, [T, N]."""
    return terminated.double() * (gamma * shift / (1 - gamma)) if shift else 0.0


def compute_advantages(rollout: Rollout, cfg: Config, state: State, ranks: Ranks) -> tuple[Tensor, Tensor, float]:
    """Normalised advantages and the critic's targets, both [T, N], and the next `advantage_std` of the state."""
    std, shift = state.return_std, state.reward_shift or 0.0
    reward = cfg.reward(rollout.reward - shift, std) - forgone(rollout.terminated, shift, cfg.advantage.gamma) / std
    rollout = replace(rollout, reward=reward.to(rollout.reward))
    advantage, returns = cfg.advantage(rollout)
    of_all_envs = ranks.gather_columns(advantage)
    valid = rollout.valid_of_all_envs(ranks)
    std = 0.0
    if isinstance(cfg.normalize, OverBatch):
        std = cfg.normalize.update_std(state.advantage_std, of_all_envs if valid is None else of_all_envs[valid])
    return ranks.local_columns(normalize(cfg, of_all_envs, valid, state.advantage_std)), returns, std


def normalize(cfg: Config, advantage: Tensor, valid: Tensor | None, min_std: float) -> Tensor:
    """Normalised advantages [T, N], over the transitions that are `valid` alone; 0 for the others."""
    if valid is None:
        return cfg.normalize(advantage, min_std)
    normalized = advantage.new_zeros(advantage.shape)
    if isinstance(cfg.normalize, OverGames):
        for t in valid.any(1).nonzero()[:, 0].tolist():
            normalized[t, valid[t]] = cfg.normalize(advantage[t, valid[t]][None])[0]
    else:
        normalized[valid] = cfg.normalize(advantage[valid][None], min_std)[0]
    return normalized
