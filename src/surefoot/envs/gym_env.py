"""One Gymnasium environment as training sees it: observations as rows, action masks, exact replay.

What an environment must have: a reset that takes a seed and gives observation and info, a step that gives observation,
reward, terminated, truncated and info, observations of the announced shape, and a reward that is one number. Anything
else that differs from Gymnasium's contract is said once and learned from.
"""

from __future__ import annotations

import functools
import random
import sys
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from surefoot.envs.actions import action_converter, action_names, choices, numbers
from surefoot.envs.closing import close_env
from surefoot.envs.spaces import MASK, allow_something, as_array, blank, discrepancy, flat_mask, masked, pack, parts
from surefoot.errors import OURS, Fault, UserError, note, note_once, said

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surefoot.envs.gym import Gymnasium

    Array = NDArray[Any]

MAX_REPLAY = 100_000  # steps: a longer episode is not restored, a new one begins
INSPECTED = 64  # observations of each environment that are compared with the announced space
CARRY_OVER = ("BipedalWalker-v3", "BipedalWalkerHardcore-v3")  # whose world is kept from one episode to the next


TOLD: set[tuple[Gymnasium, tuple[Any, ...]]] = set()  # parts of observations about which something has been said
MASK_SOURCES: dict[Gymnasium, str] = {}  # of the environments seen so far, as `mask_source` gives it


def mask_source(env: Any, name: str) -> str:
    """Where action masks are: "info", "method" (`action_masks()`), or "" for nowhere; found by one reset.

    Raises UserError where the reset is none of Gymnasium's, Fault where it fails.
    """
    try:
        first = env.reset(seed=1)  # some take no 0
    except (UserError, *OURS):
        raise
    except BaseException as error:
        if isinstance(error, TypeError) and "seed" in str(error):
            raise UserError(f"'{name}' has a reset that takes no seed: {RESET}") from error
        raise Fault(f"environment '{name}' failed in its first reset: {said(error)}") from error
    if not (isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[1], dict | None)):
        raise UserError(f"'{name}' has a reset that does not give observation and info: {RESET}")
    return "info" if "action_mask" in (first[1] or {}) else "method" if mask_method(env) else ""


RESET = "def reset(self, *, seed=None, options=None) returns observation, info"
STEP = "it must give observation, reward, terminated, truncated and info"


def mask_method(env: Any, index: int = 0) -> Any:
    """The `action_masks` of an environment, or of environment `index` of a SyncVectorEnv; None where there is none."""
    with suppress(Exception):  # some have a __getattr__ that raises something else
        several: Any = env.unwrapped if isinstance(env, gymnasium.vector.VectorEnv) else None
        method = (several.envs[index] if several else env).get_wrapper_attr("action_masks")
        return method if callable(method) else None
    return None


def reward_of(reward: Any) -> float:
    """A reward as a number; arrays of one, fractions and decimals are one. Raises ValueError for anything else."""
    if isinstance(reward, float | int | np.integer | np.floating | np.bool_):
        return float(reward)
    cure = "a reward is one number"
    if reward is not None and not isinstance(reward, str | bytes):
        numbers = as_array(reward)
        if numbers.size == 1 and numbers.dtype.kind in "fiub":
            return float(numbers.reshape(-1)[0])
        cure += "; a wrapper adds several up, as mo_gymnasium.wrappers.LinearReward does" if numbers.size > 1 else ""
    raise ValueError(f"its reward is {repr(reward)[:80]}: {cure}")


def end_flag(flag: Any, name: str) -> bool:
    """`terminated` or `truncated` as a bool; None counts as False. Raises ValueError where it is not one flag."""
    if flag is None:
        note_once(f"its {name} is None, which counts as False")
        return False
    if not isinstance(flag, bool | np.bool_ | int):
        values = as_array(flag)  # a list or an array of one
        if values.size != 1 or values.dtype.kind not in "biuf":
            raise ValueError(f"its {name} is {repr(flag)[:80]}: it is one True or False")
        flag = values.reshape(-1)[0]
    return bool(flag)


