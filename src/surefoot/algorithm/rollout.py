"""Collecting experience: the present policy acts for T steps in N environments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from surefoot.algorithm.fast_paths import distinct_windows, make_actor, mlp_twin
from surefoot.envs.interface import Episode
from surefoot.errors import Fault, Interrupted
from surefoot.models.distributions import colored
from surefoot.models.recurrent import Sequences
from surefoot.parallel.ranks import Alone, Ranks
from surefoot.rng import Purpose, stream

if TYPE_CHECKING:
    from surefoot.algorithm.callback import Callback
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.envs.vector import EnvVector
    from surefoot.models.policy import DistinctWindows, Policy

Array = NDArray[Any]
MIN_SHARE = 128  # samples of a minibatch: fewer take an MLP nearly as long
LOOKS = 32  # times in a rollout that a rank asks whether to cut it, since an answer over sockets takes time


@dataclass
class Rollout:
    """What was observed and done. Everything at [t, n] belongs to the transition at t of environment n."""

    obs: Tensor  # [T, N, ...] in the environment's dtype (uint8 stays uint8)
    preprocessed: Tensor  # [T, N, ...] preprocessed by the policy
    action: Tensor  # [T, N] int64; of several choices [T, N, D]; continuous [T, N, A], as sampled
    logp: Tensor  # [T, N] log probability of the action under the policy that acted
    params: Tensor  # [T, N, ...] parameters of that policy's distributions, for exact KL divergences
    reward: Tensor  # [T, N] raw
    terminated: Tensor  # [T, N] bool: the task ended here, the future is worth 0
    truncated: Tensor  # [T, N] bool: the episode was cut here, the future is worth V
    value: Tensor  # [T, N] the critic's V(s_t)
    next_value: Tensor  # [T, N] V of the true successor; 0 at a termination
    bootstrap_obs: Tensor  # [K, ...] preprocessed next observations that are not rows: last step, truncations
    bootstrap_index: Tensor  # [2, K] their t and n
    episodes: list[Episode]  # finished during this rollout
    env_s: float  # seconds in the environments
    act_s: float  # seconds in the policy
    valid: Tensor | None = None  # [T, N] bool: False where there was no transition (a reset, after a cut); None: all
    begun: tuple[int, ...] = ()  # environments whose episode begins in row 0
    memory: Tensor | None = None  # [T + 1, N, M] what was remembered before each step, and is after the last
    windows: DistinctWindows | None = None  # `preprocessed`, then `bootstrap_obs`; where learning is faster so

    @property
    def ended(self) -> Tensor:
        """[T, N] bool: the next row belongs to another episode."""
        return self.terminated | self.truncated

    @property
    def terminations(self) -> Tensor:
        """[T, N] bool: the task ended here, in a row that is a transition."""
        return self.terminated if self.valid is None else self.terminated & self.valid

    def valid_of_all_envs(self, ranks: Ranks) -> Tensor | None:
        """`valid` of all ranks' environments, [T, environments]; None where all are."""
        valid = None if self.valid is None else ranks.gather_columns(self.valid.long()) > 0
        return None if valid is None or bool(valid.all()) else valid

    def evaluated_by(self, policy: Policy) -> list[Tensor]:
        """What `policy` says of it now: parameters of distributions and values of all rows, then bootstrap_obs's."""
        obs: Any = self.windows or torch.cat((self.preprocessed.flatten(0, 1), self.bootstrap_obs))
        if self.memory is None:
            return [*(mlp_twin(policy) or policy).evaluate_all(obs)]
        order, sequences = self.whole_episodes()
        evaluated = policy.evaluate_all(obs[order if self.windows else torch.from_numpy(order)], sequences)
        back = torch.from_numpy(order).to(self.value.device)
        return [torch.empty_like(x).index_copy(0, back, x) for x in evaluated]

    def with_values_of(self, policy: Policy) -> Rollout:
        """The same rollout with the values that `policy` gives it."""
        values, count = self.evaluated_by(policy)[1], self.value.numel()
        value = values[:count].view_as(self.value)
        next_value = next_values(value, values[count:], self.bootstrap_index, self.terminated)
        return replace(self, value=value, next_value=next_value)

    def begins(self, length: int) -> Array:
        """[T, N] bool: rows where a sequence of at most `length` steps begins; none goes on over an ending."""
        begins = np.ones(self.reward.shape, np.bool_)
        begins[1:] = self.ended[:-1].numpy(force=True)
        begins[::length] = True
        return begins

    def whole_episodes(self) -> tuple[Array, Sequences]:
        """All rows [T N], then the bootstrap observations, in the order of their episodes, and which are one sequence.

        An observation that follows the last row of an episode is remembered with it.
        """
        assert self.memory is not None
        (num_steps, n), (t, env) = self.reward.shape, self.bootstrap_index.numpy(force=True)
        at = np.arange(num_steps)[:, None] + (num_steps + 1) * np.arange(n)
        order = np.argsort(np.append(at.ravel(), (num_steps + 1) * env + t + 0.5), kind="stable")
        begins = np.append(self.begins(num_steps).ravel(), np.zeros(len(t), np.bool_))[order]
        first = torch.from_numpy(order[begins]).to(self.memory.device)
        return order, Sequences.of(begins, self.memory.flatten(0, 1).index_select(0, first))

    def of_all_envs(self, ranks: Ranks) -> Rollout:
        """All ranks' environments side by side, the same on every rank."""
        local = {k: v.contiguous().clone() for k, v in vars(self).items() if isinstance(v, Tensor)}
        local["bootstrap_index"][1] += ranks.rank * self.reward.shape[1]
        parts = [load(data) for data in ranks.all_gather_bytes(save(local))]
        rows: dict[str, Any] = {
            k: torch.cat([part[k] for part in parts], int(k != "bootstrap_obs")).to(x.device) for k, x in local.items()
        }
        return replace(self, **rows)

    def rows(self) -> dict[str, Any]:
        """The tensors that have a row for each step."""
        return {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and not k.startswith("bootstrap")}

    def cut(self, length: int, indices: range) -> Rollout:
        """The first `length` steps, as trajectories of the environments `indices` that all ended there."""
        shorter = replace(self, **{k: v[:length] for k, v in self.rows().items()})
        shorter.truncated = shorter.truncated.clone()
        shorter.truncated[-1] = ~shorter.terminated[-1]
        scores = shorter.reward.double().sum(0).tolist()
        shorter.episodes = [Episode(n, score, length) for n, score in zip(indices, scores, strict=True)]
        return shorter

    def padded(self, num_steps: int) -> Rollout:
        """With rows up to `num_steps` that are no transitions, after those played; `valid` tells which are which.

        Where the rollout was cut is a truncation: the future is worth V of the observation there.
        """
        length, more = len(self.reward), num_steps - len(self.reward)
        rows = {"valid": torch.ones_like(self.terminated)} | self.rows()
        rows = {k: torch.cat((v, v[-1:].expand(more, *v.shape[1:]))) for k, v in rows.items()}  # repeats the last
        if more:
            rows["truncated"][length - 1] = ~self.terminated[-1]
            rows["truncated"][length:], rows["terminated"][length:], rows["valid"][length:] = False, True, False
        return replace(self, **rows)


