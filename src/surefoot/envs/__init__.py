"""The contract between the loop and its games, and the plain loop over the games of one rank.

A `Game` is one environment. It writes observations into arrays it is given, never resets itself, and can be put back
where it was. `Games` resets in the same step in which an episode ends and keeps the final observation, so that no
fake transition ever enters the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from surefoot.envs.atari import Pong
from surefoot.envs.gym import Gymnasium

if TYPE_CHECKING:
    from gymnasium import spaces
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Game(Protocol):
    """One environment; its episode depends only on the seed of `reset` and the actions since."""

    observation_space: spaces.Box
    action_space: spaces.Discrete
    action_names: tuple[str, ...]

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode and write its first observation into `out`."""

    def step(self, action: int, out: Array) -> tuple[float, bool, bool]:
        """Play one decision, write the next observation into `out`; returns raw reward, terminated, truncated."""
        ...

    def render(self) -> Array:
        """The present picture, uint8 [height, width, 3]."""
        ...

    def snapshot(self) -> dict[str, Array]:
        """Everything needed to go on from here, as arrays."""
        ...

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Go back to a snapshot and write its observation into `out`; False where it cannot be done exactly."""
        ...

    def close(self) -> None:
        """Let go of windows, processes, files."""


Env = Pong | Gymnasium


class Episode(NamedTuple):
    """A finished episode: which game, its raw score, its decisions."""

    game: int
    score: float
    length: int


@dataclass
class Steps:
    """What one decision in each of N games brought."""

    reward: list[float]
    terminated: list[bool]
    truncated: list[bool]
    final: dict[int, Array]
    """the last observation of each game that ended here; its row already holds the new episode's first"""


class Games:
    """The games `indices` of a run, stepped one after another in this process."""

    def __init__(self, env: Env, seed: int, indices: range) -> None:
        import numpy as np

        self.indices, self.seed = indices, seed
        self.games: Sequence[Game] = [env.make() for _ in indices]
        first = self.games[0]
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.obs: Array = np.zeros((len(indices), *first.observation_space.shape), first.observation_space.dtype)
        self.episodes = [0] * len(indices)
        """how many episodes each game has begun"""
        self.score = [0.0] * len(indices)
        self.length = [0] * len(indices)
        self.finished: list[Episode] = []

    def __len__(self) -> int:
        return len(self.games)

    def reset(self, i: int, out: Array) -> None:
        """Begin the next episode of game i, with a seed that depends on the run's seed, the game and the episode."""
        from surefoot.noise import Purpose, integer

        seed = integer(self.seed, Purpose.RESETS, self.indices[i], self.episodes[i])
        self.games[i].reset(seed, out)
        self.episodes[i] += 1
        self.score[i], self.length[i] = 0.0, 0

    def reset_all(self, episode: int = 0) -> None:
        """Begin episode number `episode` in every game, whatever was played before."""
        self.episodes = [episode] * len(self)
        self.finished = []
        for i in range(len(self)):
            self.reset(i, self.obs[i])

    def step(self, actions: list[int], out: Array) -> Steps:
        """One decision in every game; the next observations go into `out` [N, ...]."""
        steps = Steps([], [], [], {})
        for i, game in enumerate(self.games):
            reward, terminated, truncated = game.step(actions[i], out[i])
            self.score[i] += reward
            self.length[i] += 1
            steps.reward.append(reward)
            steps.terminated.append(terminated)
            steps.truncated.append(truncated)
            if terminated or truncated:
                steps.final[i] = out[i].copy()
                self.finished.append(Episode(self.indices[i], self.score[i], self.length[i]))
                self.reset(i, out[i])
        self.obs = out
        return steps

    def take_finished(self) -> list[Episode]:
        """The episodes finished since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def snapshot(self) -> dict[str, Array]:
        """All games with their counters, as arrays named `game/field`."""
        import numpy as np

        saved: dict[str, Array] = {}
        for i, game in enumerate(self.games):
            counters = np.array([self.episodes[i], self.length[i]], np.int64)
            fields = game.snapshot() | {"counters": counters, "score": np.array([self.score[i]], np.float64)}
            saved |= {f"{self.indices[i]}/{name}": array for name, array in fields.items()}
        return saved

    def restore(self, saved: dict[str, Array]) -> list[int]:
        """Go back to a snapshot; returns the games that could not be restored and began a new episode instead."""
        lost = []
        for i, n in enumerate(self.indices):
            fields = {k.split("/", 1)[1]: v for k, v in saved.items() if k.startswith(f"{n}/")}
            self.episodes[i], self.length[i] = (int(x) for x in fields.pop("counters"))
            self.score[i] = float(fields.pop("score")[0])
            if not self.games[i].restore(fields, self.obs[i]):
                self.reset(i, self.obs[i])
                lost.append(n)
        return lost

    def close(self) -> None:
        """Close every game."""
        for game in self.games:
            game.close()
