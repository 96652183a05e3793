"""Atari games as old Gym had them: ids such as PongDeterministic-v4, `reset` that returns a frame, `step` four things.

An old notebook's `import gym` gets this module (`surefoot notebook`). The games are surefoot's own on today's ALE.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from surefoot.envs.atari import Atari, Pong
from surefoot.envs.interface import Environment, EnvSpec
from surefoot.envs.interface import make as make_env
from surefoot.errors import UserError
from surefoot.rng import Purpose, integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[Any]

__version__ = "0.0 (surefoot.lesson.old_gym)"
ID = re.compile(r"(?:ALE/)?([A-Za-z]+?)(Deterministic|NoFrameskip)?-v([045])")
PONG = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")


def describe(env_id: str) -> EnvSpec:
    """The game of an old id with the settings it had, and no no-ops at the start. Raises UserError for another id.

    Deterministic: 4 frames a step; NoFrameskip: 1; neither: 2 to 4 (v5: 4). v0 and v5 have sticky actions, v4 has not.
    """
    match = ID.fullmatch(env_id) if isinstance(env_id, str) else None
    if not match:
        raise UserError(f"'{env_id}' is no Atari id: give one such as PongDeterministic-v4")
    name, kind, version = match.groups()
    skip = {"Deterministic": (4,), "NoFrameskip": (1,)}.get(kind, (4,) if version == "5" else (2, 4))
    sticky = 0.0 if version == "4" else 0.25
    if name == "Pong":
        return Pong(PONG, skip, sticky, noop_max=0)
    return Atari(re.sub("(?<!^)(?=[A-Z])", "_", name).lower(), skip, sticky, noop_max=0)


class Env:
    """One game with old Gym's interface; frames are uint8 [210, 160, 3]."""

    def __init__(self, env_id: str, seed: int = 0, number: int = 0) -> None:
        """`number`: of this environment among its like; all have episodes of their own."""
        import numpy as np
        from gymnasium import spaces

        self.game: Environment = make_env(describe(env_id))
        self.action_space = self.game.action_space
        self.observation_space = spaces.Box(0, 255, (210, 160, 3), np.uint8)
        self.obs = np.zeros(self.game.observation_space.shape or (), np.uint8)
        self.number, self.episode, self.unwrapped = number, 0, self
        self.seed(seed)

    def seed(self, seed: int = 0) -> list[int]:
        """Begin the episodes of this seed with the next reset."""
        self.first, self.episode = int(seed), 0
        return [self.first]

    def get_action_meanings(self) -> list[str]:
        """The actions by ALE's names."""
        return list(self.game.action_names)

    def reset(self) -> Frame:
        """Begin an episode; returns its first frame."""
        self.game.reset(integer(self.first, Purpose.RESETS, self.number, self.episode), self.obs)
        self.episode += 1
        return self.render()

    def step(self, action: int) -> tuple[Frame, float, bool, dict[str, Any]]:
        """Take one action; returns frame, reward, whether the episode is over, and an empty dict."""
        if not self.episode:
            self.reset()
        if not 0 <= int(action) < len(self.game.action_names):
            names = ", ".join(f"{i} {name}" for i, name in enumerate(self.game.action_names))
            raise UserError(f"there is no action {action}: choose one of {names}")
        reward, terminated, truncated = self.game.step(int(action), self.obs)
        return self.render(), reward, terminated or truncated, {}

    def render(self, mode: str = "rgb_array") -> Frame:
        """The present frame; there are no windows."""
        frame: Frame = self.game.render()
        return frame

    def close(self) -> None:
        """Close the game, which can be reset all the same."""
        self.game.close()


def make(env_id: str) -> Env:
    """The environment of an old id."""
    return Env(env_id)
