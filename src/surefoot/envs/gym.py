"""Any Gymnasium environment, by its id or by a function that makes it, restored by replaying its episode."""

from __future__ import annotations

import functools
import inspect
import re
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from surefoot.errors import Fault, UserError, note

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surefoot.envs.vector import Seat, Vector

    Array = NDArray[Any]

MAX_REPLAY = 100_000  # decisions: a longer episode is not restored, a new one begins
EXTRAS = ("mujoco", "box2d", "classic-control")
LOCAL_MAKERS: dict[str, Callable[..., Any]] = {}  # functions that only this process knows, by the names in Gymnasium.id


@dataclass(frozen=True)
class Gymnasium:
    """An environment by its Gymnasium id."""

    id: str = "CartPole-v1"
    """as for gymnasium.make; `module:Name-v0` imports the module first; `module:function` calls a function, which makes
    a VectorEnv where it takes `num_envs`"""
    kwargs: tuple[str, ...] = ()
    """what it is made with, each NAME=VALUE with a value of Python's, or words: is_slippery=False map_name=8x8"""

    def make(self, render: bool = False) -> GymnasiumEnv:
        """An environment of this kind; `render`: one whose pictures can be taken."""
        return GymnasiumEnv(self, render)

    def together(self, count: int) -> Vector | None:
        """A VectorEnv of `count` games, which are stepped at once; None where they are made one by one."""
        vector: Vector | None = open_env(self, count=count)
        if vector is not None:
            vector.games = [GymnasiumEnv(self, False, seat) for seat in vector.seats]
            vector.translate = vector.games[0].translate
        return vector


def describe(maker: Any) -> Gymnasium:
    """The description of an environment that is given as an object, or as a function that makes one.

    A function that other processes can import is known by its name; of an object every game gets a copy: where it
    cannot be copied, or a film needs another render_mode, one that is made again from its Gymnasium id.
    """
    import copy
    import sys

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
                with suppress(Exception):  # whatever it has against that
                    return copy.deepcopy(maker)
            try:
                return gymnasium.make(spec, **how)
            except Exception as error:
                cure = "give a function that makes it"
                raise UserError(f"{name} can neither be copied nor made again ({error}): {cure}") from error

        _require_gymnasium(maker, type(maker).__name__)
    name = f"{name}#{len(LOCAL_MAKERS)}"
    LOCAL_MAKERS[name] = make
    return Gymnasium(name)


def is_local(env: object) -> TypeGuard[Gymnasium]:
    """Whether an environment can be made in this process alone."""
    return isinstance(env, Gymnasium) and env.id in LOCAL_MAKERS


@functools.cache
def warned(text: str) -> None:
    """Pass a warning of MuJoCo's on, once: its own way is to say it for every game and to write MUJOCO_LOG.TXT."""
    note(f"MuJoCo: {text}")


def open_env(spec: Gymnasium, render: bool = False, count: int = 0) -> Any:
    """The Gymnasium environment so described; with a `count` the Vector of so many, None where it makes no VectorEnv.

    Raises UserError with what can be done where there is none.
    """
    import difflib
    import importlib

    import gymnasium

    id, how = spec.id, named(spec.kwargs) | ({"render_mode": "rgb_array"} if render else {})
    module, _, name = id.partition(":")
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
        if "mujoco" in str(getattr(gymnasium.registry.get(id), "entry_point", "")):
            with suppress(ImportError):  # which `make` is about to say
                importlib.import_module("mujoco").set_mju_user_warning(
                    lambda text: warned(text.partition(" Time =")[0])
                )
        env = make(**how)
    except (gymnasium.error.Error, ImportError) as error:
        text = str(error).replace("\n", " ").rstrip(". ")
        wanted = re.search(r"gymnasium\[([\w-]+)\]", text)
        extra = wanted[1].replace("_", "-") if wanted else ""
        if isinstance(error, gymnasium.error.DependencyNotInstalled) or extra in EXTRAS:
            cure = f"pip install 'surefoot[{extra}]'" if extra in EXTRAS else text
            raise UserError(f"environment '{id}' needs a package that is missing: {cure}") from error
        lacking = getattr(error.__cause__ or error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if lacking:
            cure = f"pip install what has '{lacking}'" + ", or mend the name" * (lacking == module.partition(".")[0])
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
        from surefoot.envs.vector import Vector

        vector = Vector(env, id, count)
        return vector if count else vector.seats[0]
    return env


def named(kwargs: Iterable[str]) -> dict[str, Any]:
    """Arguments by their names, from NAME=VALUE; raises UserError where there is no name."""
    import ast

    found: dict[str, Any] = {}
    for text in kwargs:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"env.kwargs holds {text!r}; allowed is NAME=VALUE, as in is_slippery=False")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a word
            found[name] = value
    return found


def _old_gym(api: str) -> str:
    cure = f"pip install 'shimmy[gym-{api}]', and gymnasium.make('Gym{api.title()}Environment-v0', env=...)"
    return f"of the old Gym package: {cure} converts it"


