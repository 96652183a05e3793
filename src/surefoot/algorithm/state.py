"""Everything a run is between two iterations, in one object."""

from __future__ import annotations

import copy
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from surefoot.algorithm.fast_paths import mlp_twin
from surefoot.envs.interface import Episode
from surefoot.envs.vector import EnvVector
from surefoot.models.adam import AdamSteps
from surefoot.models.muon import MuonSteps
from surefoot.models.policy import Policy, build_policy, flatten
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.parallel.ranks import Alone, Ranks

if TYPE_CHECKING:
    from surefoot.config import Config
    from surefoot.fast.mlp import FastMLP


@dataclass
class State:
    """A run between two iterations."""

    policy: Policy
    flat: nn.Parameter  # all of the policy's parameters in one row; they are views of it
    gradients: torch.Tensor  # [ranks, P] where all ranks' are seen; otherwise [1, P], this rank's own
    optimizer: AdamSteps | MuonSteps
    ema_params: torch.Tensor  # moving average of `flat`: the policy that is evaluated, saved and filmed
    mlp: FastMLP | None  # the NumPy twin of an MLP on a processor
    envs: EnvVector
    learning_rate: float  # the learning rate as adapted so far
    kl_coef: float = 0.0  # the KL penalty's coefficient as adapted so far
    steps: int = 0  # steps taken, all environments together
    iteration: int = 0  # rollouts learned from
    seconds: float = 0.0  # time spent training
    episodes: int = 0  # episodes finished
    terminations: int = 0  # steps at which the task terminated (a lost life too)
    ends_often: bool = False  # they were once as frequent as `noise_rarity` says; then for good
    skipped: int = 0  # updates whose gradient was not finite
    return_moments: tuple[float, float, float] = (0.0, 0.0, 0.0)  # count, mean, sum of squares of returns so far
    reward_shift: float | None = None  # what rewards are centered by (`ScaledReward`); None: not yet decided
    advantage_std: float = 0.0  # running std of the advantages (`advantages.OverBatch` with a memory)
    running_return: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    """discounted return so far of each of this rank's present episodes"""
    memory: torch.Tensor | None = None  # [environments, M] what the policy remembers of this rank's present episodes
    ranks: int = 0  # that wrote the checkpoint this state came from; 0 where it is new
    env_snapshot: dict[str, Any] = field(default_factory=dict)  # the environments at the iteration's beginning
    recent_episodes: deque[Episode] = field(default_factory=lambda: deque(maxlen=100))  # the last 100 finished episodes

    @property
    def gradient(self) -> torch.Tensor:
        """The flat gradient; the parameters' gradients are views of it."""
        assert self.flat.grad is not None
        return self.flat.grad

    def update_ema(self, decay: float) -> None:
        """m <- m + w (theta - m), w = max(1 - decay, 10 / (9 + k)), at most 1, theta of iteration k.

        The noise of single steps averages out, as with small steps, while learning goes on with large ones. In a short
        run it is about the last tenth, since what learns fast has left the older parameters far behind.
        Source: Polyak & Juditsky 1992.
        """
        self.ema_params.lerp_(self.flat.detach(), min(1.0, max(1 - decay, 10 / (9 + self.iteration))))

    def ema_policy(self) -> Policy:
        """The policy with the averaged parameters."""
        policy = copy.deepcopy(self.policy)
        flatten(policy).data.copy_(self.ema_params)
        return policy

    def progress(self, cfg: Config) -> float:
        """How much of the run is done, 0 to 1."""
        by_steps = self.steps / cfg.total_steps if cfg.total_steps else 0.0
        by_iterations = self.iteration / cfg.total_iterations if cfg.total_iterations else 0.0
        return max(by_steps, by_iterations)

    def num_steps(self, cfg: Config) -> int:
        """Steps per environment in the next rollout: those of the present stage."""
        return cfg.num_steps[min(len(cfg.num_steps) - 1, int(self.progress(cfg) * len(cfg.num_steps)))]

    @property
    def return_std(self) -> float:
        """Std of the running discounted returns; 1 before there are any."""
        count, _, square = self.return_moments
        return math.sqrt(square / count + 1e-8) if count else 1.0

    @property
    def returns(self) -> tuple[float, float, float, float | None]:
        """The moments and the rewards' shift: in what units the critic counts."""
        return *self.return_moments, self.reward_shift

    def snapshot_envs(self) -> None:
        """Keep where the environments are now."""
        pairs = zip(self.envs.indices, self.running_return.tolist(), strict=True)
        self.env_snapshot = self.envs.snapshot() | {f"{n}/carry": np.array([x]) for n, x in pairs}
        if self.memory is not None:
            rows = zip(self.envs.indices, self.memory.numpy(force=True), strict=True)
            self.env_snapshot |= {f"{n}/memory": row for n, row in rows}

    def mean_score(self) -> float:
        """Mean raw score of the last 100 finished episodes; NaN before the first."""
        scores = [e.score for e in self.recent_episodes]
        return sum(scores) / len(scores) if scores else math.nan


def flat_parameters(policy: Policy, cfg: Config, ranks: Ranks) -> dict[str, Any]:
    """The fields of State that hold a policy's parameters, their gradients, the optimizer and the moving average.

    Ranks that share memory keep a network's parameters and the optimizer's moments there, once, and each rank steps a
    part of them; an MLP is too small for that.
    """
    row = torch.cat([p.detach().flatten() for p in policy.parameters()])
    table = (Alone() if policy.hidden else ranks).alloc_shared(3, row)
    gradients = table[3:]
    rank, count = (ranks.rank, ranks.count) if len(gradients) > 1 else (0, 1)
    flat = flatten(policy, table[0], gradients[rank])
    optimizer = cfg.optimizer.build(policy, flat, table[1:3], rank, count)
    ema_params, mlp = flat.detach().clone(), mlp_twin(policy)
    return {"flat": flat, "gradients": gradients, "optimizer": optimizer, "ema_params": ema_params, "mlp": mlp}


def initial(cfg: Config, ranks: Ranks, heartbeat: Heartbeat | None = None) -> State:
    """A run before its first step."""
    columns = ranks.columns(cfg.num_envs)
    envs = EnvVector(cfg.env, cfg.seed, range(columns.start, columns.stop), cfg.env_restarts, heartbeat)
    envs.announce(max(cfg.num_steps))
    policy = build_policy(cfg, envs.observation_space, envs.action_space)
    envs.reset_all()
    fields = flat_parameters(policy, cfg, ranks) | {"envs": envs, "learning_rate": cfg.learning_rate.initial}
    fields |= {"running_return": torch.zeros(len(envs), dtype=torch.float64), "memory": policy.no_memory(len(envs))}
    state = State(policy, **fields, kl_coef=cfg.kl_penalty.coef)
    state.snapshot_envs()
    return state
