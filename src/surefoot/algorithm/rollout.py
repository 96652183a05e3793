"""Collecting experience: the old policy plays T decisions in N games."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from surefoot.envs.interface import Episode
from surefoot.fast.packed import inference_policy
from surefoot.models.distributions import normal
from surefoot.parallel.ranks import Alone, Ranks

if TYPE_CHECKING:
    from surefoot.envs.vector import EnvVector
    from surefoot.fast.windows import Windows
    from surefoot.models.policy import Policy

SHARE = 128  # rows of a minibatch: what is shorter takes an MLP nearly as long


@dataclass
class Rollout:
    """What was seen and done. Everything at [t, n] belongs to the transition at t of game n; nothing is shifted."""

    obs: Tensor
    """[T, N, ...] in the environment's dtype (uint8 stays uint8)"""
    preprocessed: Tensor
    """[T, N, ...] as the policy preprocessed them"""
    action: Tensor
    """[T, N] int64; of several choices [T, N, D]; continuous [T, N, A], as sampled"""
    logp: Tensor
    """[T, N] log probability of the action under the policy that played"""
    params: Tensor
    """[T, N, ...] that policy's distribution, for exact divergences"""
    reward: Tensor
    """[T, N] raw"""
    terminated: Tensor
    """[T, N] bool: the task ended here, the future is worth 0"""
    truncated: Tensor
    """[T, N] bool: we stopped watching here, the future is worth V"""
    value: Tensor
    """[T, N] the critic's V(s_t)"""
    next_value: Tensor
    """[T, N] V of the true successor; 0 at a termination"""
    bootstrap_obs: Tensor
    """[K, ...] preprocessed: the successors that are no rows here, of the last decision and where truncated"""
    bootstrap_index: Tensor
    """[2, K] whose they are: t, n"""
    episodes: list[Episode]
    """finished during this rollout"""
    env_s: float
    """seconds in the environments"""
    act_s: float
    """seconds in the policy"""
    windows: Windows | None = None
    """`preprocessed`, and after it `beyond`, as convolutions see them: where learning is faster so"""

    @property
    def ended(self) -> Tensor:
        """[T, N] bool: the next row belongs to another episode."""
        return self.terminated | self.truncated

    @torch.no_grad()
    def judged(self, policy: Policy) -> Rollout:
        """The same with the values that `policy` gives it."""
        seen = self.windows or torch.cat((self.preprocessed.flatten(0, 1), self.bootstrap_obs))
        judged, count = policy.judged(seen)[1], self.value.numel()
        value, later = judged[:count].view_as(self.value), judged[count:]
        return replace(self, value=value, next_value=next_values(value, later, self.bootstrap_index, self.terminated))

    def of_all(self, ranks: Ranks) -> Rollout:
        """All ranks' games side by side, the same on every rank."""
        mine = {k: v.contiguous().clone() for k, v in vars(self).items() if isinstance(v, Tensor)}
        mine["bootstrap_index"][1] += ranks.rank * self.reward.shape[1]
        parts = [load(data) for data in ranks.all_gather_bytes(save(mine))]
        rows: dict[str, Any] = {k: torch.cat([part[k] for part in parts], int(k != "bootstrap_obs")) for k in mine}
        return replace(self, **rows)

    def cut(self, length: int, indices: range) -> Rollout:
        """The first `length` decisions, as trajectories of the games `indices` that all ended there."""
        changes = {f.name: getattr(self, f.name) for f in fields(self)}
        rows = {
            k: v[:length] for k, v in changes.items() if isinstance(v, Tensor) and not k.startswith("bootstrap_obs")
        }
        shorter = Rollout(**changes | rows)
        shorter.truncated = shorter.truncated.clone()
        shorter.truncated[-1] = ~shorter.terminated[-1]
        scores = shorter.reward.sum(0).tolist()
        shorter.episodes = [Episode(n, score, length) for n, score in zip(indices, scores, strict=True)]
        return shorter


def gather_if_small(rollout: Rollout, policy: Policy, minibatch_size: int, ranks: Ranks) -> tuple[Rollout, Ranks]:
    """What this rank learns from, and with whom: it gives its share of every minibatch of so many decisions.

    But a small share of an MLP's takes as long as the whole: then each learns from all games by itself, all alike.
    """
    if ranks.count == 1 or policy.bound is None or minibatch_size >= ranks.count * SHARE:
        return rollout, ranks
    return rollout.of_all(ranks), Alone()


def next_values(value: Tensor, bootstrap_obs: Tensor, at: Tensor, terminated: Tensor) -> Tensor:
    """V of the true successor: that of the next row, `beyond` [K] `at` [2, K], 0 at a termination; all else [T, N]."""
    next_value = torch.cat((value[1:], value[:1]))
    next_value[tuple(at)] = bootstrap_obs
    return next_value.masked_fill(terminated, 0.0)


