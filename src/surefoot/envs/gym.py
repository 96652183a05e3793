"""Gymnasium environments, by their id or by a function that makes one; restored by replaying the episode."""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import inspect
import re
import sys
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from surefoot.envs.closing import close_env
from surefoot.envs.screen import draw_offscreen
from surefoot.errors import Fault, UserError, note_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surefoot.envs.vector_env import SubEnv, VectorEnvAdapter

    Array = NDArray[Any]

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None, "null": None}
"""what these words stand for in kwargs, in letters of any size, as in JSON and YAML; in quotes they are words"""
MAX_REPLAY = 100_000  # steps: a longer episode is not restored, a new one begins
EXTRAS = ("mujoco", "box2d", "classic-control")
LOCAL_MAKERS: dict[str, Callable[..., Any]] = {}  # functions that only this process has, by their Gymnasium.id


@dataclass(frozen=True)
class Gymnasium:
    """A Gymnasium environment, by its id or by a function that makes it."""

    id: str = "CartPole-v1"
    """as for gymnasium.make, or module:function, which returns an Env (a VectorEnv if it takes num_envs)"""
    kwargs: tuple[str, ...] = ()
    """keyword arguments of the constructor, as NAME=VALUE: is_slippery=False map_name=8x8"""

    def make(self, render: bool = False) -> GymnasiumEnv:
        """The environment; `render`: with render_mode rgb_array."""
        return GymnasiumEnv(self, render)

    def make_vector(self, count: int) -> VectorEnvAdapter | None:
        """A VectorEnv of `count` environments; None where this makes single ones."""
        vector: VectorEnvAdapter | None = open_env(self, count=count)
        if vector is not None:
            vector.envs = [GymnasiumEnv(self, False, sub_env) for sub_env in vector.sub_envs]
            vector.to_env_action = vector.envs[0].to_env_action
        return vector


def describe(maker: Any) -> Gymnasium:
    """The description of an environment that is given as an object or as a function that makes one.

    A function that other processes can import is described by its name. An object is copied for every environment of a
    run, or made again from its Gymnasium id where it cannot be copied or a video needs another render_mode.
    """
    if callable(maker):
        name, where = f"{maker.__module__}:{getattr(maker, '__qualname__', '')}", sys.modules.get(maker.__module__)
        if maker.__module__ != "__main__" and getattr(where, getattr(maker, "__qualname__", ""), None) is maker:
            return Gymnasium(name)
        make = maker
    else:
        spec: Any = getattr(maker, "spec", None)
        name = f"{type(maker).__module__}:{type(maker).__qualname__}"

        def make(**how: Any) -> Any:
            import gymnasium

            if not how or spec is None:
                with suppress(Exception):  # some cannot be copied
                    return copy.deepcopy(maker)
            try:
                return gymnasium.make(spec, **how)
            except Exception as error:
                failure = f"{name} can neither be copied nor made again ({error})"
                raise UserError(f"{failure}: give a function that makes it") from error

        _require_gymnasium(maker, type(maker).__name__)
    name = f"{name}#{len(LOCAL_MAKERS)}"
    LOCAL_MAKERS[name] = make
    return Gymnasium(name)


def is_local(env: object) -> TypeGuard[Gymnasium]:
    """Whether an environment can be made in this process only."""
    return isinstance(env, Gymnasium) and env.id in LOCAL_MAKERS


def mujoco_warning(text: str) -> None:
    """Print a warning of MuJoCo once; MuJoCo would print it for every environment and write MUJOCO_LOG.TXT."""
    note_once(f"MuJoCo: {text.partition(' Time =')[0]}")


