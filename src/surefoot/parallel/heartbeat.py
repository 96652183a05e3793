"""Signs of life: which environment a rank is in, written to memory that a watchdog outside of it reads."""

from __future__ import annotations

import mmap
import os
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from surefoot.errors import UserError
from surefoot.parallel.guard import leave_if_copy

VARIABLE = "SUREFOOT_HEARTBEAT"  # names the file that a rank and its launcher share
MAGIC = b"surefoot heartbeat\n"  # at the end of that file
START = 60.0  # seconds more that a rank has before its first decision
RING = 8  # actions kept of each environment
POSITION, DECISIONS, BEATS, SEEDS = range(4)  # the first cells
OUTSIDE, OVER = -1, -2  # positions: in no environment; training is over


class Heartbeat:
    """Int64 cells that a rank with n environments writes before it does something that may hang.

    | cells | content |
    |---|---|
    | POSITION | the environment that is being made, reset or stepped; n: all of a VectorEnv; OUTSIDE; OVER |
    | DECISIONS | decisions begun |
    | BEATS | signs of life: changes whenever the rank gets on |
    | SEEDS: n | seed of each environment's episode; below 0: not known |
    | lengths: n | decisions of each environment's episode; -1: it is being reset; -2: it is being made |
    | actions: RING n | the last actions, those of decision t in row t mod RING; -1: not a whole number |
    """

    def __init__(self, cells: memoryview, num_envs: int) -> None:
        self.cells, self.num_envs = cells, num_envs
        self.lengths, self.actions = SEEDS + num_envs, SEEDS + 2 * num_envs

    @staticmethod
    def of(num_envs: int, path: str | os.PathLike[str] | None = None) -> Heartbeat:
        """A new one in this process's memory, or the one in the file `path` that `create` has made."""
        size = SEEDS + (2 + RING) * num_envs
        if path is None:
            return Heartbeat(memoryview(array("q", [OUTSIDE] + [0] * (size - 1))), num_envs)
        require_heartbeat(path)
        with open(path, "r+b") as file:
            return Heartbeat(memoryview(mmap.mmap(file.fileno(), 8 * size)).cast("q"), num_envs)

    @staticmethod
    def create(path: Path, num_envs: int) -> Heartbeat:
        """Make the file for a rank with `num_envs` environments."""
        path.write_bytes(bytes(Heartbeat.of(num_envs).cells) + MAGIC)
        return Heartbeat.of(num_envs, path)

    def make(self, i: int) -> None:
        """Environment i is about to be made."""
        self.cells[POSITION], self.cells[self.lengths + i] = i, -2

    def begin(self, i: int, seed: int) -> None:
        """Environment i is about to be reset, or to go on with an episode; `seed`: below 0 where it is not known."""
        cells = self.cells
        cells[POSITION], cells[SEEDS + i], cells[self.lengths + i] = i, seed, -1
        cells[BEATS] += 1

    def decide(self, actions: Sequence[int], lengths: list[int], again: bool = False) -> None:
        """All environments are about to take their next step, or (`again`) some of them the same one once more.

        `actions`: empty where they are not whole numbers.
        """
        cells, n = self.cells, self.num_envs
        cells[DECISIONS] += not again
        cells[BEATS] += 1
        row = self.actions + cells[DECISIONS] % RING * n
        cells[self.lengths : self.lengths + n] = array("q", lengths)
        if actions:
            cells[row : row + n] = array("q", actions)
        elif cells[row] >= 0:
            cells[row : row + n] = array("q", [-1] * n)

    def at(self, i: int) -> None:
        """Environment i is about to be stepped; i = n: all of a VectorEnv."""
        self.cells[POSITION] = i

    def rest(self) -> None:
        """No environment is being stepped."""
        leave_if_copy()
        self.cells[POSITION] = OUTSIDE
        self.cells[BEATS] += 1

    def end(self) -> None:
        """Training is over: silence is no alarm any more."""
        self.cells[POSITION] = OVER

    def activity(self) -> str:
        """Which environment is being made, reset or stepped; empty for none."""
        i, n = self.cells[POSITION], self.num_envs
        if i == n:
            return f"in the VectorEnv of {n} environments"
        if not 0 <= i < n:
            return ""
        what = {-2: "making", -1: "resetting"}.get(self.cells[self.lengths + i], "in")
        return f"{what} environment {i + 1} of {n}"

    @property
    def over(self) -> bool:
        """Whether training is over."""
        return self.cells[POSITION] == OVER

    def where(self, i: int, name: int) -> str:
        """Environment i, called `name`, with all that is needed to repeat what it was doing."""
        cells, n = self.cells, self.num_envs
        if i == n:
            return f"the VectorEnv of environments {name - n} to {name - 1} (step {cells[DECISIONS]})"
        length, seed = cells[self.lengths + i], f"episode's seed {cells[SEEDS + i]}, " if cells[SEEDS + i] >= 0 else ""
        if length < -1:
            return f"environment {name} (while it is made or first reset)"
        if length < 0:
            return f"environment {name} ({seed}at its beginning)"
        steps = range(max(cells[DECISIONS] - min(length, RING - 1), 1), cells[DECISIONS] + 1)
        last = [cells[self.actions + t % RING * n + i] for t in steps]
        actions = "" if last[-1] < 0 else f", last actions {' '.join(map(str, last))}"
        return f"environment {name} ({seed}step {length + 1}{actions})"


