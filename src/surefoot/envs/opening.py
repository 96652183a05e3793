"""Makes the Gymnasium environment of a description, with a sentence about what to do where that is not possible."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from surefoot.envs.closing import close_env, is_open
from surefoot.envs.ids import import_package, in_old_gym, near, of_file, registered
from surefoot.envs.makers import LOCAL_MAKERS, parse_kwargs
from surefoot.envs.old_gym import OldGym, is_old_gym
from surefoot.envs.screen import draw_offscreen
from surefoot.envs.spaces import parts
from surefoot.errors import Fault, UserError, note_once

if TYPE_CHECKING:
    from surefoot.envs.gym import Gymnasium

EXTRAS = ("mujoco", "box2d", "classic-control")
FOR_PICTURES = ("GrayscaleObservation", "ResizeObservation")  # wrappers; of a Dict each picture is wrapped


def mujoco_warning(text: str) -> None:
    """Print a warning of MuJoCo once; MuJoCo would print it for every environment and write MUJOCO_LOG.TXT."""
    note_once(f"MuJoCo: {text.partition(' Time =')[0]}")


def open_env(spec: Gymnasium, render: bool = False, count: int = 1) -> Any:
    """The Gymnasium Env of a description, or its VectorEnv: of `count` environments where it can choose.

    Raises UserError, with what to do, where it cannot be made.
    """
    import gymnasium

    id, how = spec.id, parse_kwargs(spec.kwargs) | ({"render_mode": "rgb_array"} if render else {})
    entry_point = str(getattr(gymnasium.registry.get(id), "entry_point", ""))
    draw_offscreen(mujoco="mujoco" in entry_point or not entry_point.startswith("gymnasium."))
    try:
        make = maker(id, "vectorization_mode" in how)
        if takes(make, "num_envs"):
            how["num_envs"] = count
        if "mujoco" in entry_point:
            with suppress(ImportError):  # `make` reports it below
                importlib.import_module("mujoco").set_mju_user_warning(mujoco_warning)
        env = wrapped(make(**how), spec)
    except (gymnasium.error.Error, ImportError) as error:
        raise missing(id, error) from error
    except TypeError as error:
        if spec.kwargs:
            raise UserError(f"'{id}' cannot be made with {' '.join(spec.kwargs)}: {error}") from error
        if render:
            raise UserError(f"'{id}' cannot be filmed: its function takes no render_mode ({error})") from error
        raise
    if is_open(env):
        raise Fault(f"'{id}' gives the same environment again, which is open: its function must make a new one")
    modes = (env.metadata or {}).get("render_modes") or ()
    if render and "rgb_array" not in modes and getattr(env, "render_mode", None) != "rgb_array":
        close_env(env)
        raise UserError(f"'{id}' cannot be filmed: it has no render_mode 'rgb_array'")
    return env


def takes(make: Any, name: str) -> bool:
    """Whether a function has a parameter of this name."""
    with suppress(ValueError, TypeError):  # some built-in functions tell nothing
        return name in inspect.signature(make).parameters
    return False


def maker(id: str, many: bool = False) -> Callable[..., Any]:
    """The function that makes the environment `id`; `many`: as a VectorEnv of a registered id. Raises ImportError."""
    import gymnasium

    if "#" in id:
        if id not in LOCAL_MAKERS:
            raise UserError(f"'{id}' was made by a function of another program: name a module:function")
        return LOCAL_MAKERS[id]
    module, colon, name = id.rpartition(":")
    if colon:
        imported: Any = import_package(module)
        if not registered(name):
            try:
                made: Callable[..., Any] = functools.reduce(getattr, name.split("."), imported)
                return made
            except AttributeError as error:
                if not in_old_gym(name):
                    raise ImportError(str(error)) from error
    known = registered(name)
    if known is None and in_old_gym(name):
        return functools.partial(importlib.import_module("gym").make, name)
    if many:
        return functools.partial(gymnasium.make_vec, known or name)
    return functools.partial(gymnasium.make, known or name, disable_env_checker=True)


def missing(id: str, error: Exception) -> UserError:
    """What to do where an environment, or a package that it needs, is not there."""
    import gymnasium

    text = " ".join(str(error).split()).rstrip(". ")
    wanted = re.search(r"gymnasium\[([\w-]+)\]", text)
    extra = wanted[1].replace("_", "-") if wanted else ""
    lacking = getattr(error.__cause__ or error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    cure = f"pip install the package of '{lacking}'" if lacking else ""
    cure += ", or correct the name" * (lacking == id.partition(".")[0].partition(":")[0])
    if isinstance(error, gymnasium.error.DependencyNotInstalled) or extra in EXTRAS:
        cure = f"pip install 'surefoot[{extra}]'" if extra in EXTRAS else text
    if cure:
        return UserError(f"environment '{id}' needs a package that is missing: {cure}")
    return unknown(id, f" ({text})")


def unknown(id: str, text: str = "", more: tuple[str, ...] = ()) -> UserError:
    """No environment has this name: the near ones, and how a package's are named."""
    names, file = near(id.rpartition(":")[2], more), of_file(id)
    hint = f"did you mean {' or '.join([file] if file else names)}? " if file or names else ""
    return UserError(f"no environment '{id}'{text}: {hint}PACKAGE:ID imports first the package that registers an id")


