"""The contract between the loop and its games, and the plain loop over the games of one rank.

A `Game` is one environment. It writes observations into arrays it is given, never resets itself, and can be put back
where it was. `Games` resets in the same step in which an episode ends and keeps the final observation, so that no
fake transition ever enters the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from surefoot.envs.atari import Atari, Pong
from surefoot.envs.gym import Gymnasium

if TYPE_CHECKING:
    from gymnasium import spaces
    from numpy.typing import NDArray

    from surefoot.errors import Fault
    from surefoot.parallel.heartbeat import Heartbeat

    Array = NDArray[Any]


class Environment(Protocol):
    """One environment; its episode depends only on the seed of `reset` and the actions since."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    action_names: tuple[str, ...]
    goes_on: bool
    """the last step ended something for learning (a life), but not the episode: no reset is due"""

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode and write its first observation into `out`."""

    def step(self, action: Any, out: Array) -> tuple[float, bool, bool]:
        """Play one decision, a number or a row of them, and write the next observation into `out`.

        Returns raw reward, terminated, truncated.
        """
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


MAX_REWARD = 3e38  # what single precision holds
Env = Pong | Atari | Gymnasium


class Episode(NamedTuple):
    """A finished episode: which game, its raw score, its decisions, and at which decision of the rollout it ended."""

    game: int
    score: float
    length: int
    at: int = 0


@dataclass
class StepResult:
    """What one decision in each of N games brought."""

    reward: list[float]
    terminated: list[bool]
    truncated: list[bool]
    final: dict[int, Array]
    """the last observation of each game that ended here; its row already holds what comes next"""
    lost: list[int]
    """games that raised and were made anew: this decision never was, their rows hold a new episode's first"""

    def take(self, games: list[int], other: StepResult) -> None:
        """Take over what another decision brought to some games, and which of them it lost."""
        for i in games:
            self.reward[i] = other.reward[i]
            self.terminated[i], self.truncated[i] = other.terminated[i], other.truncated[i]
        self.final |= other.final
        self.lost = other.lost


def make(env: Env, render: bool = False) -> Environment:
    """A game; raises Fault where its own program fails, UserError where it cannot be had."""
    with making(env):
        return env.make(render)


@contextmanager
def making(env: Env) -> Iterator[None]:
    """Whatever an environment's own program raises while it is made is a Fault."""
    from surefoot.errors import Fault, UserError

    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise Fault(f"the environment {env} cannot be made: {type(error).__name__}: {error}") from error