def require_heartbeat(path: str | os.PathLike[str]) -> None:
    """Raise UserError where VARIABLE names another file than a launcher has made, which would be written over."""
    with suppress(OSError, ValueError), open(path, "rb") as file:
        file.seek(-len(MAGIC), os.SEEK_END)
        if file.read() == MAGIC:
            return
    raise UserError(f"{VARIABLE} names {str(path)!r}, which no launcher of surefoot has made: unset it")


class WaitingClock:
    """Seconds waited, of which each step between two readings counts at most `longest`.

    So time in which this process was not scheduled (SIGSTOP, a frozen cgroup, a suspended machine) hardly counts.
    """

    def __init__(self, longest: float) -> None:
        self.longest, self.seconds, self.last = longest, 0.0, time.monotonic()

    def read(self) -> float:
        now = time.monotonic()
        self.seconds += min(now - self.last, self.longest)
        self.last = now
        return self.seconds


class Watchdog:
    """Finds the rank that has given no sign of life for `timeout` seconds; `first`: the first heartbeat's rank.

    That a rank comes from one environment to the next is a sign: eight of them that compile for 40 seconds each in one
    decision are no hang. Ranks outside of environments wait for those in one; while these get on, so do they.
    `verdict` is to be called at least every second and every quarter of `timeout`: no step counts for more.
    """

    def __init__(self, heartbeats: list[Heartbeat], timeout: float, first: int = 0) -> None:
        self.heartbeats, self.timeout, self.first = heartbeats, timeout, first
        self.clock = WaitingClock(min(1.0, timeout / 4))
        self.signs, self.since = [(0, OUTSIDE)] * len(heartbeats), [0.0] * len(heartbeats)

    def allowed(self, heartbeat: Heartbeat) -> float:
        """Seconds without a sign: more at the start; a VectorEnv's first step is one of each environment."""
        cells, n = heartbeat.cells, heartbeat.num_envs
        if not cells[DECISIONS]:
            return self.timeout + START
        return self.timeout * n if cells[DECISIONS] == 1 and cells[POSITION] == n else self.timeout

    def verdict(self) -> tuple[int, str] | None:
        """The rank that all wait for, and a sentence about it; None while all is well."""
        now = self.clock.read()
        signs = [(heartbeat.cells[BEATS], heartbeat.cells[POSITION]) for heartbeat in self.heartbeats]
        moved = [a != b for a, b in zip(signs, self.signs, strict=True)]
        awaited = any(new and position >= 0 for new, (_, position) in zip(moved, signs, strict=True))
        for rank, (_, position) in enumerate(signs):
            if moved[rank] or position == OVER or (awaited and position == OUTSIDE):
                self.since[rank] = now
        self.signs, allowed = signs, [self.allowed(heartbeat) for heartbeat in self.heartbeats]
        late = [rank for rank, since in enumerate(self.since) if now - since > allowed[rank]]
        if not late:
            return None
        rank = max(late, key=lambda r: self.heartbeats[r].cells[POSITION])  # in an environment, not waiting for one
        heartbeat, duration = self.heartbeats[rank], f"for {allowed[rank]:g} seconds"
        if (position := heartbeat.cells[POSITION]) >= 0:
            number = (self.first + rank) * heartbeat.num_envs + position
            return rank, f"{heartbeat.where(position, number)} has hung {duration}"
        return rank, f"rank {self.first + rank} has given no sign of life {duration}"