class GymnasiumEnv:
    """One Gymnasium environment; observations are rows as `envs.spaces` lays them out."""

    life_lost = False

    def __init__(self, spec: Gymnasium, env: Any, source: str, alone: bool = True) -> None:
        """`source`: its `mask_source`; `alone`: False inside a VectorEnv, which converts actions and has the seeds."""
        self.spec, self.env, self.alone = spec, env, alone
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.source = source
        self.mask_of = mask_method(env) if self.source == "method" else None
        self.sizes = choices(self.action_space)
        try:
            convert = action_converter(self.action_space)
            if not (self.sizes or numbers(self.action_space)):
                raise UserError(f"actions are {self.action_space}: there is nothing to choose")
            if self.source and not self.sizes:
                note_once(f"'{spec.id}' has action masks for {self.action_space}, which has no alternatives: not used")
                self.source = ""
            if self.source:
                mask = spaces.MultiBinary(sum(self.sizes))
                self.observation_space = spaces.Dict({"observation": self.observation_space, MASK[0]: mask})
            self.layout = parts(self.observation_space)
            self.masks = masked(self.observation_space, self.action_space)
        except UserError as error:
            raise UserError(f"'{spec.id}' cannot be learned: {error}") from error
        self.alike = self.layout[0].is_plain() and not self.layout[0].path
        self.discrete = isinstance(self.action_space, spaces.Discrete)
        self.action_names = action_names(self.action_space)
        self.kind = "f" if numbers(self.action_space) else "q"
        self.numbers = functools.partial(np.asarray, dtype=self.kind)
        self.foreign = spec.is_foreign()  # may use global random numbers
        plain = self.discrete and self.action_space.start == 0 and not (self.foreign and alone)
        self.to_env_action = None if plain else convert
        self.remake, self.begun, self.inspected = spec.remake or spec.id in CARRY_OVER, False, 0
        self.seed, self.actions, self.steps, self.score = 0, array(self.kind), 0, 0.0
        self.obs = blank(self.observation_space)

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode with Gymnasium's own seeded reset; global random numbers are seeded too."""
        self.seed, self.actions, self.steps, self.score = seed, array(self.kind), 0, 0.0
        if self.remake and self.begun and self.alone:
            from surefoot.envs.opening import open_env

            mode = self.env.render_mode
            close_env(self.env)
            self.env = open_env(self.spec, mode == "rgb_array")
            self.mask_of = self.mask_of and mask_method(self.env)
        self.begun = True
        if self.foreign:
            seed_globals(seed)
        obs, info = self.env.reset(seed=seed)
        self._write(obs, info, False, out)

    def step(self, action: Any, out: Array) -> tuple[float, bool, bool]:
        """One step of the environment."""
        self.steps += 1
        if self.steps <= MAX_REPLAY and self.alone:
            if self.discrete:
                self.actions.append(action)
            else:
                self.actions.frombytes(self.numbers(action).tobytes())  # a fifth of `extend`'s time
        if self.to_env_action is not None and self.alone:
            action = self.to_env_action(action)
        result = self.env.step(action)
        try:
            obs, reward, terminated, truncated, info = result
        except (TypeError, ValueError) as error:
            what = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise ValueError(f"its step gives {what}: {STEP}") from error
        if terminated is not True and terminated is not False:
            terminated = end_flag(terminated, "terminated")
        if truncated is not True and truncated is not False:
            truncated = end_flag(truncated, "truncated")
        self._write(obs, info, terminated or truncated, out)
        if type(reward) is not float:
            reward = reward_of(reward)
        self.score += reward
        return reward, terminated, truncated

    def _write(self, obs: Any, info: Any, over: bool, out: Array) -> None:
        """Write an observation, and the mask, into `out`; raises ValueError where it is not one of its space."""
        if self.alike and type(obs) is np.ndarray and obs.shape == out.shape:  # nearly always, and every step counts
            try:
                np.copyto(out, obs, casting="same_kind")
            except (TypeError, FloatingPointError):  # objects that are numbers; where NumPy's errors are on
                self.layout[0].fill(obs, "its observation", out)
        elif not self.layout[0].path:
            self.layout[0].fill(obs, "its observation", out)
        else:
            if self.source:
                obs = {"observation": obs, MASK[0]: self._mask(info, over)}
            pack(self.layout, obs, out)
            if self.masks and not over:
                allow_something(out[self.layout[-1].start :], self.sizes)
        if self.inspected < INSPECTED:
            self.inspected += 1
            self._inspect(obs, info)
        self.obs = out

    def _mask(self, info: Any, over: bool) -> Array:
        """The action mask as one row; all ones where an episode is over."""
        mask = None if over else (self.mask_of() if self.mask_of else (info or {}).get("action_mask"))
        if mask is None:
            if not over:
                note_once("its info has no action_mask after some steps: there every action is allowed")
            return np.ones(sum(self.sizes), np.uint8)
        return flat_mask(mask, sum(self.sizes))

    def _inspect(self, obs: Any, info: Any) -> None:
        """Say once what an observation or info has that its space, or the first reset, does not announce."""
        if not self.source and "action_mask" in (info or {}):
            note_once("its info has an action_mask after some steps but not after its first reset: not used")
        for part in self.layout:
            value = obs
            for key in part.path:
                value = value[key]
            told = self.spec, part.path
            if told not in TOLD and (difference := discrepancy(part, value)):
                TOLD.add(told)
                note(f"{difference}: it is learned from as it is")

    def render(self) -> Any:
        """What the environment's own `render` gives."""
        try:
            return self.env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"the environment cannot be filmed: {error}") from error

    def snapshot(self) -> dict[str, Array]:
        """The episode's seed and actions, with the observation and score they led to."""
        place = np.array([self.seed, self.steps], np.int64)
        return {
            "place": place,
            "actions": np.array(self.actions),
            "obs": self.obs.copy(),
            "total": np.array([self.score]),
        }

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Replay the episode; False where it is too long, or where observation or score differ."""
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
        close_env(self.env)


def seed_globals(seed: int) -> None:
    """Seed the global random numbers that a package may use: Python's, NumPy's, and PyTorch's where it is loaded."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        (torch if torch.cuda.is_initialized() else torch.default_generator).manual_seed(seed)  # torch's takes 0.5 ms