class EnvVector:
    """The games `indices` of a run, stepped one after another in this process, or as a VectorEnv.

    `restarts`: how often, in all, a game that raises may be made again; `heartbeat` shows a watchdog where we are.
    """

    def __init__(
        self, env: Env, seed: int, indices: range, restarts: int = 0, heartbeat: Heartbeat | None = None
    ) -> None:
        import numpy as np

        from surefoot.envs.spaces import blank
        from surefoot.errors import UserError
        from surefoot.parallel.heartbeat import Heartbeat

        self.env, self.indices, self.seed, self.restarts = env, indices, seed, restarts
        self.heartbeat = heartbeat or Heartbeat.of(len(indices))
        self.heartbeat.make(0)
        with making(env):
            self.vector = env.together(len(indices)) if isinstance(env, Gymnasium) else None
        if self.vector is not None and restarts:
            self.vector.env.close()
            raise UserError(f"env_restarts is {restarts}; allowed is 0 with a VectorEnv, whose games fail together")
        self.games: list[Environment] = (
            self.vector.games if self.vector else [self.make(i) for i in range(len(indices))]
        )
        first = self.games[0]
        self.observation_space, self.action_space = first.observation_space, first.action_space
        row = blank(first.observation_space)
        self.obs: Array = np.zeros((len(indices), *row.shape), row.dtype)
        self.episodes = [0] * len(indices)
        """how many episodes each game has begun"""
        self.score = [0.0] * len(indices)
        self.length = [0] * len(indices)
        self.finished: list[Episode] = []
        self.played = 0
        """decisions since `take_finished`"""

    def __len__(self) -> int:
        return len(self.games)

    def make(self, i: int) -> Environment:
        """Environment i, new."""
        self.heartbeat.make(i)
        return make(self.env)

    def reset(self, i: int, out: Array) -> None:
        """Begin the next episode of game i, with a seed that depends on the run's seed, the game and the episode."""
        from surefoot.rng import Purpose, integer

        n, k = self.indices[i], self.episodes[i]
        seed = integer(self.seed, Purpose.RESETS, 0 if self.vector else n, k) + (n if self.vector else 0)
        self.heartbeat.begin(i, -1 if self.vector else seed)
        self.episodes[i] += 1
        self.score[i], self.length[i] = 0.0, 0
        try:
            self.games[i].reset(seed, out)
        except (Exception, SystemExit) as error:
            self.restart(i, out, error)

    def reset_all(self, episode: int = 0) -> None:
        """Begin episode number `episode` in every game, whatever was played before."""
        self.episodes = [episode] * len(self)
        self.finished = []
        for i in range(len(self)):
            self.reset(i, self.obs[i])
        self.check(self.obs)
        self.heartbeat.rest()

    def step(self, actions: Any, out: Array, only: Sequence[int] | None = None) -> StepResult:
        """One decision in every game, or in those of `only`; the next observations go into `out` [N, ...].

        Raises Fault where a game raises and no restart is left, or where a number is not finite.
        """
        n = len(self)
        steps = StepResult([0.0] * n, [False] * n, [False] * n, {}, [])
        self.played += only is None
        self.heartbeat.decide(actions if isinstance(actions, list) else [], self.length, only is not None)
        if self.vector is not None:
            self.heartbeat.at(n)
            try:
                self.vector.step(actions)
            except (Exception, SystemExit) as error:
                raise self.fault(n, error) from error
        games, at = self.games, self.heartbeat.at
        for i in range(n) if only is None else only:
            at(i)
            try:
                reward, terminated, truncated = games[i].step(actions[i], out[i])
            except (Exception, SystemExit) as error:
                self.restart(i, out[i], error)
                steps.lost.append(i)
                continue
            if not -MAX_REWARD < reward < MAX_REWARD:
                raise self.fault(i, ValueError(f"its reward is {reward}"))
            self.score[i] += reward
            self.length[i] += 1
            steps.reward[i], steps.terminated[i], steps.truncated[i] = reward, terminated, truncated
            if terminated or truncated:
                steps.final[i] = out[i].copy()
                self.check(out[i : i + 1], i)
                if not games[i].goes_on:
                    self.finished.append(Episode(self.indices[i], self.score[i], self.length[i], self.played))
                    self.reset(i, out[i])
        self.check(out)
        self.heartbeat.rest()
        self.obs = out
        return steps

    def check(self, obs: Array, first: int = 0) -> None:
        """Refuse observations [n, ...] of game `first` and those after it that are not finite."""
        import numpy as np

        if obs.dtype.kind == "f" and not np.isfinite(obs).all():
            wrong = next(i for i, row in enumerate(obs) if not np.isfinite(row).all())
            raise self.fault(first + wrong, ValueError("its observation is not finite"))

    def fault(self, i: int, error: BaseException) -> Fault:
        """What there is to say of game i, which failed."""
        from surefoot.errors import Fault

        return Fault(f"{self.heartbeat.where(i, self.indices.start + i)} failed: {type(error).__name__}: {error}")

    def restart(self, i: int, out: Array, error: BaseException) -> None:
        """Make game i again and begin a new episode, where that is allowed; what went wrong is said."""
        if not self.restarts:
            raise self.fault(i, error) from error
        self.restarts -= 1
        from surefoot.errors import note

        note(f"{self.fault(i, error)}; it begins anew, {self.restarts} restarts are left")
        with suppress(Exception):  # it is broken already
            self.games[i].close()
        self.games[i] = self.make(i)
        self.reset(i, out)

    def take_finished(self) -> list[Episode]:
        """The episodes finished since the last call."""
        finished, self.finished, self.played = self.finished, [], 0
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
        from surefoot.rng import Purpose, integer

        lost = []
        self.heartbeat.end()  # playing a long episode again is no alarm
        for i, n in enumerate(self.indices):
            fields = {k.split("/", 1)[1]: v for k, v in saved.items() if k.startswith(f"{n}/")}
            self.episodes[i], self.length[i] = (int(x) for x in fields.pop("counters"))
            self.score[i] = float(fields.pop("score")[0])
            back = False
            with suppress(Exception):  # what raises on the way cannot be gone back to
                back = self.games[i].restore(fields, self.obs[i])
            if not back:
                self.reset(i, self.obs[i])
                lost.append(n)
            else:
                self.heartbeat.begin(i, integer(self.seed, Purpose.RESETS, n, self.episodes[i] - 1))
                self.heartbeat.end()
        self.heartbeat.rest()
        return lost

    def close(self) -> None:
        """Close every game."""
        for game in self.games:
            game.close()
