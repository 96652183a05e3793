"""A user's own VectorEnv, whose sub-environments are stepped together, seen as single environments."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from surefoot.envs.closing import close_env
from surefoot.errors import UserError

ObsInfo = tuple[Any, dict[str, Any]]


class VectorEnvAdapter:
    """A VectorEnv of `count` environments (0: one on its own) that are reset in the step in which an episode ends.

    Its autoreset mode is SAME_STEP, or DISABLED: then we reset. NEXT_STEP is refused (UserError): in the step after an
    episode's end it ignores the action, and that row is no transition.
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
            wrong = f"'{name}' makes {env.num_envs} environments where num_envs is {expected}: make that many"
        if wrong:
            close_env(env)
            raise UserError(wrong)
        self.env, self.same_step, self.alone = env, mode is AutoresetMode.SAME_STEP, not count
        self.sub_envs = [SubEnv(self, i) for i in range(expected)]
        self.envs: list[Any] = []
        self.to_env_action: Callable[[Any], Any] | None = None
        self.last: list[tuple[Any, float, bool, bool, dict[str, Any]]] = []
        """the last step of each environment: observation, reward, terminated, truncated, info"""
        self.first: dict[int, ObsInfo] = {}
        """first observations of the environments whose next episode has begun"""

    def reset(self, i: int, seed: int | None) -> ObsInfo:
        """Environment i's next episode; where it has not begun yet, all environments are reset with `seed`."""
        if self.alone or i not in self.first:
            self.first = dict(enumerate(self.split(*self.env.reset(seed=seed))))
        return self.first.pop(i)

    def step(self, actions: Any) -> None:
        """One step of every environment."""
        if self.to_env_action is not None:
            actions = [self.to_env_action(action) for action in actions]
        space = self.env.action_space
        batch = np.asarray(actions, space.dtype).reshape(space.shape)
        obs, reward, terminated, truncated, info = self.env.step(batch)
        over = np.logical_or(terminated, truncated)
        first = rows = self.split(obs, info)
        if over.any() and self.same_step:
            final = self.split(info["final_obs"], info.get("final_info", info))
            rows = [final[i] if over[i] else rows[i] for i in range(len(rows))]
        elif over.any():
            rows = self.split(deepcopy(obs), info)  # the reset may write into it
            first = self.split(*self.env.reset(options={"reset_mask": over}))
            same = [data_equivalence(a, b, True) for (a, _), (b, _) in zip(rows, first, strict=True)]
            if not np.logical_or(over, same).all():
                raise ValueError("its reset with options['reset_mask'] changes environments that are not in it")
        self.first = {i: first[i] for i in np.flatnonzero(over).tolist()}
        steps = zip(rows, reward, terminated, truncated, strict=True)
        self.last = [(o, float(r), bool(end), bool(cut), info) for (o, info), r, end, cut in steps]

    def split(self, obs: Any, info: dict[str, Any]) -> list[ObsInfo]:
        """Each environment's observation, and its action mask where there is one."""
        rows = iterate(self.env.observation_space, obs) if isinstance(obs, dict) else obs
        masks = info.get("action_mask")
        return [(row, {} if masks is None else {"action_mask": masks[i]}) for i, row in enumerate(rows)]


class SubEnv(gymnasium.Env[Any, Any]):
    """Environment i of a VectorEnv as an Env; an EnvVector steps the VectorEnv before it steps these."""

    def __init__(self, vector: VectorEnvAdapter, i: int) -> None:
        self.vector, self.i, env = vector, i, vector.env
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.metadata, self.render_mode, self.spec = env.metadata, env.render_mode, env.spec

    def reset(self, *, seed: int | None = None, options: Any = None) -> ObsInfo:
        """Begin an episode; the seed is used where all environments are reset."""
        super().reset(seed=seed)
        return self.vector.reset(self.i, seed)

    def step(self, action: Any) -> Any:
        """This environment's row of the VectorEnv's last step, which is taken here only where it is alone."""
        if self.vector.alone:
            self.vector.step([action])
        return self.vector.last[self.i]

    def render(self) -> Any:
        """This environment's frame."""
        return self.vector.env.render()[self.i]  # type: ignore[index]

    def close(self) -> None:
        """Close the VectorEnv, once."""
        if self.i == 0:
            close_env(self.vector.env)
