"""The presets, each a Config: the lesson's two, the six steps of the ladder, and the tuned ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from surefoot.algorithm.advantages import GAE, EpisodeReturn, FutureReturn, OverBatch, OverGames, Unnormalized
from surefoot.algorithm.objectives import (
    ClippedSurrogate,
    Entropy,
    OldPolicyCrossEntropy,
    Reinforce,
    Surrogate,
    TrustRegion,
)
from surefoot.algorithm.rewards import RawReward, ScaledReward, SignReward
from surefoot.algorithm.schedules import AdaptiveRate, FixedRate, LinearRate
from surefoot.config import Config
from surefoot.envs.atari import Atari, Pong
from surefoot.envs.gym import Gymnasium, describe
from surefoot.envs.makers import parse_kwargs
from surefoot.errors import UserError, builtin
from surefoot.models.memory import Unit
from surefoot.models.networks import MLP, LessonCNN, NatureCNN, SmallCNN
from surefoot.models.optimizers import Adam, Muon
from surefoot.other_words import OPTIONS, in_python
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.parallel.watch import watch_over
from surefoot.paths import same_directory
from surefoot.versions import require_versions

LESSON_GAME = Pong(actions=("LEFTFIRE", "RIGHTFIRE"), noop_max=0, opening=5, settle=True, palette=True)

# The lesson as it was taught: 8 environments, 320 steps from the reset, 500 "episodes", each one rollout.
LESSON = Config(
    task="pong-lesson",
    env=LESSON_GAME,
    network=LessonCNN(),
    num_envs=8,
    num_steps=(320,),
    from_reset=True,
    advantage=FutureReturn(gamma=0.995),
    normalize=OverGames(),
    objective=ClippedSurrogate(clip_range=0.1, decay=0.999),
    entropy=OldPolicyCrossEntropy(coef=0.01, decay=0.995),
    value_coef=0.0,
    num_epochs=4,
    minibatch_size=0,
    learning_rate=FixedRate(1e-4),
    max_grad_norm=1e9,
    total_steps=0,
    total_iterations=500,
)

LESSON_REINFORCE = replace(LESSON, task="pong-reinforce", objective=Reinforce(), num_epochs=1)

# The ladder from REINFORCE to PPO: each step changes only what its line says, and a test checks that.
RUNG_0 = replace(
    LESSON,
    task="reinforce",
    network=LessonCNN(critic=True),
    advantage=EpisodeReturn(gamma=0.995),
    normalize=Unnormalized(),
    objective=Reinforce(),
    entropy=Entropy(0.01),
    num_epochs=1,
)
RUNG_1 = replace(RUNG_0, task="normalized", normalize=OverGames())
RUNG_2 = replace(RUNG_1, task="future", advantage=FutureReturn(gamma=0.995))
RUNG_3 = replace(RUNG_2, task="surrogate", objective=Surrogate(), num_epochs=4)
RUNG_4 = replace(RUNG_3, task="clipped", objective=ClippedSurrogate(clip_range=0.1))
RUNG_5 = replace(
    RUNG_4,
    task="ppo",
    advantage=GAE(gamma=0.995, gae_lambda=0.95),
    normalize=OverBatch(),
    value_coef=0.5,
    fit_value_bias=True,
)
LADDER = (RUNG_0, RUNG_1, RUNG_2, RUNG_3, RUNG_4, RUNG_5)
# Beside the last rung: the bound that the clip stands for.
TRPO = replace(RUNG_5, task="trpo", objective=TrustRegion(fisher_every=10))

PONG = Config(
    task="pong",
    env=Pong(),
    network=SmallCNN(hidden=512),
    num_envs=32,
    num_steps=(128,),
    advantage=GAE(gamma=0.99, gae_lambda=0.95),
    objective=ClippedSurrogate(clip_range=0.2),
    entropy=Entropy(coef=0.01, end_factor=0.0, until=0.75),
    num_epochs=3,
    minibatch_size=1024,
    learning_rate=AdaptiveRate(initial=1e-3, desired_kl=0.02, end_factor=0.1, cap=1e-2),
    optimizer=Muon(),
    ema_decay=0.8,
    total_steps=1_003_520,  # 245 rollouts
    bf16=True,
)

CARTPOLE = Config(
    task="cartpole",
    env=Gymnasium("CartPole-v1"),
    network=MLP(),
    num_envs=8,
    num_steps=(64,),
    advantage=GAE(gamma=0.98, gae_lambda=0.9),
    normalize=OverBatch(memory=0.98),
    objective=ClippedSurrogate(clip_range=0.2),
    entropy=Entropy(0.0),
    num_epochs=4,
    minibatch_size=64,
    learning_rate=AdaptiveRate(initial=1e-3, desired_kl=0.02),
    total_steps=100_000,
)

# Any other Atari game, with the settings of the literature (Schulman et al. 2017; Huang et al. 2022).
ATARI = Config(
    task="atari",
    env=Atari(),
    network=NatureCNN(),
    num_envs=8,
    num_steps=(128,),
    reward=SignReward(),
    advantage=GAE(gamma=0.99, gae_lambda=0.95),
    objective=ClippedSurrogate(clip_range=0.1),
    entropy=Entropy(0.01),
    num_epochs=4,
    minibatch_size=256,
    learning_rate=LinearRate(2.5e-4),
    max_grad_norm=0.5,
    optimizer=Adam(eps=1e-5),
    total_steps=10_000_000,
    bf16=True,
)

# Breakout with the settings of `pong`, but a smaller KL divergence per update; 1,538 rollouts.
BREAKOUT = replace(
    PONG,
    network=SmallCNN(background=0.0, scale=255.0),
    reward=SignReward(),
    entropy=Entropy(coef=0.01, end_factor=0.0),
    learning_rate=AdaptiveRate(initial=1e-3, desired_kl=0.01, end_factor=0.2, cap=1e-2),
    total_steps=6_299_648,
)

TUNED_GAMES = {"breakout": BREAKOUT, "beam_rider": replace(BREAKOUT, total_steps=10_002_432)}

# Continuous control; how it was tuned is in docs/log.md.
CONTROL = Config(
    task="control",
    env=Gymnasium("Walker2d-v5"),
    network=MLP(running=True),
    num_envs=8,
    num_steps=(128,),
    reward=ScaledReward(),
    advantage=GAE(gamma=0.99, gae_lambda=0.95),
    objective=ClippedSurrogate(clip_range=0.2),
    entropy=Entropy(0.0),
    num_epochs=10,
    recompute=True,
    minibatch_size=64,
    learning_rate=AdaptiveRate(initial=1e-3, desired_kl=0.015, end_factor=0.3, cap=2e-3, floor=1e-4),
    max_grad_norm=0.5,
    optimizer=Adam(eps=1e-5),
    ema_decay=0.9,
    total_steps=1_001_472,  # 978 rollouts
)
# Vectors without a preset: rewards may be rare, and what ends an episode far away.
VECTORS = replace(CONTROL, normalize=OverBatch(floor=0.1), noise_color=1.0, noise_until=0.1, noise_rarity=256)
CONTROL_LINEAR = replace(CONTROL, num_steps=(256,), learning_rate=LinearRate(3e-4))
LANDER = replace(
    CONTROL,
    num_envs=16,
    num_steps=(256,),
    advantage=GAE(gamma=0.999, gae_lambda=0.98),
    recompute=False,
    minibatch_size=256,
    learning_rate=AdaptiveRate(initial=1e-3, desired_kl=0.03, end_factor=0.1, cap=2e-3, floor=1e-4),
    ema_decay=0.8,
)
SEQUENCE = 32  # steps that a memory learns from at a time, at least
IMAGES = replace(ATARI, task="images", reward=ScaledReward(), bf16=False)  # images other than Atari's


def _tuned(task: str, cfg: Config, **fields: Any) -> Config:
    return replace(cfg, task=task, env=Gymnasium(task), **fields)


TUNED = (
    _tuned("CartPole-v1", CARTPOLE),
    _tuned("Acrobot-v1", CONTROL, total_steps=102_400),
    _tuned("Pendulum-v1", CONTROL, advantage=GAE(gamma=0.9, gae_lambda=0.95), total_steps=102_400),
    _tuned("LunarLander-v3", LANDER, reward=RawReward(), entropy=Entropy(0.01), num_epochs=4, minibatch_size=512),
    _tuned("LunarLanderContinuous-v3", LANDER),
    _tuned("BipedalWalker-v3", CONTROL, total_steps=3_000_320),
    _tuned("Hopper-v5", CONTROL, network=MLP(running=True, std=1.0)),  # with a smaller std it may learn to stand still
    _tuned(
        "InvertedDoublePendulum-v5",
        CONTROL_LINEAR,
        advantage=GAE(gamma=0.98, gae_lambda=0.95),
        normalize=OverBatch(memory=0.9),
        entropy=Entropy(0.003, end_factor=0.0),
    ),
    _tuned("Reacher-v5", CONTROL_LINEAR),
    _tuned(
        "HalfCheetah-v5",
        CONTROL_LINEAR,
        network=MLP(running=True, std=0.37),
        advantage=GAE(gamma=0.99, gae_lambda=0.9),
        entropy=Entropy(0.01, end_factor=0.0, until=0.75),
        learning_rate=LinearRate(5e-4),
    ),
    _tuned("Swimmer-v5", CONTROL, advantage=GAE(gamma=0.9999, gae_lambda=0.95)),  # the reward of a stroke comes late
    *(_tuned(id, CONTROL) for id in ("Walker2d-v5", "InvertedPendulum-v5")),
)

# The first has sticky actions, as registered in Gymnasium.
ATARI_ID = re.compile(r"ALE/(\w+?)(?:-v5)?|(\w+)NoFrameskip(?:-v4)?")

PRESETS = {cfg.task: cfg for cfg in (PONG, LESSON, LESSON_REINFORCE, *LADDER, TRPO, CARTPOLE, *TUNED)}


def by_spaces(env: Gymnasium, timeout: Any = None, num_envs: int = 0) -> Config:
    """The Config of an environment without a preset: a CNN for images, otherwise an MLP; few environments play longer.

    Raises Fault where the one that is made for a look hangs for `timeout` seconds and a minute (None: as in a Config).
    """
    require_versions()
    import gymnasium

    from surefoot.envs.interface import make
    from surefoot.envs.spaces import parts

    heartbeat, timeout = Heartbeat.of(1), builtin(timeout)
    heartbeat.make(0)
    seconds = timeout if isinstance(timeout, int | float) and timeout > 0 else Config.timeout
    with same_directory(), watch_over(heartbeat, seconds, 0):
        made: Any = make(env)
    if "ale_py" in str(getattr(gymnasium.registry.get(env.id), "entry_point", "")):
        name = re.sub(r"(NoFrameskip)?-v\d+$", "", env.id)
        raise UserError(f"'{env.id}' shows raw screens: choose ALE/{name}-v5 (sticky actions) or {name}NoFrameskip-v4")
    images = any(part.is_image() for part in parts(made.observation_space))
    vector = getattr(made.env, "vector", None)
    fixed = vector.env.num_envs if vector else 1  # more than the one that was asked for: it makes no other number
    made.close()
    cfg = replace(IMAGES if images else VECTORS, task=env.id, env=env)
    n = fixed if fixed > 1 else num_envs or cfg.num_envs
    if fixed == 1 and n >= cfg.num_envs and cfg.minibatch_size % n == 0:
        return cfg
    longer = max(1, cfg.num_envs // n)
    per_env = longer * cfg.minibatch_size // cfg.num_envs
    return replace(cfg, num_envs=n, num_steps=(longer * cfg.num_steps[0],), minibatch_size=per_env * n)


def by_name(task: str) -> str:
    """A preset, an id of Gymnasium's, or MODULE:NAME, from what a user has written. Raises UserError."""
    from surefoot.envs.ids import FAILED, REGISTERED_BY, in_old_gym, of_file, registered, registering

    if ":" in task:
        return of_file(task) or task
    known = registered(task)
    package = REGISTERED_BY.get(known) if known else "gym" if in_old_gym(task) else registering(task)
    if not known and not package:
        from surefoot.envs.opening import unknown

        failed = "; ".join(f"the import of {package} fails: {error}" for package, error in FAILED.items())
        raise unknown(task, f" ({failed})" if failed else "", tuple(PRESETS))
    name = registered(task) or task
    return f"{package}:{name}" if package else name


