"""Running statistics of observations and returns: frozen from collection through update, then brought up to date."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from surefoot.algorithm.advantages import discounted_sum
from surefoot.algorithm.rewards import ScaledReward
from surefoot.arrays import Array
from surefoot.models.policy import Vector

if TYPE_CHECKING:
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks


def merge(known: Iterable[Array], more: int, parts: Array) -> tuple[Array, Array, Array]:
    """Moments of everything, from those that are `known` and those of every game, `more` samples each, in order.

    Moments are count [], mean and sum of (x - mean)^2, [K]; `parts` [N, 2, K], each game's. Source: Chan et al. 1983.
    """
    count, mean, square = known
    for their_mean, their_square in parts:
        total, gap = count + more, their_mean - mean
        mean = mean + gap * (more / total)
        square = square + their_square + gap * gap * (count * more / total)
        count = total
    return count, mean, square


def of_games(x: Tensor, ranks: Ranks) -> Array:
    """Every game's own moments, of all ranks: `x` [T, own games, K] to [games, 2, K] in double precision.

    Environment by game in memory, so that its bits do not depend on how many share its rank.
    """
    games = x.transpose(0, 1).double().contiguous().numpy(force=True)
    mean = games.mean(1)
    found = np.concatenate((mean, np.square(games - mean[:, None]).sum(1)), 1)
    return ranks.gather_columns(torch.from_numpy(found.T)).T.reshape(-1, 2, x.shape[2]).numpy()


def past_return(reward: Tensor, ended: Tensor, gamma: float, carry: Tensor) -> tuple[Tensor, Tensor]:
    """What an episode has paid so far, discounted: P_t = r_t + gamma (1 - ended_{t-1}) P_{t-1}.

    `reward` [T, N], `ended` [T, N] bool, `carry` [N] what stands for P_{-1}; returns [T, N], and the next carry.
    """
    paid = reward.double().clone()
    paid[0] += gamma * carry
    decay = gamma * torch.cat((torch.zeros_like(paid[:1]), (~ended[:-1]).double()))
    total = discounted_sum(paid.flip(0), decay.flip(0)).flip(0)
    return total, total[-1] * ~ended[-1]


def measure(state: State, rollout: Rollout, cfg: Config, ranks: Ranks) -> None:
    """Bring a run's running statistics up to date with a rollout that has been learned from."""
    num_steps, n = rollout.reward.shape
    for layer in state.policy.modules():
        if isinstance(layer, Vector) and layer.moments is not None:
            x = layer.numbers(rollout.obs.flatten(0, 1)).view(num_steps, n, -1)
            seen = layer.moments
            known = (moment.numpy(force=True) for moment in (seen.count, seen.mean, seen.square))
            seen.take(*map(torch.as_tensor, merge(known, num_steps, of_games(x, ranks))))
    if isinstance(cfg.reward, ScaledReward):
        past, state.running_return = past_return(
            rollout.reward.cpu(), rollout.ended.cpu(), cfg.advantage.gamma, state.running_return
        )
        known = (np.array([x]) for x in state.return_moments)
        total, mean, square = merge(known, num_steps, of_games(past[..., None], ranks))
        state.return_moments = float(total[0]), float(mean[0]), float(square[0])
