"""The old lesson's `parallelEnv`: several games side by side, with its interface, of today's ALE.

`from parallelEnv import parallelEnv` becomes `from surefoot.lesson.parallelEnv import parallelEnv`; after
`from surefoot.lesson import parallelEnv` the module can be called as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from surefoot.errors import UserError, note
from surefoot.lesson.old_gym import Env

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class parallelEnv:
    """n games that are stepped together; a game that is over begins anew with the same step.

    They run in this process, one after another: no pipes, and frames are not copied between processes.
    """

    def __init__(self, env_id: str = "PongDeterministic-v4", n: int = 8, seed: int = 0) -> None:
        """`env_id`: an Atari id of old Gym. Equal seeds and actions give equal games. Raises UserError."""
        if int(n) < 1:
            raise UserError(f"n is {n}; allowed is at least 1")
        if int(n) == 1:
            note("with one game there is nothing to compare: rewards normalised over the games are all 0")
        self.ps = [Env(env_id, seed, i) for i in range(int(n))]
        """the games; the lesson's code asks for their number, len(envs.ps)"""
        self.observation_space, self.action_space = self.ps[0].observation_space, self.ps[0].action_space

    def reset(self) -> Array:
        """Begin all games; frames uint8 [n, 210, 160, 3]."""
        return np.stack([env.reset() for env in self.ps])

    def step(self, actions: Sequence[int] | Array) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """One action for each game; returns frames [n, 210, 160, 3], rewards [n], whether it was over [n], infos."""
        actions = np.asarray(actions).reshape(-1)
        if len(actions) != len(self.ps):
            raise UserError(f"there are {len(actions)} actions for {len(self.ps)} games")
        frames, rewards, dones, infos = zip(*(e.step(a) for e, a in zip(self.ps, actions, strict=True)), strict=True)
        shown = [env.reset() if done else frame for env, frame, done in zip(self.ps, frames, dones, strict=True)]
        return np.stack(shown), np.array(rewards), np.array(dones), list(infos)

    def close(self) -> None:
        """Close all games."""
        for env in self.ps:
            env.close()


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> parallelEnv:
        return parallelEnv(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
