"""Small environments with known answers, registered with Gymnasium: `worlds:Identity-v0` and so on."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class World(gymnasium.Env):
    """A vector to see, some actions to choose from."""

    def __init__(self, size: int, actions: int) -> None:
        self.observation_space = spaces.Box(-100.0, 100.0, (size,), np.float32)
        self.action_space = spaces.Discrete(actions)


class Identity(World):
    """Shows one of four symbols; the right action is that symbol's number. 10 steps; a perfect score is 10."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def _show(self) -> np.ndarray:
        self.symbol = int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.symbol]

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.left = 10
        return self._show(), {}

    def step(self, action: int):
        reward = float(action == self.symbol)
        self.left -= 1
        return self._show(), reward, self.left == 0, False, {}


class Lamps(Identity):
    """Identity as a picture: which quarter is lit."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (12, 12, 1), np.uint8)

    def _show(self) -> np.ndarray:
        lit = super()._show().reshape(2, 2, 1).astype(np.uint8)
        return 255 * lit.repeat(6, 0).repeat(6, 1)


class Catch(World):
    """A ball falls through 6 rows of 5 columns; stand under it. Left, stay, right; +1 or -1 at the end."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def _see(self) -> np.ndarray:
        return np.array([self.ball / 2 - 1, self.row / 3 - 1, self.paddle / 2 - 1], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.ball, self.row, self.paddle = int(self.np_random.integers(5)), 0, 2
        return self._see(), {}

    def step(self, action: int):
        self.paddle = min(4, max(0, self.paddle + action - 1))
        self.row += 1
        over = self.row == 6
        reward = (1.0 if self.paddle == self.ball else -1.0) if over else 0.0
        return self._see(), reward, over, False, {}


class Corridor(World):
    """Endless: reward 1 for every step, whatever is done. The truth is V = 1 / (1 - gamma)."""

    def __init__(self) -> None:
        super().__init__(1, 2)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: int):
        return np.zeros(1, np.float32), 1.0, False, False, {}


