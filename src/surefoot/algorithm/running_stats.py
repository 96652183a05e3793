"""Running statistics of observations and returns, and the KL penalty's coefficient: fixed until updates are done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot.algorithm.advantages import GAE, centered, discounted_sum
from surefoot.algorithm.objectives import AdaptivePenalty
from surefoot.algorithm.rewards import ScaledReward
from surefoot.models.layers import VectorEncoder, merge

if TYPE_CHECKING:
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.parallel.ranks import Ranks

Array = NDArray[Any]

FAR = 15  # times the std of returns around their level, which is 68 in a sparse reach, 36 in Reacher, 4 in Pendulum


def moments_per_env(x: Tensor, ranks: Ranks, valid: Tensor | None = None) -> Array:
    """Mean and sum of squared deviations of every environment, of all ranks: [T, N, K] to float64 [all envs, 2, K].

    Of the `valid` [T, N] rows alone, where that is given. Environment by environment in memory, so that the bits do not
    depend on how many share a rank.
    """
    columns = x.transpose(0, 1).double().contiguous().numpy(force=True)
    if valid is None:
        mean = columns.mean(1)
        moments = np.concatenate((mean, np.square(columns - mean[:, None]).sum(1)), 1)
    else:
        rows = [column[some] for column, some in zip(columns, valid.T.numpy(force=True), strict=True)]
        means = [row.sum(0) / max(1, len(row)) for row in rows]
        moments = np.stack([np.concatenate((m, np.square(x - m).sum(0))) for m, x in zip(means, rows, strict=True)])
    return ranks.gather_columns(torch.from_numpy(moments.T)).T.reshape(-1, 2, x.shape[2]).numpy()


def past_return(reward: Tensor, ended: Tensor, gamma: float, before: Tensor) -> tuple[Tensor, Tensor]:
    """The discounted return so far, P_t = r_t + gamma (1 - ended_{t-1}) P_{t-1}.

    `reward` [T, N], `ended` [T, N] bool, `before` [N] stands for P_{-1}; returns [T, N], and the next `before`.
    """
    reward = reward.double().clone()
    reward[0] += gamma * before
    decay = gamma * torch.cat((torch.zeros_like(reward[:1]), (~ended[:-1]).double()))
    total = discounted_sum(reward.flip(0), decay.flip(0)).flip(0)
    return total, total[-1] * ~ended[-1]


def update_running_stats(state: State, rollout: Rollout, cfg: Config, ranks: Ranks) -> None:
    """Take a rollout, this rank's, that has been learned from into the running statistics; adapt the KL penalty."""
    adapt_penalty(state, rollout, cfg, ranks)
    num_steps, n = rollout.reward.shape
    rows = torch.full((n,), num_steps) if rollout.valid is None else rollout.valid.sum(0).cpu()
    counts = ranks.gather_columns(rows[None])[0].tolist()  # ranks whose rollouts were cut have fewer
    for layer in state.policy.modules():
        if isinstance(layer, VectorEncoder) and (norm := layer.moments) is not None:
            x = layer.numbers(rollout.obs.flatten(0, 1)).view(num_steps, n, -1)
            known = (moment.numpy(force=True) for moment in (norm.count, norm.mean, norm.square))
            norm.assign(*map(torch.as_tensor, merge(known, counts, moments_per_env(x, ranks, rollout.valid))))
    if isinstance(cfg.reward, ScaledReward):
        if state.reward_shift is None:
            choose_reward_shift(state, rollout, counts, cfg, ranks)
        shift, gamma = state.reward_shift or 0.0, cfg.advantage.gamma
        reward, ended = centered(rollout.reward, rollout.terminated, shift, gamma).cpu(), rollout.ended.cpu()
        state.running_return[list(rollout.begun)] = 0.0
        past, state.running_return = past_return(reward, ended, cfg.advantage.gamma, state.running_return)
        known = (np.array([x]) for x in state.return_moments)
        total, mean, square = merge(known, counts, moments_per_env(past[..., None], ranks, rollout.valid))
        state.return_moments = float(total[0]), float(mean[0]), float(square[0])


def centers(cfg: Config) -> bool:
    """Whether rewards may be centered: advantages stay the same only by GAE, with a critic that learns."""
    may = isinstance(cfg.reward, ScaledReward) and cfg.reward.center and isinstance(cfg.advantage, GAE)
    return may and cfg.advantage.gamma < 1 and cfg.value_coef > 0


@torch.no_grad()
def choose_reward_shift(state: State, rollout: Rollout, counts: list[int], cfg: Config, ranks: Ranks) -> None:
    """Decide once: the rewards' mean where only time limits end episodes and values are far larger than they vary.

    Where -1 is paid until a goal is reached, and episodes go on, values are near -1 / (1 - gamma), and all that tells
    one action from another is a hundredth of that, which the critic is not exact enough to see. It begins anew then.
    """
    critic, episodes = state.policy.critic, list(state.recent_episodes)
    if critic is None or not centers(cfg) or ranks.any(bool(rollout.terminations.any())):
        state.reward_shift = 0.0
        return
    if len(episodes) < min(cfg.num_envs, 100):
        return
    shift = sum(e.score for e in episodes) / sum(e.length for e in episodes)
    start = torch.zeros_like(state.running_return)
    past, _ = past_return(rollout.reward.cpu() - shift, rollout.ended.cpu(), cfg.advantage.gamma, start)
    nothing = np.zeros(()), np.zeros(1), np.zeros(1)
    count, _, square = merge(nothing, counts, moments_per_env(past[..., None], ranks, rollout.valid))
    std, level = math.sqrt(float(square[0] / count)), abs(shift) / (1 - cfg.advantage.gamma)
    if std > level / FAR:
        state.reward_shift = 0.0
    elif std > 1e-6 * level:  # rewards that are all alike tell nothing
        state.reward_shift, state.advantage_std = shift, 0.0
        state.return_moments = 0.0, 0.0, 0.0
        state.running_return.zero_()
        for parameter in critic.parameters():
            start_in_flat = parameter.storage_offset() - state.flat.storage_offset()
            state.ema_params[start_in_flat : start_in_flat + parameter.numel()] = 0.0
            parameter.zero_()


@torch.no_grad()
def adapt_penalty(state: State, rollout: Rollout, cfg: Config, ranks: Ranks) -> None:
    """Adapt the KL penalty's coefficient to how far the policy has moved over a rollout, all ranks' together."""
    if not isinstance(cfg.kl_penalty, AdaptivePenalty):
        return
    params = rollout.evaluated_by(state.policy)[0][: rollout.value.numel()]
    new, old = (state.policy.distribution(x, stored=True) for x in (params, rollout.params.flatten(0, 1)))
    kl, valid = new.kl_from(old).double(), rollout.valid
    counted = torch.ones_like(kl) if valid is None else valid.flatten().to(kl)
    total, count = ranks.all_reduce_mean(torch.stack(((kl * counted).sum(), counted.sum())))
    state.kl_coef = cfg.kl_penalty.adapted(state.kl_coef, float(total / count))
