"""One run, whole, as one frozen value: checked when built, to and from JSON. Imports neither torch nor numpy."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from surefoot.algorithm.advantages import GAE, Advantage, Normalize, OverBatch
from surefoot.algorithm.objectives import ClippedSurrogate, Entropy, EntropyBonus, Objective
from surefoot.algorithm.rewards import RawReward, Reward
from surefoot.algorithm.schedules import AdaptiveRate, LearningRate
from surefoot.envs import Env
from surefoot.envs.atari import Pong
from surefoot.errors import UserError, require
from surefoot.models.networks import Network, SmallCNN
from surefoot.models.optimizers import Adam, Optimizer


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Two runs with equal Configs on the same machine are the same run."""

    env: Env = field(default_factory=Pong)
    """the game"""
    network: Network = field(default_factory=SmallCNN)
    """the policy's network"""
    num_envs: int = 32
    """games played in parallel"""
    num_steps: tuple[int, ...] = (64,)
    """decisions per game in one rollout; several numbers are stages, each for an equal share of the run"""
    from_reset: bool = False
    """start every rollout with new games and stop it where the first one ends (the lesson's trajectories)"""
    reward: Reward = field(default_factory=RawReward)
    """what is learned of the rewards; scores are always raw"""
    advantage: Advantage = field(default_factory=GAE)
    """what an action deserves"""
    normalize: Normalize = field(default_factory=OverBatch)
    """how it is compared"""
    objective: Objective = field(default_factory=ClippedSurrogate)
    """how hard the policy is pushed"""
    entropy: EntropyBonus = field(default_factory=Entropy)
    """what keeps it exploring"""
    value_coef: float = 0.5
    """weight of the critic's squared error"""
    value_clip: float = math.inf
    """how far the critic may move from its old value before moving on towards the target wins nothing"""
    num_epochs: int = 3
    """passes over each rollout"""
    recompute: bool = False
    """the critic, which learns in every pass, judges the rollout anew before each further one"""
    target_kl: float = math.inf
    """an update that finds the policy further than this from the old one, in nats, ends a rollout's passes"""
    minibatch_size: int = 0
    """decisions per update; 0: the whole rollout"""
    learning_rate: LearningRate = field(default_factory=AdaptiveRate)
    """The learning rate"""
    max_grad_norm: float = 1.0
    """longer gradients are shortened to this"""
    optimizer: Optimizer = field(default_factory=Adam)
    """how a gradient becomes a step"""
    ema_decay: float = 0.0
    """the policy that is kept is a moving average over the iterations, this much of it old; 0: the newest"""
    total_steps: int = 1_000_000
    """decisions of the whole run, all games together; 0: no bound"""
    total_iterations: int = 0
    """rollouts of the whole run; 0: no bound"""
    max_seconds: float = math.inf
    """stop training after this time"""
    stop_at: float = math.inf
    """stop training when the last 100 finished episodes score this on average"""
    save_every: float = 60.0
    """seconds between checkpoints"""
    env_restarts: int = 0
    """environments that raise are made anew, this many times in one go of the run; 0: the first one ends it"""
    skip_updates: int = 0
    """updates whose gradient is not finite are skipped, this many in the whole run; 0: the first one ends it"""
    timeout: float = 300.0
    """seconds without a sign of life after which a hanging environment or a stopped process ends the run"""
    eval_every: int = 0
    """decisions between evaluations during training, of which the best policy is kept; 0: none, the last is kept"""
    eval_games: int = 10
    """full games of each of them"""
    eval_episodes: int = 100
    """episodes of the closing evaluation; 0: none"""
    seed: int = 1
    """decides every random number of the run"""
    bf16: bool = False
    """compute the network's body in bfloat16 on processors with units for it (AMX, AVX512-BF16); others ignore it"""
    device: str = "cpu"
    """where the network computes, as for torch.device"""
    task: str = "pong"
    """the preset or environment this came from"""

    def __post_init__(self) -> None:
        for name, kind in _hints(Config).items():
            _build(kind, _plain(getattr(self, name)), name)
        for name in ("num_envs", "num_epochs", "eval_games"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        counts = ("minibatch_size", "total_steps", "total_iterations", "env_restarts", "skip_updates")
        for name in (*counts, "eval_every", "eval_episodes", "seed", "value_coef"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(self.seed < 2**63, "seed", self.seed, "below 2^63")
        for name in ("max_grad_norm", "max_seconds", "save_every", "timeout", "value_clip", "target_kl"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require(self.stop_at > -math.inf, "stop_at", self.stop_at, "a number")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "from 0 to below 1")
        require(self.value_coef < math.inf, "value_coef", self.value_coef, "finite")
        require(
            len(self.num_steps) > 0 and min(self.num_steps) >= 1,
            "num_steps",
            self.num_steps,
            "one or more numbers from 1",
        )
        require(self.total_steps + self.total_iterations > 0, "total_steps", 0, "above 0, or total_iterations")
        require(not (self.from_reset and self.recompute), "recompute", True, "off with from_reset")
        require(not (self.from_reset and self.env_restarts), "env_restarts", self.env_restarts, "0 with from_reset")
        if self.minibatch_size:
            require(
                not self.from_reset,
                "minibatch_size",
                self.minibatch_size,
                "0 with from_reset: its rollouts vary in length",
            )
            for num_steps in self.num_steps:
                parts, rest = divmod(self.num_envs * num_steps, self.minibatch_size)
                if rest or num_steps % parts:
                    sizes = [str(self.num_envs * d) for d in range(1, min(num_steps, 10_000) + 1) if num_steps % d == 0]
                    allowed = (
                        f"{', '.join(sizes)}: {self.num_envs} environments times a divisor of num_steps {num_steps}"
                    )
                    raise UserError(f"minibatch_size is {self.minibatch_size}; allowed is {allowed}")

    def minibatches(self, num_steps: int) -> int:
        """Updates in one pass over a rollout."""
        return self.num_envs * num_steps // self.minibatch_size if self.minibatch_size else 1

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; a chosen part names its type."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @staticmethod
    def from_json(data: Any) -> Config:
        """The Config that `to_json` wrote; raises UserError where it is not one."""
        return typing.cast(Config, _build(Config, data, "config"))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, float) and math.isinf(value):
        return None  # JSON has no infinity
    return list(value) if isinstance(value, tuple) else value


def _build(kind: Any, data: Any, where: str) -> Any:
    """The value of type `kind` that `_plain` made `data` from."""
    if isinstance(kind, types.UnionType):
        name = data.get("type") if isinstance(data, dict) else None
        members = {member.__name__: member for member in typing.get_args(kind)}
        if not isinstance(name, str) or name not in members:
            raise UserError(f"{where}: {name!r} is not one of {', '.join(members)}")
        return _build(members[name], {k: v for k, v in data.items() if k != "type"}, where)
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast(type, kind))
        if not isinstance(data, dict) or not set(data) <= set(hints):
            extra = sorted(set(data) - set(hints)) if isinstance(data, dict) else data
            raise UserError(f"{where}: {extra!r} is not among {', '.join(hints)}")
        return typing.cast(Any, kind)(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in data.items()})
    origin = typing.get_origin(kind) or kind
    if origin is tuple and isinstance(data, list):
        element = typing.get_args(kind)[0]
        return tuple(_build(element, x, where) for x in data)
    if kind is float and data is None:
        return math.inf
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError as error:
            raise UserError(f"{where}: the number is too large") from error
    if not isinstance(data, origin) or (kind is int and isinstance(data, bool)):
        raise UserError(f"{where}: {data!r} is not of type {getattr(kind, '__name__', kind)}")
    return data