def open_env(spec: Gymnasium, render: bool = False, count: int = 0) -> Any:
    """The Gymnasium environment of a description; with a `count`, its VectorEnv of that many or None.

    Raises UserError, with what to do, where it cannot be made.
    """
    import gymnasium

    id, how = spec.id, parse_kwargs(spec.kwargs) | ({"render_mode": "rgb_array"} if render else {})
    module, _, name = id.partition(":")
    entry_point = str(getattr(gymnasium.registry.get(id), "entry_point", ""))
    draw_offscreen(mujoco="mujoco" in entry_point or not entry_point.startswith("gymnasium."))
    make: Any = functools.partial(gymnasium.make, id, disable_env_checker=True)
    try:
        if "#" in id:
            if id not in LOCAL_MAKERS:
                raise UserError(f"'{id}' was made by a function of another program: name a module:function")
            make = LOCAL_MAKERS[id]
        elif name and not re.search(r"-v\d+$", name):
            make = importlib.import_module(module)
            try:
                make = functools.reduce(getattr, name.split("."), make)
            except AttributeError as error:
                raise ImportError(str(error)) from error
        if many := "num_envs" in inspect.signature(make).parameters:
            how["num_envs"] = count or 1
        elif count:
            return None
        if "mujoco" in entry_point:
            with suppress(ImportError):  # `make` reports it below
                importlib.import_module("mujoco").set_mju_user_warning(mujoco_warning)
        env = make(**how)
    except (gymnasium.error.Error, ImportError) as error:
        text = str(error).replace("\n", " ").rstrip(". ")
        wanted = re.search(r"gymnasium\[([\w-]+)\]", text)
        extra = wanted[1].replace("_", "-") if wanted else ""
        lacking = getattr(error.__cause__ or error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        cure = f"pip install the package of '{lacking}'" if lacking else ""
        cure += ", or correct the name" * (lacking == module.partition(".")[0])
        if isinstance(error, gymnasium.error.DependencyNotInstalled) or extra in EXTRAS:
            cure = f"pip install 'surefoot[{extra}]'" if extra in EXTRAS else text
        if cure:
            raise UserError(f"environment '{id}' needs a package that is missing: {cure}") from error
        from surefoot.envs.atari import ids

        known = [name for name, other in gymnasium.registry.items() if name != id and "ale_py" not in str(other)]
        near = difflib.get_close_matches(id, known + ids(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; PACKAGE:ID imports a package first"
        raise UserError(f"no environment '{id}' ({text}){hint}") from error
    except TypeError as error:
        if re.search(r"Gym is incompatible|<class 'gym\.", str(error)):
            raise UserError(f"'{id}' is {_old_gym('v26')} (v21 where its reset takes no seed)") from error
        if spec.kwargs:
            raise UserError(f"'{id}' cannot be made with {' '.join(spec.kwargs)}: {error}") from error
        if render:
            raise UserError(f"'{id}' cannot be filmed: its function takes no render_mode ({error})") from error
        raise
    _require_gymnasium(env, id, many)
    if many:
        from surefoot.envs.vector_env import VectorEnvAdapter

        vector = VectorEnvAdapter(env, id, count)
        return vector if count else vector.sub_envs[0]
    return env


def parse_kwargs(kwargs: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from NAME=VALUE; raises UserError where there is no name."""
    import ast

    parsed: dict[str, Any] = {}
    for text in kwargs:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"env.kwargs holds {text!r}; allowed is NAME=VALUE, as in is_slippery=False")
        try:
            parsed[name] = WORDS[value.lower()] if value.lower() in WORDS else ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # a plain word
            parsed[name] = value
    return parsed


def _old_gym(api: str) -> str:
    make = f"gymnasium.make('Gym{api.title()}Environment-v0', env=...)"
    return f"of the old Gym package: pip install 'shimmy[gym-{api}]', and {make} converts it"


def _require_gymnasium(env: Any, name: str, many: bool = False) -> None:
    import gymnasium

    if isinstance(env, gymnasium.vector.VectorEnv) and not many:
        raise UserError(f"'{name}' is a VectorEnv: give a function of num_envs that makes it")
    if not isinstance(env, gymnasium.vector.VectorEnv if many else gymnasium.Env):
        what = "no gymnasium.vector.VectorEnv, though it takes num_envs" if many else "no gymnasium.Env"
        if "gym" in {base.__module__.partition(".")[0] for base in type(env).__mro__}:
            what = _old_gym("v26" if "seed" in inspect.signature(env.reset).parameters else "v21")
        raise UserError(f"'{name}' gives {type(env).__name__}, which is {what}")


@functools.cache
def has_action_masks(spec: Gymnasium) -> bool:
    """Whether its info holds action masks; once, checks the environment against Gymnasium's API (UserError)."""
    import warnings

    import gymnasium
    from gymnasium.utils.env_checker import check_env

    env = open_env(spec)
    try:
        entry = gymnasium.registry.get(spec.id.rpartition(":")[2], env.spec)  # env.spec alone has the checker disabled
        known = entry is not None and (entry.disable_env_checker or str(entry.entry_point).startswith("gymnasium."))
        try:
            first = env.reset(seed=0)
            masks = isinstance(first, tuple) and len(first) == 2 and "action_mask" in first[1]
            if not known and not masks:  # the checker would take forbidden actions
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check_env(env, skip_render_check=True, skip_close_check=True)
        except (AssertionError, gymnasium.error.Error, TypeError, ValueError) as error:
            finding = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            cure = "correct it, or register or make it with disable_env_checker=True"
            if "unpack" in finding:
                cure = "step gives observation, reward, terminated, truncated and info, reset observation and info"
            raise UserError(f"environment '{spec.id}' breaks Gymnasium's contract: {finding}; {cure}") from error
        except Exception as error:
            raise Fault(f"environment '{spec.id}' failed in a first check: {type(error).__name__}: {error}") from error
        if masks and not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise UserError(
                f"'{spec.id}' has an action_mask for {env.action_space}: number the actions, or leave it out"
            )
        return masks
    finally:
        close_env(env)


class GymnasiumEnv:
    """One Gymnasium environment; observations are rows as `envs.spaces` lays them out."""

    life_lost = False

    def __init__(self, spec: Gymnasium, render: bool, sub_env: SubEnv | None = None) -> None:
        import numpy as np
        from gymnasium import spaces

        from surefoot.envs.spaces import MASK, action_converter, blank, choices, parts

        masks = has_action_masks(spec)
        self.env: Any = sub_env or open_env(spec)
        self.alone = sub_env is None  # otherwise a VectorEnv converts its actions and has the episodes' seeds
        if render:
            modes = self.env.metadata.get("render_modes") or ()
            close_env(self.env)
            if "rgb_array" not in modes:
                raise UserError(f"'{spec.id}' cannot be filmed: it has no render_mode 'rgb_array'")
            self.env = open_env(spec, True)
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.masks = masks
        if masks:
            mask = spaces.MultiBinary(int(self.action_space.n))
            self.observation_space = spaces.Dict({"observation": self.observation_space, MASK[0]: mask})
        try:
            self.layout = parts(self.observation_space)
            self.to_env_action = action_converter(self.action_space)
        except UserError as error:
            raise UserError(f"'{spec.id}' cannot be learned: {error}") from error
        self.discrete = isinstance(self.action_space, spaces.Discrete)
        if isinstance(self.action_space, spaces.Box):
            self.action_names = tuple(f"action {a}" for a in range(self.action_space.low.size))
        else:
            sizes = enumerate(choices(self.action_space))
            self.action_names = tuple(str(a) if self.discrete else f"{d}: {a}" for d, n in sizes for a in range(n))
        self.kind = "f" if isinstance(self.action_space, spaces.Box) else "q"
        self.numbers = functools.partial(np.asarray, dtype=self.kind)
        self.seed, self.actions, self.steps, self.score = 0, array(self.kind), 0, 0.0
        self.obs = blank(self.observation_space)

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode with Gymnasium's own seeded reset."""
        self.seed, self.actions, self.steps, self.score = seed, array(self.kind), 0, 0.0
        obs, info = self.env.reset(seed=seed)
        self._write(obs, info, False, out)

    def step(self, action: Any, out: Array) -> tuple[float, bool, bool]:
        """One step of the environment."""
        self.steps += 1
        if self.steps <= MAX_REPLAY and self.alone:
            if self.discrete:
                self.actions.append(action)
            else:
                self.actions.frombytes(self.numbers(action).tobytes())  # a fifth of `extend`'s time
        if self.to_env_action is not None and self.alone:
            action = self.to_env_action(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._write(obs, info, terminated or truncated, out)
        reward = float(reward)
        self.score += reward
        return reward, bool(terminated), bool(truncated)

    def _write(self, obs: Any, info: Any, over: bool, out: Array) -> None:
        """Write an observation into `out`; raises where it is not in its space, or where no action is allowed."""
        first = self.layout[0]
        if ("action_mask" in info) != self.masks:
            raise ValueError("its info must hold an action_mask after every reset and step, or never")
        if first.path:
            from surefoot.envs.spaces import MASK, pack

            if self.masks:
                obs = {"observation": obs, MASK[0]: info["action_mask"]}
            pack(self.layout, obs, out)
            last = self.layout[-1]
            if last.path == MASK and self.discrete and not over and not out[last.start :].any():
                raise ValueError("its action mask allows no action")
        else:
            first.fill(obs, "its observation", out)
        self.obs = out

    def render(self) -> Any:
        """What the environment's own `render` gives."""
        import gymnasium

        try:
            return self.env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"the environment cannot be filmed: {error}") from error

    def snapshot(self) -> dict[str, Array]:
        """The episode's seed and actions, with the observation and score they led to."""
        import numpy as np

        place = np.array([self.seed, self.steps], np.int64)
        return {
            "place": place,
            "actions": np.array(self.actions),
            "obs": self.obs.copy(),
            "total": np.array([self.score]),
        }

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Replay the episode; False where it is too long, or where observation or score differ."""
        seed, steps = (int(x) for x in saved["place"])
        if steps > MAX_REPLAY or not self.alone:
            return False
        self.reset(seed, out)
        actions = saved["actions"]
        for action in actions.tolist() if self.discrete or not steps else actions.reshape(steps, -1):
            self.step(action, out)
        return bool(self.obs.tobytes() == saved["obs"].tobytes() and self.score == saved["total"][0])

    def close(self) -> None:
        """Close the environment."""
        close_env(self.env)
