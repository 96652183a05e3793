"""A user's own VectorEnv: environments that are stepped together, each of them seen as one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from surefoot.errors import UserError

Seen = tuple[Any, dict[str, Any]]  # an observation, and info


class Vector:
    """A VectorEnv of `count` environments (0: one, alone) that begin anew in the step in which an episode ends.

    Its autoreset mode is SAME_STEP; or DISABLED: then we reset. NEXT_STEP is refused: in the step after an ending it
    ignores the action, so that there is nothing to learn from in its row. Raises UserError.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], name: str, count: int) -> None:
        mode, expected = env.metadata.get("autoreset_mode"), count or 1
        wrong = ""
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            wrong = (
                f"'{name}' has {mode} as metadata['autoreset_mode']: make it with SAME_STEP or DISABLED (NEXT_STEP has "
                "steps that ignore their action), as gymnasium.make_vec(id, n, 'sync', {'autoreset_mode': 'SameStep'})"
            )
        elif env.num_envs != expected:
            wrong = f"'{name}' makes {env.num_envs} environments where num_envs is {expected}: make so many"
        if wrong:
            env.close()
            raise UserError(wrong)
        self.env, self.same_step, self.alone = env, mode is AutoresetMode.SAME_STEP, not count
        self.seats = [Seat(self, i) for i in range(expected)]
        self.games: list[Any] = []
        self.translate: Callable[[Any], Any] | None = None
        self.last: list[tuple[Any, float, bool, bool, dict[str, Any]]] = []
        """what the last step brought each environment"""
        self.first: dict[int, Seen] = {}
        """what environments show whose next episode has begun"""

    def reset(self, i: int, seed: int | None) -> Seen:
        """Environment i's next episode; where it has not begun, all begin one with `seed`."""
        if self.alone or i not in self.first:
            self.first = dict(enumerate(self.split(*self.env.reset(seed=seed))))
        return self.first.pop(i)

    def step(self, actions: Any) -> None:
        """One decision in every environment."""
        if self.translate is not None:
            actions = [self.translate(action) for action in actions]
        space = self.env.action_space
        batch = np.asarray(actions, space.dtype).reshape(space.shape)
        obs, reward, terminated, truncated, info = self.env.step(batch)
        over = np.logical_or(terminated, truncated)
        first = seen = self.split(obs, info)
        if over.any() and self.same_step:
            final = self.split(info["final_obs"], info.get("final_info", info))
            seen = [final[i] if over[i] else seen[i] for i in range(len(seen))]
        elif over.any():
            seen = self.split(deepcopy(obs), info)  # resetting may write into it
            first = self.split(*self.env.reset(options={"reset_mask": over}))
            kept = [data_equivalence(a, b, True) for (a, _), (b, _) in zip(seen, first, strict=True)]
            if not np.logical_or(over, kept).all():
                raise ValueError("its reset with options['reset_mask'] changes environments that are not in it")
        self.first = {i: first[i] for i in np.flatnonzero(over).tolist()}
        rows = zip(seen, reward, terminated, truncated, strict=True)
        self.last = [(o, float(r), bool(end), bool(cut), facts) for (o, facts), r, end, cut in rows]

    def split(self, obs: Any, info: dict[str, Any]) -> list[Seen]:
        """What each environment shows, and its action mask, where there is one."""
        rows = iterate(self.env.observation_space, obs) if isinstance(obs, dict) else obs
        masks = info.get("action_mask")
        return [(row, {} if masks is None else {"action_mask": masks[i]}) for i, row in enumerate(rows)]


class Seat(gymnasium.Env[Any, Any]):
    """Environment i of a VectorEnv, as an Env; Games step the VectorEnv where there are others in it."""

    def __init__(self, vector: Vector, i: int) -> None:
        self.vector, self.i, env = vector, i, vector.env
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.metadata, self.render_mode, self.spec = env.metadata, env.render_mode, env.spec

    def reset(self, *, seed: int | None = None, options: Any = None) -> Seen:
        """Begin an episode; the seed counts where it is alone, or where all begin one."""
        super().reset(seed=seed)
        return self.vector.reset(self.i, seed)

    def step(self, action: Any) -> Any:
        """What the step brings, or has brought."""
        if self.vector.alone:
            self.vector.step([action])
        return self.vector.last[self.i]

    def render(self) -> Any:
        """Its picture."""
        return self.vector.env.render()[self.i]  # type: ignore[index]

    def close(self) -> None:
        """Close the VectorEnv, once."""
        if self.i == 0:
            self.vector.env.close()