class Scripted(World):
    """Shows (episode's seed mod 97, step, last action); episodes of the given lengths in turn, ended as told.

    Rewards are step + 10 * action, so every score can be added up by hand. Each object counts its episodes.
    """

    def __init__(self, lengths: tuple[int, ...] = (3,), ending: str = "terminated") -> None:
        super().__init__(3, 2)
        self.lengths, self.ending, self.episode = lengths, ending, -1

    def _see(self, action: int) -> np.ndarray:
        return np.array([self.tag, self.t, action], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.tag, self.t = (seed or 0) % 97, 0
        self.episode += 1
        return self._see(-1), {}

    def step(self, action: int):
        self.t += 1
        over = self.t == self.lengths[self.episode % len(self.lengths)]
        terminated = over and self.ending in ("terminated", "both")
        truncated = over and self.ending in ("truncated", "both")
        return self._see(action), self.t + 10.0 * action, terminated, truncated, {}


class Uneven(Scripted):
    """Episodes of 1 to 7 steps, as their seed says, that are truncated."""

    def __init__(self) -> None:
        super().__init__(ending="truncated")

    def reset(self, *, seed: int | None = None, options: Any = None):
        self.lengths = (1 + (seed or 0) % 7,)
        return super().reset(seed=seed)


class Carrying(Identity):
    """Breaks the promise that an episode depends on seed and actions alone: it carries a count across episodes."""

    carried = 0

    def _show(self) -> np.ndarray:
        Carrying.carried += 1
        return super()._show() + Carrying.carried


class Faulty(Scripted):
    """Breaks Gymnasium's contract, in the way it is told, in the 70th step of one of its kind."""

    last: ClassVar[dict[str, Any]] = {}
    steps = made = 0

    def __init__(self, fault: str) -> None:
        super().__init__((40,))
        self.fault, self.number = fault, Faulty.made
        Faulty.made += 1

    def reset(self, *, seed: int | None = None, options: Any = None):
        self.seed, self.actions = seed, []
        Faulty.last = {"seed": seed}
        return super().reset(seed=seed)

    def step(self, action: int):
        obs, reward, *rest = super().step(action)
        self.actions.append(int(action))
        Faulty.steps += 1
        if Faulty.steps == 8 * 16 * 2 + 77:
            Faulty.last = {"seed": self.seed, "step": self.t, "actions": self.actions, "number": self.number}
            if self.fault == "raises":
                raise RuntimeError("the simulator exploded")
            assert self.fault != "action", f"{action} is no legal action"
            obs = {"nan": obs * np.nan, "shape": obs[:2], "type": np.array(["a", "b", "c"])}.get(self.fault, obs)
            reward = {"infinite reward": float("inf"), "not a number": "many"}.get(self.fault, reward)
        return obs, reward, *rest


class Crashing(Scripted):
    """Raises in every 17th step of its kind."""

    steps = 0

    def __init__(self) -> None:
        super().__init__((1000,))

    def step(self, action: int):
        Crashing.steps += 1
        if Crashing.steps % 17 == 0:
            raise OSError("connection lost")
        return super().step(action)


class FragileCatch(Catch):
    """Catch whose simulator dies once in 50 steps."""

    luck = np.random.Generator(np.random.Philox(1))

    def step(self, action: int):
        if self.luck.random() < 0.02:
            raise RuntimeError("segmentation fault, as it were")
        return super().step(action)


class Enormous(Catch):
    """Catch for stakes whose square no single-precision number can hold."""

    def step(self, action: int):
        obs, reward, *rest = super().step(action)
        return obs, reward + 1e30, *rest


class Sleepy(Catch):
    """Catch that takes a nap after so many steps of its kind."""

    steps_until_nap = -1

    @staticmethod
    def nap() -> None: ...

    def step(self, action: int):
        Sleepy.steps_until_nap -= 1
        if Sleepy.steps_until_nap == 0:
            self.nap()
        return super().step(action)


class Diverging(Scripted):
    """In the third step of the 30th episode of its kind: not a number, and the end."""

    last: int | None = None
    begun = 0

    def reset(self, *, seed: int | None = None, options: Any = None):
        Diverging.begun += 1
        self.mine, self.seed = Diverging.begun, seed
        return super().reset(seed=seed)

    def step(self, action: int):
        obs, *rest = super().step(action)
        if self.t == 3 and self.mine == 30:
            Diverging.last = self.seed
            obs = obs * np.nan
        return obs, *rest


class Unwilling(Catch):
    """Catch that refuses once, when it has been made or reset so many times."""

    refuses: ClassVar[dict[str, int]] = {}

    def refuse(self, what: str) -> None:
        left = self.refuses.get(what, 0)
        self.refuses[what] = left - 1
        if left == 1:
            raise RuntimeError("not today")

    def __init__(self) -> None:
        super().__init__()
        self.refuse("make")

    def reset(self, *, seed: int | None = None, options: Any = None):
        self.refuse("reset")
        return super().reset(seed=seed)


class Unmakeable(Catch):
    """Cannot be made on any rank."""

    def __init__(self) -> None:
        raise RuntimeError("no display\nof any kind")


class Target(World):
    """Shows a number in -1 to 5 and the action it got last; pays for two numbers near it. 10 steps; at best near 0."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.action_space = spaces.Box(-1.0, 5.0, (2,), np.float32)

    def _see(self, action: Any) -> np.ndarray:
        self.number = float(self.np_random.uniform(-1, 5))
        return np.array([self.number, *action], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.left = 10
        return self._see((0.0, 0.0)), {}

    def step(self, action: Any):
        reward = -float(np.square(action - self.number).mean())
        self.left -= 1
        return self._see(action), reward, False, self.left == 0, {}


class Seek(World):
    """Go from the middle of a box to a goal and stay: -1 a step, 0 within 0.05 of it. 50 steps, never terminated."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.left, self.place, self.goal = 50, np.zeros(2), self.np_random.uniform(-0.15, 0.15, 2)
        return np.append(self.place, self.goal).astype(np.float32), {}

    def step(self, action: Any):
        self.place = np.clip(self.place + 0.03 * np.clip(action, -1, 1), -0.6, 0.6)
        self.left -= 1
        reward = -float(np.linalg.norm(self.place - self.goal) > 0.05)
        return np.append(self.place, self.goal).astype(np.float32), reward, False, self.left == 0, {}


class Switches(World):
    """Two lamps to copy with two switches, and a dial: MultiDiscrete in 3 choices, seen as MultiBinary."""

    def __init__(self) -> None:
        self.observation_space = spaces.MultiBinary(2)
        self.action_space = spaces.MultiDiscrete([2, 2, 3])

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.left, self.lamps = 10, self.np_random.integers(2, size=2, dtype=np.int8)
        return self.lamps, {}

    def step(self, action: Any):
        reward = float((action[:2] == self.lamps).sum())
        self.left, self.lamps = self.left - 1, self.np_random.integers(2, size=2, dtype=np.int8)
        return self.lamps, reward, self.left == 0, False, {}


class Doors(World):
    """Four doors, of which a mask says that one or two are open; counts what is broken."""

    shut = False
    broken = 0

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(3), spaces.Discrete(4)

    def _see(self) -> tuple[int, dict[str, Any]]:
        self.open = int(self.np_random.integers(4))
        self.mask = np.zeros(4, np.int8)
        self.mask[[self.open, int(self.np_random.integers(4))]] = not self.shut
        return int(self.np_random.integers(3)), {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.left = 7
        return self._see()

    def step(self, action: int):
        self.broken += not self.mask[action]
        self.left -= 1
        obs, info = self._see()
        return obs, 1.0, self.left == 0, False, info


class Nested(Target):
    """Target in a Dict, with a small picture."""

    def __init__(self) -> None:
        super().__init__()
        picture = spaces.Box(0, 255, (4, 4, 3), np.uint8)
        self.observation_space = spaces.Dict(inner=spaces.Dict(seen=self.observation_space), picture=picture)

    def _see(self, action: Any) -> Any:
        picture = np.full((4, 4, 3), len(action), np.uint8)
        return {"inner": {"seen": super()._see(action)}, "picture": picture}


class Recall(World):
    """Shows -1 or 1 at first, then nothing for 19 steps, then asks which it was: 1 for the right action, else -1."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.cue, self.left = int(self.np_random.integers(2)), 20
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action: int):
        over, self.left = self.left == 0, self.left - 1
        reward = (1.0 if action == self.cue else -1.0) if over else 0.0
        return np.array([0, self.left == 0], np.float32), reward, over, False, {}


def positions() -> gymnasium.Env:
    """CartPole without velocities: one observation does not tell which way the pole falls."""
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    low, high = env.observation_space.low[::2], env.observation_space.high[::2]
    return gymnasium.wrappers.TransformObservation(env, lambda obs: obs[::2], spaces.Box(low, high))


KINDS = (Target, Switches, Doors, Nested)
for world in (
    Identity,
    Lamps,
    Catch,
    Carrying,
    Crashing,
    FragileCatch,
    Enormous,
    Sleepy,
    Diverging,
    Unwilling,
    Unmakeable,
    Recall,
    Uneven,
    Seek,
    *KINDS,
):
    gymnasium.register(f"{world.__name__}-v0", world, disable_env_checker=True)
gymnasium.register("Positions-v0", positions, disable_env_checker=True)
gymnasium.register("Corridor-v0", Corridor, max_episode_steps=20, disable_env_checker=True)
for ending in ("terminated", "truncated", "both"):
    for name, lengths in (("", (3,)), ("Long", (1000,)), ("Mixed", (1, 4, 2)), ("Once", (1,))):
        gymnasium.register(
            f"Scripted{name}-{ending}-v0",
            Scripted,
            kwargs={"lengths": lengths, "ending": ending},
            disable_env_checker=True,
        )
for fault in ("raises", "nan", "infinite reward", "shape", "type", "not a number", "action"):
    name = f"Faulty-{fault.replace(' ', '-')}-v0"
    gymnasium.register(name, Faulty, kwargs={"fault": fault}, disable_env_checker=True)
