"""What training needs of an environment, and the descriptions that make one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from surefoot.envs.atari import Atari, Pong
from surefoot.envs.gym import Gymnasium
from surefoot.errors import OURS, Fault, UserError, said
from surefoot.parallel.guard import guarded

if TYPE_CHECKING:
    from gymnasium import spaces
    from numpy.typing import NDArray

    Array = NDArray[Any]

EnvSpec = Pong | Atari | Gymnasium
"""A frozen description of an environment, as a Config holds it."""


class Environment(Protocol):
    """One environment, which never resets itself; an episode depends only on the seed of `reset` and the actions."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    action_names: tuple[str, ...]
    life_lost: bool
    """the last step's `terminated` is a lost life, an end for learning alone: the episode goes on without a reset"""

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode; its first observation goes into `out`."""

    def step(self, action: Any, out: Array) -> tuple[float, bool, bool]:
        """Take one action, a number or a row of numbers; the next observation goes into `out`.

        Returns raw reward, terminated, truncated.
        """
        ...

    def render(self) -> Any:
        """The current frame, as the environment draws it (`runs.pictures`)."""
        ...

    def snapshot(self) -> dict[str, Array]:
        """The environment's state as arrays, for `restore`."""
        ...

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Restore a snapshot; its observation goes into `out`. False where the state cannot be restored exactly."""
        ...

    def close(self) -> None:
        """Close windows, processes and files."""


class Episode(NamedTuple):
    """A finished episode: its environment, raw score, length, and the step of the rollout at which it ended."""

    env: int
    score: float
    length: int
    at: int = 0


@dataclass
class StepResult:
    """One step in each of N environments."""

    reward: list[float]
    terminated: list[bool]
    truncated: list[bool]
    final: dict[int, Array]
    """final observations of the episodes that ended, by environment; their rows hold the next episode's first"""
    restarted: list[int]
    """environments that crashed and were recreated: they took no step, and their rows hold a new episode's first"""
    skipped: Sequence[int] = ()
    """environments whose step was a reset (a NEXT_STEP VectorEnv's), and no transition"""

    def update(self, envs: list[int], other: StepResult) -> None:
        """Replace the results of some environments by those of another step."""
        for i in envs:
            self.reward[i] = other.reward[i]
            self.terminated[i], self.truncated[i] = other.terminated[i], other.truncated[i]
        self.final |= other.final
        self.restarted = other.restarted


def make(spec: EnvSpec, render: bool = False) -> Environment:
    """The environment of a description; raises UserError for a mistake in it, Fault where the constructor fails."""
    with making(spec):
        return spec.make(render)


@contextmanager
def making(spec: EnvSpec) -> Iterator[None]:
    """Turn what an environment's constructor raises into a Fault."""
    try:
        with guarded():
            yield
    except (UserError, *OURS):
        raise
    except BaseException as error:
        raise Fault(f"the environment {getattr(spec, 'id', spec)} cannot be made: {said(error)}") from error