def collect_rollout(cfg: Config, state: State, ranks: Ranks, callback: Callback) -> Rollout | None:
    """The next rollout, on all ranks; None where a signal or a fault has broken it off on any of them.

    `state.env_snapshot` then still is where it began. With `cfg.sync_fraction` below 1 ranks that are slow have shorter
    ones: at least a quarter of the steps. Source: Wijmans et al. 2020 (DD-PPO), section 3.
    """
    num_steps = state.num_steps(cfg)
    shape = num_steps, cfg.num_envs, *state.policy.noise_shape
    white = torch.from_numpy(stream(cfg.seed, Purpose.ACTIONS, state.iteration).random(shape, "float32"))
    noise = colored(white, noise_color(cfg, state))[:, ranks.columns(cfg.num_envs)].to(cfg.device)
    episode, preempt = state.iteration if cfg.from_reset else None, cfg.sync_fraction < 1
    rollout, cause = None, None

    def is_cut(played: int) -> bool:
        return 4 * played >= num_steps and played % max(1, num_steps // LOOKS) == 0 and ranks.is_cut(state.iteration)

    try:
        with callback.collecting():
            rollout = collect(state.policy, state.envs, noise, episode, state.memory, is_cut if preempt else None)
    except (Interrupted, Fault) as error:
        cause = error
    if preempt and rollout is not None and len(rollout.reward) == num_steps:
        ranks.finish_rollout(state.iteration, cfg.sync_fraction)
    length = ranks.all_reduce_min(0 if rollout is None else len(rollout.reward))
    if rollout is None or length == 0:
        callback.on_dropped_rollout(cause)
        return None
    if cfg.from_reset and length < len(rollout.reward):  # all ranks' environments stop where the first of them ended
        return rollout.cut(length, state.envs.indices)
    return rollout


def noise_color(cfg: Config, state: State) -> float:
    """`cfg.noise_color` while actions are drawn from colored noise, else 0.

    With a `noise_rarity` the first rollout's noise is white: it may tell whether episodes end by themselves.
    """
    often = cfg.noise_rarity and (state.ends_often or not state.iteration)
    return 0.0 if often or state.progress(cfg) >= cfg.noise_until else cfg.noise_color


def gather_if_small(rollout: Rollout, cfg: Config, state: State, ranks: Ranks) -> tuple[Rollout, Ranks]:
    """The rollout that this rank learns from, and the ranks that share its minibatches.

    Each rank computes its share of every minibatch. But a small share of an MLP's takes as long as the whole, without a
    memory: then every rank learns from all environments by itself, all alike.
    """
    if cfg.sync_fraction < 1:
        rollout = rollout.padded(state.num_steps(cfg))
    minibatch_size = cfg.minibatch_size or cfg.num_envs * len(rollout.reward)
    small = state.policy.hidden and state.policy.memory is None and minibatch_size < ranks.count * MIN_SHARE
    if ranks.count > 1 and small:
        return rollout.of_all_envs(ranks), Alone()
    windows = distinct_windows(state.policy, rollout.preprocessed, rollout.bootstrap_obs)
    return replace(rollout, windows=windows), ranks


def next_values(value: Tensor, bootstrap_value: Tensor, index: Tensor, terminated: Tensor) -> Tensor:
    """V of the true successors, [T, N]: the next row's, `bootstrap_value` [K] at `index` [2, K], 0 if terminated."""
    next_value = torch.cat((value[1:], value[:1]))
    next_value[tuple(index)] = bootstrap_value
    return next_value.masked_fill(terminated, 0.0)


@torch.no_grad()
def collect(
    policy: Policy,
    envs: EnvVector,
    noise: Tensor,
    episode: int | None = None,
    memory: Tensor | None = None,
    is_cut: Callable[[int], bool] | None = None,
) -> Rollout:
    """Act for len(noise) steps in every environment, from where they are.

    `noise` [T, N] uniform in [0, 1): one number decides one action; [T, N, K] where an action takes K of them.
    `episode`: the lesson's way: all environments begin this episode, and all stop where the first one ends.
    `memory` [N, M]: what the policy remembers of the episodes so far; None: nothing.
    `is_cut`: whether to stop after so many steps.
    """
    start = perf_counter()
    num_steps, n = noise.shape[:2]
    actor = make_actor(policy, noise, policy.no_memory(n) if memory is None else memory)
    actor.forget(0, [i for i, length in enumerate(envs.length) if length == 0])
    if episode is not None:
        envs.reset_all(episode)
    obs = np.empty((num_steps + 1, *envs.obs.shape), envs.obs.dtype)
    obs[0] = envs.obs
    reward = np.empty((num_steps, n), np.float32)
    terminated, truncated = np.empty((num_steps, n), np.bool_), np.empty((num_steps, n), np.bool_)
    valid = np.ones((num_steps, n), np.bool_) if envs.next_step else None
    finals, begun = dict[tuple[int, int], Any](), {i for i, length in enumerate(envs.length) if length == 0}
    env_s = perf_counter() - start if episode is not None else 0.0
    for t in range(num_steps):
        action = actor.act(t, obs[t])
        before = perf_counter()
        step = envs.step(action, obs[t + 1])
        while (
            lost := step.restarted
        ):  # these crashed and were recreated: they act again, from a new episode's first obs
            begun |= set(lost) if t == 0 else set()
            for i in lost:  # their last transition is truncated
                if t and not terminated[t - 1, i] and not truncated[t - 1, i]:
                    truncated[t - 1, i], finals[t - 1, i] = True, obs[t, i].copy()
            obs[t, lost] = obs[t + 1, lost]
            actor.forget(t, lost)
            step.update(lost, envs.step(actor.act(t, obs[t]), obs[t + 1], lost))
        env_s += perf_counter() - before
        if over := [*step.final, *step.skipped]:
            actor.forget(t + 1, over)
        with np.errstate(under="ignore"):  # an environment may have made NumPy raise
            reward[t], terminated[t], truncated[t] = step.reward, step.terminated, step.truncated
        if valid is not None:
            valid[t, step.skipped], terminated[t, step.skipped] = False, True  # nothing flows over these rows
        finals |= {(t, i): final for i, final in step.final.items() if step.truncated[i] and not step.terminated[i]}
        if (episode is not None and step.final) or (is_cut is not None and is_cut(t + 1)):
            break
    length = t + 1
    bootstrap = {(length - 1, i): last for i, last in enumerate(obs[length])} | finals
    done = actor.decisions(obs[:length], np.stack(list(bootstrap.values())), list(bootstrap))
    device = done.value.device
    index = torch.tensor(list(bootstrap), device=device).T
    ended = torch.from_numpy(terminated[:length]).to(device)
    rollout = Rollout(
        obs=torch.from_numpy(obs[:length]),
        preprocessed=done.preprocessed,
        action=done.action,
        logp=policy.distribution(done.params, stored=True).log_prob(done.action),
        params=done.params,
        reward=torch.from_numpy(reward[:length]).to(done.value),
        terminated=ended,
        truncated=torch.from_numpy(truncated[:length]).to(device) & ~ended,
        value=done.value,
        next_value=next_values(done.value, done.bootstrap_value, index, ended),
        bootstrap_obs=done.bootstrap_obs,
        bootstrap_index=index,
        episodes=envs.take_finished(),
        env_s=env_s,
        act_s=perf_counter() - start - env_s,
        valid=None if valid is None else torch.from_numpy(valid[:length]).to(device),
        begun=tuple(begun),
        memory=done.memory,
    )
    return rollout if episode is None else rollout.cut(length, envs.indices)
