"""Environments and functions that make them, as a user's own module may have them."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from worlds import Catch, Target


def make_catch(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    assert render_mode is None
    return Catch()


def make_target() -> gymnasium.Env[Any, Any]:
    return Target()


def make_vector(number: int = 2) -> Any:
    return gymnasium.make_vec("CartPole-v1", number, "sync", {"autoreset_mode": "SameStep"})


def make_pictures(num_envs: int, render_mode: str | None = None) -> Any:
    assert render_mode in (None, "rgb_array")
    return gymnasium.vector.SyncVectorEnv([Image] * num_envs, autoreset_mode="SameStep")


class Unseeded(Catch):
    """Does not pass the seed on."""

    def reset(self, *, seed: int | None = None, options: Any = None):
        return super().reset(seed=None)


class Noisy(Target):
    """Does not pass the seed on; no two episodes are alike."""

    def reset(self, *, seed: int | None = None, options: Any = None):
        return super().reset(seed=None)


class Outside(Catch):
    """Shows what its space does not contain."""

    def _see(self) -> np.ndarray:
        return super()._see() + 1000


class FourTuple(Catch):
    """The old step."""

    def step(self, action: int):
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, info


class Stranger:
    """No gymnasium.Env at all."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)


class Camera(Catch):
    """A Dict with a picture, as robots have them."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {"arm": spaces.Box(-1, 1, (6,)), "top": spaces.Box(0, 255, (48, 64, 3), np.uint8)}
        )

    def _see(self) -> Any:
        return self.observation_space.sample()


class Image(Catch):
    """Catch as a picture."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (48, 40, 3), np.uint8)

    def _see(self) -> np.ndarray:
        picture = np.zeros((48, 40, 3), np.uint8)
        picture[8 * min(self.row, 5) : 8 * min(self.row, 5) + 8, 8 * self.ball : 8 * self.ball + 8, 0] = 255
        picture[40:, 8 * self.paddle : 8 * self.paddle + 8, 1] = 255
        return picture

    def render(self) -> Any:
        return self._see()


class ShortPictures(Image):
    """Ends after three steps."""

    def step(self, action: int):
        *rest, _, late, info = super().step(action)
        return *rest, self.row == 3, late, info


gymnasium.register("ShortPictures-v0", ShortPictures)


class Masked(Catch):
    """With a mask in the info of `where`; `picture`: seen as one; `size` must be named, as many a user's own is."""

    def __init__(self, size: int, where: str = "reset step", picture: bool = False, actions: int = 1) -> None:
        super().__init__()
        self.size, self.where = size, where
        if picture:
            self.observation_space = spaces.Box(0, 255, (48, 40, 3), np.uint8)
        if actions > 1:
            self.action_space = spaces.MultiDiscrete([3] * actions)

    def _info(self, of: str) -> dict[str, Any]:
        return {"action_mask": np.array([1, 1, 0], np.int8)} if of in self.where else {}

    def _see(self) -> np.ndarray:
        return Image._see(self) if self.observation_space.dtype == np.uint8 else super()._see()

    def reset(self, *, seed: int | None = None, options: Any = None):
        return super().reset(seed=seed)[0], self._info("reset")

    def step(self, action: Any):
        assert np.max(action) != 2 or self.where != "reset step" or np.ndim(action), "a forbidden action"
        obs, reward, over, late, _ = super().step(int(np.max(action)))
        return obs, reward, over, late, self._info("step")


class Copyless(gymnasium.Wrapper):
    """Can neither be copied nor made again."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copy")


class Broken(Catch):
    """Fails in its first step."""

    def step(self, action: int):
        raise RuntimeError("no licence")


class NoSeed(Catch):
    """A reset without a seed."""

    def reset(self):
        return super().reset()


class NoInfo(Catch):
    """A reset that gives the observation alone."""

    def reset(self, *, seed: int | None = None, options: Any = None):
        return super().reset(seed=seed)[0]


class Faulty(Catch):
    """Fails while it is made."""

    def __init__(self) -> None:
        self.no_such_field  # noqa: B018


class Everything(gymnasium.Env):
    """A picture, numbers, choices and a mask to see; choices and numbers with bounds of every kind to act in."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            picture=spaces.Box(0, 255, (40, 44, 3), np.uint8),
            speed=spaces.Box(-np.inf, np.inf, (3,), np.float64),
            gear=spaces.Discrete(4, start=-1),
            doors=spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3], start=[1, 0])]),
            action_mask=spaces.MultiBinary(3 + 2 * 2),
        )
        self.action_space = spaces.Dict(
            turn=spaces.Discrete(3, start=5),
            lamps=spaces.MultiBinary(2),
            push=spaces.Box(np.array([-3, 1]), np.array([5, 1.5]), dtype=np.float64),
            count=spaces.Box(-7, 9, (1,), np.int32),
            free=spaces.Box(np.array([-np.inf, -1], np.float32), np.inf, dtype=np.float32),
        )

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self._see(), {}

    def _see(self) -> Any:
        seen = self.observation_space.sample()
        seen["action_mask"][[0, 3, 5]] = 1
        return seen

    def step(self, action: Any):
        assert self.action_space.contains(action)
        return self._see(), 0.0, False, False, {}


def make_all() -> gymnasium.Env[Any, Any]:
    return Everything()
