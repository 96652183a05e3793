"""Gymnasium environments as a Config describes them: by their id, or by a function that makes one."""

from __future__ import annotations

import copy
import functools
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from surefoot.envs.closing import close_env
from surefoot.envs.makers import LOCAL_MAKERS, OURS
from surefoot.errors import UserError

if TYPE_CHECKING:
    from surefoot.envs.gym_env import GymnasiumEnv
    from surefoot.envs.vector_env import VectorEnvAdapter


@dataclass(frozen=True)
class Gymnasium:
    """A Gymnasium environment, by its id or by a function that makes it."""

    id: str = "CartPole-v1"
    """as for gymnasium.make, or module:function, which returns an Env or a VectorEnv"""
    kwargs: tuple[str, ...] = ()
    """keyword arguments of the constructor, as NAME=VALUE: is_slippery=False map_name=8x8"""
    wrappers: tuple[str, ...] = ()
    """wrappers of gymnasium.wrappers, the innermost first: FlattenObservation ResizeObservation:shape=84x84"""
    remake: bool = False
    """make a new environment for every episode, where one carries something over from one episode to the next"""

    def is_foreign(self) -> bool:
        """Whether it is none of those that Gymnasium and ALE register, which keep their word."""
        import gymnasium

        return not str(getattr(gymnasium.registry.get(self.id), "entry_point", "")).startswith(OURS)

    def make(self, render: bool = False) -> GymnasiumEnv:
        """The environment, or the first of a VectorEnv on its own; `render`: with render_mode rgb_array."""
        from surefoot.envs.gym_env import GymnasiumEnv

        made = self.open(1, render)
        return made if isinstance(made, GymnasiumEnv) else made.envs[0]

    def open(self, count: int, render: bool = False) -> GymnasiumEnv | VectorEnvAdapter:
        """The first of `count` environments; all of them where this makes a VectorEnv (perhaps of another number)."""
        from gymnasium.vector import VectorEnv

        from surefoot.envs.gym_env import MASK_SOURCES, GymnasiumEnv, mask_source
        from surefoot.envs.opening import open_env

        if self not in MASK_SOURCES:  # of an environment of its own: a reset may leave something behind
            first = open_env(self)
            try:
                MASK_SOURCES[self] = mask_source(first, self.id)
            finally:
                close_env(first)
        env = open_env(self, render, count)
        if not isinstance(env, VectorEnv):
            return GymnasiumEnv(self, env, MASK_SOURCES[self])
        from surefoot.envs.vector_env import VectorEnvAdapter

        return VectorEnvAdapter(env, self, MASK_SOURCES[self])


def describe(maker: Any) -> Gymnasium:
    """The description of an environment that is given as an object or as a function that makes one.

    A function that other processes can import is described by its name. An object is copied for every environment of a
    run, or made again from its Gymnasium id where it cannot be copied or a video needs another render_mode.
    """
    import gymnasium

    from surefoot.envs.old_gym import is_old_gym

    if isinstance(maker, gymnasium.envs.registration.EnvSpec):
        if gymnasium.registry.get(maker.id) is maker:
            return Gymnasium(maker.id)
        maker = functools.partial(gymnasium.make, maker)
    environment = isinstance(maker, gymnasium.Env) or (not isinstance(maker, type) and is_old_gym(maker))
    if isinstance(maker, gymnasium.vector.VectorEnv):
        raise UserError("a VectorEnv cannot be copied: give the function that makes it")
    if callable(maker) and not environment:
        named = maker.func if isinstance(maker, functools.partial) else maker
        name = f"{named.__module__}:{getattr(named, '__qualname__', type(named).__name__)}"
        where = sys.modules.get(maker.__module__)
        if maker.__module__ != "__main__" and getattr(where, getattr(maker, "__qualname__", ""), None) is maker:
            return Gymnasium(name)
        make = maker
    elif not environment:
        raise UserError(f"{type(maker).__name__} is no gymnasium.Env and makes none")
    else:
        spec: Any = getattr(maker, "spec", None)
        name = f"{type(maker).__module__}:{type(maker).__qualname__}"

        def make(**how: Any) -> Any:
            if not how or spec is None:
                with suppress(Exception):  # some cannot be copied
                    return copy.deepcopy(maker)
            try:
                return gymnasium.make(spec, **how)
            except Exception as error:
                failure = f"{name} can neither be copied nor made again ({error})"
                raise UserError(f"{failure}: give a function that makes it") from error

    name = f"{name}#{len(LOCAL_MAKERS)}"
    LOCAL_MAKERS[name] = make
    return Gymnasium(name)


def is_local(env: object) -> TypeGuard[Gymnasium]:
    """Whether an environment can be made in this process only."""
    return isinstance(env, Gymnasium) and env.id in LOCAL_MAKERS
