"""All settings of a run as one frozen dataclass, checked when created, to and from JSON; without torch and numpy."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surefoot.algorithm.advantages import GAE, Advantage, Normalize, OverBatch
from surefoot.algorithm.given_objective import GivenObjective
from surefoot.algorithm.objectives import (
    ClippedSurrogate,
    Entropy,
    EntropyBonus,
    FixedPenalty,
    KLPenalty,
    Objective,
    TrustRegion,
)
from surefoot.algorithm.rewards import RawReward, Reward
from surefoot.algorithm.schedules import AdaptiveRate, LearningRate, ScheduledRate
from surefoot.envs.atari import Pong
from surefoot.envs.interface import EnvSpec
from surefoot.errors import UserError, builtin, require
from surefoot.models.memory import Memory, NoMemory, Unit
from surefoot.models.networks import Network, SmallCNN
from surefoot.models.optimizers import Adam, Optimizer

if TYPE_CHECKING:
    from gymnasium import spaces

    from surefoot.models.policy import Policy


@dataclass(frozen=True)
class Config:
    """All settings of a run. Equal Configs on the same machine with the same number of ranks give the same run."""

    env: EnvSpec = field(default_factory=Pong)
    """the environment"""
    network: Network = field(default_factory=SmallCNN)
    """network of the policy and the value function"""
    memory: Memory = field(default_factory=NoMemory)
    """what the policy remembers of the episode so far"""
    num_envs: int = 32
    """parallel environments, all ranks together"""
    num_steps: tuple[int, ...] = (64,)
    """steps per environment in one rollout; several numbers: stages, each for an equal share of the run"""
    from_reset: bool = False
    """reset all environments before every rollout and end it with the first episode that ends, as the lesson does"""
    noise_color: float = 0.0
    """the noise of actions has a spectrum of 1/f^noise_color over a rollout; 0: white; 1: pink, which gets further"""
    noise_until: float = 1.0
    """fraction of the run's steps or iterations after which the noise is white; 1: never"""
    noise_rarity: int = 0
    """above 0: color it only until one in so many steps so far has terminated its task; the first rollout's is white"""
    reward: Reward = field(default_factory=RawReward)
    """rewards as they are learned from; scores are always raw"""
    advantage: Advantage = field(default_factory=GAE)
    """advantage estimator"""
    normalize: Normalize = field(default_factory=OverBatch)
    """normalisation of advantages"""
    objective: Objective = field(default_factory=ClippedSurrogate)
    """policy objective"""
    entropy: EntropyBonus = field(default_factory=Entropy)
    """entropy bonus"""
    kl_penalty: KLPenalty = field(default_factory=FixedPenalty)
    """penalty on KL(old || new policy)"""
    value_coef: float = 0.5
    """coefficient of the value loss"""
    fit_value_bias: bool = False
    """before its first update from a rollout, shift the critic's bias by its mean error"""
    value_clip: float = math.inf
    """clip range of the value loss (as in OpenAI's PPO2); inf: not clipped"""
    num_epochs: int = 3
    """epochs over each rollout"""
    recompute: bool = False
    """recompute values and advantages before every further epoch"""
    target_kl: float = math.inf
    """stop a rollout's epochs after the update that finds KL(old || present policy) above this, in nats; inf: never"""
    minibatch_size: int = 0
    """environment steps in a minibatch, all environments together; 0: the whole rollout"""
    learning_rate: LearningRate = field(default_factory=AdaptiveRate)
    """learning rate schedule"""
    max_grad_norm: float = 1.0
    """largest global norm of the gradient; a longer one is scaled down to it"""
    optimizer: Optimizer = field(default_factory=Adam)
    """optimizer"""
    ema_decay: float = 0.0
    """the policy that is evaluated and saved is a moving average over iterations with this decay; 0: the newest"""
    total_steps: int = 1_000_000
    """environment steps of the whole run, all environments together (a frame skip counts once); 0: no limit"""
    total_iterations: int = 0
    """iterations (rollouts) of the whole run; 0: no limit"""
    max_seconds: float = math.inf
    """stop training after this time"""
    stop_at: float = math.inf
    """stop training when the mean score of the last 100 episodes reaches this"""
    save_every: float = 60.0
    """seconds between checkpoints"""
    sync_fraction: float = 1.0
    """slow ranks cut a rollout once this share of the ranks has played it (DD-PPO); 1: never, and a seed is one run"""
    bf16_compress: bool = False
    """send gradients as bfloat16, in half the bytes, between ranks that share no memory (on several machines)"""
    env_restarts: int = 0
    """environments that crash are recreated, at most this many times until the run ends or is resumed"""
    skip_updates: int = 0
    """updates whose gradient is not finite are skipped, at most this many in the whole run"""
    timeout: float = 300.0
    """the run ends when an environment or a process has hung for this many seconds"""
    eval_every: int = 0
    """environment steps between evaluations during training, of which the best policy is kept; 0: no evaluations"""
    eval_games: int = 10
    """episodes of each evaluation during training"""
    eval_episodes: int = 100
    """episodes of the evaluation after training; 0: none"""
    eval_envs: int = 0
    """environments that an evaluation plays at a time, all ranks together; 0: as many as training has"""
    eval_max_steps: int = 27_000
    """evaluations cut an episode that has not ended after this many steps, and say so; 0: never (nor Atari's)"""
    seed: int = 1
    """seed of all random numbers"""
    bf16: bool = False
    """compute the network's body in bfloat16 where the processor has instructions for it (AMX, AVX512-BF16)"""
    device: str = "cpu"
    """device of the network, as for torch.device"""
    task: str = "pong"
    """the preset or environment these settings came from"""

    def __post_init__(self) -> None:
        if callable(self.objective) and not isinstance(self.objective, Objective | GivenObjective):
            object.__setattr__(self, "objective", GivenObjective.of(self.objective))
        if callable(self.learning_rate) and not isinstance(self.learning_rate, LearningRate):
            object.__setattr__(self, "learning_rate", ScheduledRate.of(self.learning_rate))
        normalize(self)
        for name, kind in _hints(Config).items():
            _build(kind, _plain(getattr(self, name)), name)
        for name in ("num_envs", "num_epochs", "eval_games"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        counts = ("noise_rarity", "minibatch_size", "total_steps", "total_iterations", "env_restarts", "skip_updates")
        for name in (*counts, "eval_every", "eval_episodes", "eval_envs", "eval_max_steps", "seed", "value_coef"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(self.seed < 2**63, "seed", self.seed, "below 2^63")
        for name in ("max_grad_norm", "max_seconds", "save_every", "timeout", "value_clip", "target_kl"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require(self.stop_at > -math.inf, "stop_at", self.stop_at, "a number")
        require(0 <= self.noise_color <= 2, "noise_color", self.noise_color, "from 0 to 2")
        require(0 <= self.noise_until <= 1, "noise_until", self.noise_until, "from 0 to 1")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "from 0 to below 1")
        require(self.value_coef < math.inf, "value_coef", self.value_coef, "finite")
        require(min(self.num_steps, default=0) >= 1, "num_steps", self.num_steps, "one or more numbers from 1")
        require(self.total_steps + self.total_iterations > 0, "total_steps", 0, "above 0, or total_iterations")
        if isinstance(self.objective, TrustRegion):
            rate, kl = type(self.learning_rate).__name__, "what the objective's max_kl bounds already with TrustRegion"
            require(rate != "AdaptiveRate", "learning_rate", rate, f"FixedRate or LinearRate: AdaptiveRate steers {kl}")
            require(self.target_kl == math.inf, "target_kl", self.target_kl, f"inf: it stops at {kl}")
        require(not (self.from_reset and self.recompute), "recompute", True, "off with from_reset")
        require(0 < self.sync_fraction <= 1, "sync_fraction", self.sync_fraction, "above 0, at most 1")
        whole = self.sync_fraction == 1 or not self.from_reset
        require(whole, "sync_fraction", self.sync_fraction, "1 with from_reset")
        require(not (self.from_reset and self.env_restarts), "env_restarts", self.env_restarts, "0 with from_reset")
        self._check_minibatches()
        if isinstance(self.memory, Unit):
            name, length = type(self.memory).__name__, self.memory.length
            require(not self.from_reset, "memory", name, "NoMemory with from_reset, whose rollouts vary")
            for num_steps in self.num_steps:
                most = num_steps // self.minibatches(num_steps)
                allowed = f"0, or a divisor of {most}: the steps that one environment has in a minibatch"
                require(most % (length or 1) == 0, f"{name}.length", length, allowed)

    def _check_minibatches(self) -> None:
        if not self.minibatch_size:
            return
        require(not self.from_reset, "minibatch_size", self.minibatch_size, "0 with from_reset, whose rollouts vary")
        for num_steps in self.num_steps:
            count, rest = divmod(self.num_envs * num_steps, self.minibatch_size)
            if rest or num_steps % count:
                sizes = [str(self.num_envs * d) for d in range(1, min(num_steps, 10_000) + 1) if num_steps % d == 0]
                allowed = f"{', '.join(sizes)}: {self.num_envs} environments times a divisor of num_steps {num_steps}"
                require(False, "minibatch_size", self.minibatch_size, allowed)

    def minibatches(self, num_steps: int) -> int:
        """Minibatches in one epoch over a rollout of `num_steps`."""
        return self.num_envs * num_steps // self.minibatch_size if self.minibatch_size else 1

    def sequence(self, num_steps: int) -> int:
        """Steps of a sequence that is learned from as a whole, in a rollout of `num_steps`; 1 without a memory."""
        if isinstance(self.memory, Unit):
            return self.memory.length or num_steps // self.minibatches(num_steps)
        return 1

    def build(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> Policy:
        """The policy for these spaces, with new weights: the network with its memory."""
        return self.memory.build(self.network.build(observation, action))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; each chosen part has its class name as `type`."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @staticmethod
    def from_json(data: Any) -> Config:
        """The Config that `to_json` wrote; raises UserError for anything else."""
        return typing.cast(Config, _build(Config, data, "config"))


def normalize(settings: Any) -> None:
    """NumPy's numbers become Python's, lists tuples, and 1e6 the whole number that is wanted, in a part's parts too."""
    kind_of_settings: type = type(settings)
    for name, kind in _hints(kind_of_settings).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            normalize(value)
        elif (converted := _number(kind, builtin(value))) is not value:
            object.__setattr__(settings, name, converted)  # Configs and their parts are frozen


def _number(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        several = value if isinstance(value, tuple) else (value,)
        converted = tuple(_number(inner, x) for x in several)
        return value if isinstance(value, str) or converted == value else converted
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


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
    """The value of type `kind` from the JSON `data` that `_plain` made of it; `where` it stands is for errors."""
    if isinstance(kind, types.UnionType):
        name = data.get("type") if isinstance(data, dict) else None
        members = {member.__name__: member for member in typing.get_args(kind)}
        if kind == Objective and name == GivenObjective.__name__:  # no choice on the command line
            members[name] = GivenObjective
        if not isinstance(name, str) or name not in members:
            raise UserError(f"{where}: {name or data!r} is not one of {', '.join(members)}")
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