def find(
    task: Any,
    kwargs: Sequence[str] | Mapping[str, Any] = (),
    wrappers: Sequence[str] = (),
    _expected: Mapping[str, Any] = {},
    **fields: Any,
) -> Config:
    """The Config of a preset, Gymnasium id, `module:function`, function or environment, with `fields` changed.

    An id may lack its version, and its package where that is installed. `kwargs`: keyword arguments for a Gymnasium id
    or `module:function`, as a dict or as NAME=VALUE; `wrappers`: as in `Gymnasium.wrappers`. Raises UserError, with the
    nearest names for an unknown task. `_expected`: fields that will be set later.
    """
    expected = {**_expected, **fields}
    num_envs = given if isinstance(given := builtin(expected.get("num_envs", 0)), int) else 0
    if isinstance(kwargs, Mapping):
        named = {name: value if isinstance(value, list) else builtin(value) for name, value in kwargs.items()}
        kwargs = [f"{name}={value!r}" for name, value in named.items()]
        if repr(parse_kwargs(kwargs)) != repr(named):
            raise UserError(f"kwargs hold more than numbers and strings ({named}): give a function without arguments")
    kwargs, wrappers, timeout = tuple(kwargs), tuple(wrappers), fields.get("timeout")
    if isinstance(task, str) and task not in PRESETS and not ATARI_ID.fullmatch(task):
        task = by_name(task)
    if isinstance(task, Config):
        cfg = task
    elif isinstance(task, str) and task in PRESETS:
        cfg = PRESETS[task]
    elif isinstance(task, str) and (atari := ATARI_ID.fullmatch(task)):
        name = (atari[1] or atari[2]).replace("3D", "_3d")
        rom = re.sub("(?<!^)(?=[A-Z])", "_", name).lower()
        env = Atari(rom, sticky=0.25 if atari[1] else 0.0, life_loss=True)
        cfg = replace(TUNED_GAMES.get(rom, ATARI), env=env, task=task)
    elif isinstance(task, Gymnasium):
        cfg = by_spaces(task, timeout, num_envs)
    elif isinstance(task, str):
        cfg = by_spaces(Gymnasium(task, kwargs, wrappers), timeout, num_envs)
    else:
        cfg = by_spaces(replace(describe(task), wrappers=wrappers), timeout, num_envs)
    for name, given in (("kwargs", kwargs), ("wrappers", wrappers)):
        if not given:
            continue
        if not isinstance(cfg.env, Gymnasium):
            raise UserError(f"'{cfg.task}' takes no {name}: its fields are those of {type(cfg.env).__name__}")
        changed: Any = {name: given}
        cfg = replace(cfg, env=replace(cfg.env, **changed))
    if "noise_color" in expected and not isinstance(task, Config):  # for the whole run then
        cfg = replace(cfg, noise_until=1.0, noise_rarity=0)
    for name, value in fields.items():
        if name not in vars(cfg) or (OPTIONS.get(name, name) != name and not (is_dataclass(value) or callable(value))):
            here = in_python(name, cfg)
            hint = f"surefoot calls it {here}" if here else f"it has {', '.join(vars(cfg))}"
            raise UserError(f"{name} is {value}: {hint}" if name in vars(cfg) else f"there is no field {name}: {hint}")
    if not isinstance(task, Config) and isinstance(memory := expected.get("memory"), Unit) and cfg.minibatch_size:
        known = {name: expected[name] for name in ("num_envs", "num_steps") if expected.get(name)}
        least, cfg = max(SEQUENCE, cfg.minibatch_size // cfg.num_envs), replace(cfg, **known, minibatch_size=0)
        cfg = replace(cfg, minibatch_size=with_sequences(cfg, least, memory.length))
    bounded = not isinstance(task, Config) and isinstance(expected.get("objective"), TrustRegion)
    if bounded and not isinstance(cfg.network, MLP) and getattr(cfg.network, "critic", True):
        remembers = isinstance(expected.get("memory"), Unit)  # what a memory sees is not the critic's own
        cfg = replace(cfg, network=replace(cfg.network, separate_critic=not remembers))
    return replace(cfg, **fields)


def with_sequences(cfg: Config, least: int, length: int) -> int:
    """The minibatch size with which a memory learns from at least so many steps of each environment at a time.

    They are a multiple of `length` (0: any number); all of a rollout where it has no such part.
    """
    steps = math.gcd(*cfg.num_steps)
    fit = [n for n in range(1, steps + 1) if steps % n == 0 and n % (length or 1) == 0]
    return cfg.num_envs * next((n for n in fit if n >= least), max(fit, default=steps))
