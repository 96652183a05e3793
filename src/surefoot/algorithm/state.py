"""Everything a run is between two iterations, in one object."""

from __future__ import annotations

import copy
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from surefoot.config import Config
from surefoot.envs.interface import Episode
from surefoot.envs.vector import EnvVector
from surefoot.errors import UserError
from surefoot.models.optimizer_steps import StepResult
from surefoot.models.policy import Policy, bf16_units, flatten
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.parallel.ranks import Alone, Ranks
from surefoot.rng import Purpose, integer


@dataclass
class State:
    """A run between two iterations."""

    policy: Policy
    flat: nn.Parameter
    """all of the policy's parameters in one row; they are views of it"""
    gradients: torch.Tensor
    """[ranks, P] where all ranks' are seen; otherwise [1, P], this rank's own"""
    optimizer: StepResult
    ema_params: torch.Tensor
    """moving average of `flat` over the iterations: the policy that is kept"""
    envs: EnvVector
    learning_rate: float
    """the learning rate as adapted so far"""
    steps: int = 0
    """decisions made, all games together"""
    iteration: int = 0
    """rollouts learned from"""
    seconds: float = 0.0
    """time spent training"""
    episodes: int = 0
    """episodes finished"""
    skipped: int = 0
    """updates whose gradient was not finite"""
    return_moments: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """count, mean and sum of squared distances of what episodes have paid so far, discounted"""
    advantage_std: float = 0.0
    """deviation of the weights of earlier rollouts, where the Config has a memory for it (`credit.OverBatch`)"""
    running_return: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    """what the present episodes have paid so far, discounted; one number for each of this rank's games"""
    ranks: int = 0
    """that wrote the checkpoint this state came from; 0 where it is new"""
    env_snapshot: dict[str, Any] = field(default_factory=dict)
    """where the games were when the present iteration began"""
    recent_episodes: deque[Episode] = field(default_factory=lambda: deque(maxlen=100))
    """the last 100 finished episodes"""

    @property
    def gradient(self) -> torch.Tensor:
        """The flat gradient; the parameters' gradients are views of it."""
        assert self.flat.grad is not None
        return self.flat.grad

    def update_ema(self, decay: float) -> None:
        """Take this iteration's parameters into the mean, m <- decay m + (1 - decay) theta; the first ones replace it.

        The steps' noise averages out: the mean plays as after small steps while learning goes on with large ones.
        Source: Polyak & Juditsky 1992.
        """
        self.ema_params.lerp_(self.flat.detach(), max(1 - decay, 1 / self.iteration))

    def ema_policy(self) -> Policy:
        """The policy with the mean parameters."""
        policy = copy.deepcopy(self.policy)
        flatten(policy).data.copy_(self.ema_params)
        return policy

    def progress(self, cfg: Config) -> float:
        """How much of the run is done, 0 to 1."""
        by_steps = self.steps / cfg.total_steps if cfg.total_steps else 0.0
        by_iterations = self.iteration / cfg.total_iterations if cfg.total_iterations else 0.0
        return max(by_steps, by_iterations)

    def num_steps(self, cfg: Config) -> int:
        """Decisions per game in the next rollout: the present stage's."""
        return cfg.num_steps[min(len(cfg.num_steps) - 1, int(self.progress(cfg) * len(cfg.num_steps)))]

    @property
    def return_std(self) -> float:
        """Of what episodes have paid so far, discounted; 1 before there is any."""
        count, _, square = self.return_moments
        return math.sqrt(square / count + 1e-8) if count else 1.0

    def snapshot_envs(self) -> None:
        """Keep where the games are now."""
        carry = {
            f"{n}/carry": np.array([c]) for n, c in zip(self.envs.indices, self.running_return.tolist(), strict=True)
        }
        self.env_snapshot = self.envs.snapshot() | carry

    def mean_score(self) -> float:
        """Mean raw score of the last 100 finished episodes; NaN before the first."""
        return (
            sum(e.score for e in self.recent_episodes) / len(self.recent_episodes)
            if self.recent_episodes
            else float("nan")
        )


def build(cfg: Config, observation: spaces.Space[Any], action: spaces.Space[Any]) -> Policy:
    """The Config's policy with its first weights, on its device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(cfg.seed, Purpose.WEIGHTS))
        policy = cfg.network.build(observation, action)
    try:
        large = not policy.pairs  # an MLP's layers are too small to gain
        policy.bf16 = cfg.bf16 and large and torch.device(cfg.device).type == "cpu" and bf16_units() != ""
        return policy.to(cfg.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{cfg.device}' cannot be used: {str(error).splitlines()[0]}") from error


def laid_out(policy: Policy, cfg: Config, ranks: Ranks) -> tuple[nn.Parameter, torch.Tensor, StepResult, torch.Tensor]:
    """The parameters in one row, all gradients seen here, what steps them, and their first mean.

    Where ranks have memory in common a network's parameters and the optimizer's moments are there, once, and each rank
    steps a part of them; an MLP is too small for it.
    """
    row = torch.cat([p.detach().flatten() for p in policy.parameters()])
    table = (Alone() if policy.pairs else ranks).alloc_shared(3, row)
    gradients = table[3:]
    rank, count = (ranks.rank, ranks.count) if len(gradients) > 1 else (0, 1)
    flat = flatten(policy, table[0], gradients[rank])
    return flat, gradients, cfg.optimizer.build(policy, flat, table[1:3], rank, count), flat.detach().clone()


def initial(cfg: Config, ranks: Ranks, heartbeat: Heartbeat | None = None) -> State:
    """A run before its first decision."""
    columns = ranks.columns(cfg.num_envs)
    games = EnvVector(cfg.env, cfg.seed, range(columns.start, columns.stop), cfg.env_restarts, heartbeat)
    policy = build(cfg, games.observation_space, games.action_space)
    games.reset_all()
    carry = torch.zeros(len(games), dtype=torch.float64)
    state = State(policy, *laid_out(policy, cfg, ranks), games, cfg.learning_rate.initial, running_return=carry)
    state.snapshot_envs()
    return state