@torch.no_grad()
def collect(policy: Policy, games: EnvVector, noise: Tensor, episode: int | None = None) -> Rollout:
    """Play len(noise) decisions in every game.

    `noise` [T, N] uniform in [0, 1): one number decides one action; [T, N, K] where an action takes K of them. Games go
    on where they were; or, where an `episode` number is given (the lesson), all begin that episode and all stop where
    the first one ends.
    """
    start = perf_counter()
    num_steps, n = noise.shape[:2]
    policy = inference_policy(policy, arrays=True)
    device = next(policy.parameters()).device
    if episode is not None:
        games.reset_all(episode)
    obs = np.empty((num_steps + 1, *games.obs.shape), games.obs.dtype)
    obs[0] = games.obs
    reward = np.empty((num_steps, n), np.float32)
    terminated, truncated = np.empty((num_steps, n), np.bool_), np.empty((num_steps, n), np.bool_)
    actions, dists, values = (list[Any]([None]) * num_steps for _ in range(3))
    finals: dict[tuple[int, int], np.ndarray] = {}
    act, continuous = policy.acting(), policy.log_std is not None
    draws: Any = normal(noise).to(policy.actor.weight.dtype) if continuous else noise
    rows, draws = torch.from_numpy(obs).unbind(), draws.numpy() if act or policy.heads else draws.unbind()
    if not act:
        first = policy.preprocess(rows[0].to(device))
        preprocessed = first.new_empty(num_steps, *first.shape)

    def decide(t: int) -> Any:
        if act:  # what plays an MLP needs is its actions: the rest is found for all decisions at once
            taken = actions[t] = act(obs[t], draws[t])
        else:
            preprocessed[t] = x = policy.preprocess(rows[t].to(device))
            dists[t], values[t], _ = policy.judge(x)
            taken = actions[t] = dists[t].at(draws[t]) if continuous else dists[t].sample(draws[t])
        if taken.ndim == 1:
            return taken.tolist()
        return taken.cpu().numpy() if isinstance(taken, Tensor) else taken

    env_s = perf_counter() - start if episode is not None else 0.0
    for t in range(num_steps):
        action = decide(t)
        before = perf_counter()
        steps = games.step(action, obs[t + 1])
        while lost := steps.restarted:  # recreated: their last transition is truncated and they act again
            for i in lost:
                if t and not terminated[t - 1, i] and not truncated[t - 1, i]:
                    truncated[t - 1, i], finals[t - 1, i] = True, obs[t, i].copy()
            obs[t, lost] = obs[t + 1, lost]
            steps.update(lost, games.step(decide(t), obs[t + 1], lost))
        env_s += perf_counter() - before
        reward[t], terminated[t], truncated[t] = steps.reward, steps.terminated, steps.truncated
        finals |= {(t, i): final for i, final in steps.final.items() if steps.truncated[i] and not steps.terminated[i]}
        if episode is not None and steps.final:
            break
    length = t + 1
    bootstrap_obs = {(length - 1, i): last for i, last in enumerate(obs[length])} | finals
    after = policy.preprocess(torch.from_numpy(np.stack(list(bootstrap_obs.values()))).to(device))
    if act:
        seen = policy.preprocess(torch.from_numpy(obs[:length].reshape(-1, *obs.shape[2:])))
        played = torch.from_numpy(np.stack(actions[:length]))
        given, judged = policy.judged(torch.cat((seen, after)))
        seen, old, value = (x[: length * n].unflatten(0, (length, n)) for x in (seen, given, judged))
        later = judged[length * n :]
    else:
        found = actions[:length], [dist.params for dist in dists[:length]], values[:length]
        played, old, value = (torch.stack([*map(torch.as_tensor, x)]) for x in found)
        seen = preprocessed[:length]
        later = torch.as_tensor(policy.judge(after)[1])
    at = torch.tensor(list(bootstrap_obs), device=device).T
    ended = torch.from_numpy(terminated[:length]).to(device)
    rollout = Rollout(
        obs=torch.from_numpy(obs[:length]),
        preprocessed=seen,
        action=played,
        logp=policy.distribution(old, known=True).log_prob(played),
        params=old,
        reward=torch.from_numpy(reward[:length]).to(value),
        terminated=ended,
        truncated=torch.from_numpy(truncated[:length]).to(device) & ~ended,
        value=value,
        next_value=next_values(value, later, at, ended),
        bootstrap_obs=after,
        bootstrap_index=at,
        episodes=games.take_finished(),
        env_s=env_s,
        act_s=perf_counter() - start - env_s,
    )
    return rollout if episode is None else rollout.cut(length, games.indices)
