"""A user's own VectorEnv, whose sub-environments are stepped together, seen as single environments."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from surefoot.envs.closing import close_env
from surefoot.envs.gym_env import GymnasiumEnv, mask_method, reward_of
from surefoot.envs.spaces import as_array
from surefoot.errors import UserError, note_once

if TYPE_CHECKING:
    from surefoot.envs.gym import Gymnasium

ObsInfo = tuple[Any, dict[str, Any]]


class VectorEnvAdapter:
    """A VectorEnv as single environments, `envs`, whichever way its episodes begin.

    SAME_STEP: in the step in which one ends. DISABLED: we reset it then. NEXT_STEP: in the step after, which ignores
    the action: `skipped` has the environments for which the last step was such a reset, and no transition.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], spec: Gymnasium, source: str) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is None:  # Gymnasium's own default
            note_once(f"'{spec.id}' has no metadata['autoreset_mode']: taken for NEXT_STEP, Gymnasium's default")
            mode = AutoresetMode.NEXT_STEP
        self.env, self.name, self.mode = env, spec.id, AutoresetMode(getattr(mode, "value", mode))
        self.next_step = self.mode is AutoresetMode.NEXT_STEP
        self.observation_space = of_all(env.observation_space, env.single_observation_space, env.num_envs)
        self.action_space = of_all(env.action_space, env.single_action_space, env.num_envs)
        self.skipped: list[int] = []
        self.over = np.zeros(env.num_envs, bool)
        """environments whose episode ended in the last step and, with NEXT_STEP, begins in the next"""
        self.last: list[tuple[Any, float, bool, bool, dict[str, Any]]] = []
        """the last step of each environment: observation, reward, terminated, truncated, info"""
        self.first: dict[int, ObsInfo] = {}
        """first observations of the environments whose next episode has begun"""
        self.stepped_together = False
        """an EnvVector steps the VectorEnv; otherwise environment 0 does, on its own"""
        self.envs = [GymnasiumEnv(spec, SubEnv(self, i), source, alone=False) for i in range(env.num_envs)]
        self.to_env_action = self.envs[0].to_env_action

    def require(self, count: int) -> None:
        """Raise UserError where there are not `count` environments; from now on they are stepped together."""
        if (made := self.env.num_envs) != count:
            close_env(self.env)
            cure = f"train with {made} on one rank, or give a function that makes num_envs of them"
            raise UserError(f"'{self.name}' makes {made} environments where {count} are asked of it: {cure}")
        self.stepped_together = True

    def reset(self, i: int, seed: int | None) -> ObsInfo:
        """Environment i's next episode; where it has not begun yet, all environments are reset with `seed`."""
        if not self.stepped_together or i not in self.first:
            self.first = dict(enumerate(self.split(*self.reset_all(seed))))
            self.over[:] = False
        return self.first.pop(i)

    def reset_all(self, seed: int | None) -> Any:
        """Gymnasium's reset of all environments, seeded as far as this VectorEnv can be."""
        for given in ({"seed": seed}, {"seed": (seed or 0) % 2**31}):
            with suppress(TypeError, OverflowError):  # takes no seed, or only 31 bits of one
                return self.env.reset(**given)
        note_once(f"'{self.name}' has a reset that takes no seed: runs with it are not reproducible")
        return self.env.reset()

    def step(self, actions: Any) -> None:
        """One step of every environment."""
        if self.to_env_action is not None:
            actions = [self.to_env_action(action) for action in actions]
        obs, reward, terminated, truncated, info = self.env.step(batched(self.action_space, actions))
        terminated, truncated = (
            np.array(as_array(f), bool).reshape(self.env.num_envs) for f in (terminated, truncated)
        )
        over = terminated | truncated
        first = rows = self.split(obs, info)
        if self.next_step:
            self.skipped = np.flatnonzero(self.over).tolist()
            self.first = {i: rows[i] for i in self.skipped}
            over &= ~self.over
        elif over.any() and self.mode is AutoresetMode.SAME_STEP:
            final = info["final_observation"] if "final_observation" in info else info["final_obs"]
            ended = self.split(final, {})  # what follows an end needs no mask
            rows = [ended[i] if over[i] else rows[i] for i in range(len(rows))]
        elif over.any():
            rows = self.split(deepcopy(obs), info)  # the reset may write into it
            first = self.split(*self.env.reset(options={"reset_mask": over}))
            same = [data_equivalence(a, b, True) for (a, _), (b, _) in zip(rows, first, strict=True)]
            if not np.logical_or(over, same).all():
                raise ValueError("its reset with options['reset_mask'] changes environments that are not in it")
        if not self.next_step:
            self.first = {i: first[i] for i in np.flatnonzero(over).tolist()}
        self.over = over
        steps = zip(rows, as_array(reward).tolist(), terminated.tolist(), truncated.tolist(), strict=True)
        self.last = [(o, reward_of(r), end, cut, info) for (o, info), r, end, cut in steps]

    def split(self, obs: Any, info: dict[str, Any] | None) -> list[ObsInfo]:
        """Each environment's observation, and its action mask where there is one."""
        rows = iterate(self.observation_space, obs) if isinstance(obs, dict | tuple) else obs
        masks = (info or {}).get("action_mask")
        return [(row, {} if masks is None else {"action_mask": masks[i]}) for i, row in enumerate(rows)]


def of_all(space: Any, single: Any, count: int) -> Any:
    """The space of all environments: as announced, or made of the single one, which EnvPool announces for all."""
    return batch_space(single, count) if space == single else space


def batched(space: Any, actions: Any) -> Any:
    """Actions of all environments as their VectorEnv's space has them: arrays, inside of its Dicts and Tuples."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: batched(inner, [action[key] for action in actions]) for key, inner in space.items()}
    if isinstance(space, gymnasium.spaces.Tuple) and isinstance(actions[0], tuple):
        return tuple(batched(inner, [action[k] for action in actions]) for k, inner in enumerate(space))
    return np.asarray(actions, space.dtype).reshape(space.shape)


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
        if not self.vector.stepped_together:
            self.vector.step([action] * self.vector.env.num_envs)
        return self.vector.last[self.i]

    def action_masks(self) -> Any:
        """What this environment's own `action_masks` gives, where it has one."""
        return mask_method(self.vector.env, self.i)()

    def render(self) -> Any:
        """This environment's frame."""
        return self.vector.env.render()[self.i]  # type: ignore[index]

    def close(self) -> None:
        """Close the VectorEnv, once."""
        if self.i == 0:
            close_env(self.vector.env)