def wrapped(env: Any, spec: Gymnasium) -> Any:
    """The environment inside the wrappers of its description; one of the old Gym as one of Gymnasium's."""
    import gymnasium

    name = spec.id
    if isinstance(env, gymnasium.vector.VectorEnv):
        if spec.wrappers:
            raise UserError(f"'{name}' is a VectorEnv: wrap the environments that it is made of")
        return env
    if not isinstance(env, gymnasium.Env):
        what = f"'{name}' gives {type(env).__name__}, which is"
        if hasattr(env, "possible_agents"):
            raise UserError(f"{what} for several players: write an environment in which the others play by themselves")
        if hasattr(env, "num_envs"):
            raise UserError(f"{what} another library's vector: give a function that makes one of its environments")
        if not is_old_gym(env):
            raise UserError(f"{what} no gymnasium.Env")
        env = OldGym(env)
    for text in spec.wrappers:
        wrapper, _, given = text.partition(":")
        kind = getattr(gymnasium.wrappers, wrapper, None)
        if not (isinstance(kind, type) and issubclass(kind, gymnasium.Wrapper)):
            raise UserError(f"there is no wrapper '{wrapper}' in gymnasium.wrappers: name one of its classes")
        try:
            arguments = filter(None, re.split(r",(?=\s*\w+=)", given))  # a list's commas divide none
            how = {k: sizes(v) for k, v in parse_kwargs(map(str.strip, arguments), f"the wrapper {text}").items()}
            pictures = pictures_of(env.observation_space) if wrapper in FOR_PICTURES else []
            env = on_pictures(env, pictures, functools.partial(kind, **how)) if pictures else kind(env, **how)
        except (TypeError, ValueError, AssertionError, gymnasium.error.Error) as error:
            raise UserError(f"the wrapper {text} does not fit '{name}': {error}") from error
    normalizing(env, name)
    return env


def pictures_of(space: Any) -> list[str]:
    """The keys of a Dict's parts that are pictures."""
    import gymnasium

    is_dict = isinstance(space, gymnasium.spaces.Dict)
    return [part.path[0] for part in parts(space) if len(part.path) == 1 and part.is_image()] if is_dict else []


def on_pictures(env: Any, pictures: list[str], wrap: Callable[[Any], Any]) -> Any:
    """A wrapper of single pictures, such as ResizeObservation, around each of a Dict's."""
    import gymnasium

    each = dict[str, Any]()
    for name in pictures:
        alone = gymnasium.Env[Any, Any]()
        alone.observation_space = env.observation_space[name]
        each[name] = wrap(alone)
    space = gymnasium.spaces.Dict(
        {**env.observation_space.spaces, **{name: one.observation_space for name, one in each.items()}}
    )
    return gymnasium.wrappers.TransformObservation(
        env, lambda obs: {**obs, **{name: one.observation(obs[name]) for name, one in each.items()}}, space
    )


def sizes(value: Any) -> Any:
    """A tuple of sizes from 84x84; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\d+(x\d+)+", value):
        return tuple(int(size) for size in value.split("x"))
    return value


def normalizing(env: Any, name: str) -> None:
    """Say once where wrappers normalise by statistics that surefoot neither sees nor saves."""
    import gymnasium

    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.NormalizeReward):
            note_once(f"'{name}' normalises its rewards: scores are not raw, and the statistics are not saved")
        if isinstance(env, gymnasium.wrappers.NormalizeObservation):
            note_once(f"'{name}' normalises its observations: these statistics are not saved, network.running's are")
        env = env.env
