"""Environments of the old Gym package, and objects that behave like one, as Gymnasium environments."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from surefoot.errors import UserError


def is_old_gym(env: Any) -> bool:
    """Whether an object has what an environment has, without being one of Gymnasium's."""
    needed = all(callable(getattr(env, name, None)) for name in ("reset", "step"))
    return needed and hasattr(env, "observation_space") and hasattr(env, "action_space")


def space_of(old: Any) -> spaces.Space[Any]:
    """Gymnasium's space of an old Gym's; raises UserError where there is none."""
    kind = type(old).__name__.removesuffix("Space")  # as some call their own, which need no Gym
    if isinstance(old, spaces.Space):
        return old
    if kind == "Box":
        low, high = (np.broadcast_to(bound, old.shape).astype(old.dtype) for bound in (old.low, old.high))
        return spaces.Box(low, high, old.shape, old.dtype)
    if kind == "Discrete":
        return spaces.Discrete(int(old.n), start=int(getattr(old, "start", 0)))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(old.nvec)
    if kind == "MultiBinary":
        return spaces.MultiBinary(old.n)
    if kind in ("Dict", "Tuple"):
        inner = old.spaces
        return (
            spaces.Dict({key: space_of(space) for key, space in inner.items()})
            if kind == "Dict"
            else spaces.Tuple([space_of(space) for space in inner])
        )
    raise UserError(f"the space {old} of the old Gym package has no counterpart in Gymnasium")


class OldGym(gymnasium.Env[Any, Any]):
    """An environment with the interface of Gym 0.21 (`done`, `seed()`), of 0.26, or of Gymnasium without its base."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.observation_space, self.action_space = space_of(env.observation_space), space_of(env.action_space)
        old: Any = getattr(env, "metadata", None) or {}
        modes, fps = (old.get(a, old.get(b)) for a, b in (
            ("render_modes", "render.modes"), ("render_fps", "video.frames_per_second")))  # fmt: skip
        self.metadata = {"render_modes": modes or [], "render_fps": fps or 30}
        parameters = inspect.signature(env.reset).parameters.values()
        self.takes_seed = any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)
        self.render_mode = getattr(env, "render_mode", None)
        if hasattr(env, "action_masks"):
            self.action_masks = env.action_masks

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, seeded as this version of Gym does it."""
        super().reset(seed=seed)
        if self.takes_seed:
            first = self.env.reset(seed=seed)
        else:
            if seed is not None and callable(getattr(self.env, "seed", None)):
                self.env.seed(seed % 2**31)
            first = self.env.reset()
        if isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], dict):
            return first
        return first, {}

    def step(self, action: Any) -> Any:
        """One step; `done` is a truncation where the time limit's wrapper says so."""
        result = self.env.step(action)
        if len(result) != 4:
            return result
        obs, reward, done, info = result
        cut = bool(done and (info or {}).get("TimeLimit.truncated", False))
        return obs, reward, bool(done) and not cut, cut, info

    def render(self) -> Any:
        """The frame, as 0.26 or 0.21 give it."""
        if "mode" in inspect.signature(self.env.render).parameters:
            return self.env.render(mode="rgb_array")
        return self.env.render()

    def close(self) -> None:
        """Close it, where it can be closed."""
        close = getattr(self.env, "close", None)
        if callable(close):
            close()