def _require_gymnasium(env: Any, name: str, many: bool = False) -> None:
    import gymnasium

    if isinstance(env, gymnasium.vector.VectorEnv) and not many:
        raise UserError(f"'{name}' is a VectorEnv: give a function of num_envs that makes one of so many environments")
    if not isinstance(env, gymnasium.vector.VectorEnv if many else gymnasium.Env):
        what = "no gymnasium.vector.VectorEnv, though it takes num_envs" if many else "no gymnasium.Env"
        if "gym" in {base.__module__.partition(".")[0] for base in type(env).__mro__}:
            what = _old_gym("v26" if "seed" in inspect.signature(env.reset).parameters else "v21")
        raise UserError(f"'{name}' gives {type(env).__name__}, which is {what}")


@functools.cache
def examine(of: Gymnasium) -> bool:
    """Whether its info holds action masks; raises UserError where it breaks Gymnasium's contract. Once a process."""
    import warnings

    import gymnasium
    from gymnasium.utils.env_checker import check_env

    env = open_env(of)
    try:
        spec = gymnasium.registry.get(of.id.rpartition(":")[2], env.spec)  # `make` was told to leave the checker out
        known = spec is not None and (spec.disable_env_checker or str(spec.entry_point).startswith("gymnasium."))
        try:
            first = env.reset(seed=0)
            masks = isinstance(first, tuple) and len(first) == 2 and "action_mask" in first[1]
            if not known and not masks:  # the checker would take actions that are forbidden
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check_env(env, skip_render_check=True, skip_close_check=True)
        except (AssertionError, gymnasium.error.Error, TypeError, ValueError) as error:
            finding = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            cure = "mend it, or register or make it with disable_env_checker=True"
            if "unpack" in finding:
                cure = "step gives observation, reward, terminated, truncated and info, reset observation and info"
            raise UserError(f"environment '{of.id}' breaks Gymnasium's contract: {finding}; {cure}") from error
        except Exception as error:
            raise Fault(f"environment '{of.id}' failed on trial: {type(error).__name__}: {error}") from error
        if masks and not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise UserError(f"'{of.id}' has an action_mask for {env.action_space}: number the actions, or leave it out")
        return masks
    finally:
        env.close()


class GymnasiumEnv:
    """One Gymnasium environment; its observations are rows as `envs.spaces` lays them."""

    goes_on = False

    def __init__(self, spec: Gymnasium, render: bool, seat: Seat | None = None) -> None:
        import numpy as np
        from gymnasium import spaces

        from surefoot.envs.spaces import MASK, blank, choices, parts, translator

        masks = examine(spec)
        self.env: Any = seat or open_env(spec)
        self.alone = seat is None  # otherwise a VectorEnv has its actions and the seeds of its episodes
        if render:
            modes = self.env.metadata.get("render_modes") or ()
            self.env.close()
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
            self.translate = translator(self.action_space)
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
        self._see(obs, info, False, out)

    def step(self, action: Any, out: Array) -> tuple[float, bool, bool]:
        """One step of the environment."""
        self.steps += 1
        if self.steps <= MAX_REPLAY and self.alone:
            if self.discrete:
                self.actions.append(action)
            else:
                self.actions.frombytes(self.numbers(action).tobytes())  # a fifth of `extend`'s time
        if self.translate is not None and self.alone:
            action = self.translate(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._see(obs, info, terminated or truncated, out)
        reward = float(reward)
        self.score += reward
        return reward, bool(terminated), bool(truncated)

    def _see(self, obs: Any, info: Any, over: bool, out: Array) -> None:
        """Take an observation over; raises where it is not the announced one, or where no action is allowed."""
        first = self.layout[0]
        if ("action_mask" in info) != self.masks:
            raise ValueError("its info must hold an action_mask always or never, of a reset and of every step")
        if first.path:
            from surefoot.envs.spaces import MASK, lay

            if self.masks:
                obs = {"observation": obs, MASK[0]: info["action_mask"]}
            lay(self.layout, obs, out)
            last = self.layout[-1]
            if last.path == MASK and self.discrete and not over and not out[last.start :].any():
                raise ValueError("its action mask allows no action")
        else:
            first.fill(obs, "its observation", out)
        self.obs = out

    def render(self) -> Array:
        """The present picture, uint8 [height, width, 3]."""
        import gymnasium
        import numpy as np

        try:
            return np.asarray(self.env.render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"the environment cannot be filmed: {error}") from error

    def snapshot(self) -> dict[str, Array]:
        """The episode's seed, the actions since, and where they led."""
        import numpy as np

        place, actions = np.array([self.seed, self.steps], np.int64), np.array(self.actions)
        return {"place": place, "actions": actions, "obs": self.obs.copy(), "total": np.array([self.score])}

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Play the episode again; False where it is too long, or where observation or score come out otherwise."""
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
        self.env.close()
