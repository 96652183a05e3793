"""Signs of life: where a rank is in its num_envs, in memory that a watchdog outside of it can read."""

from __future__ import annotations

import mmap
import os
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "SUREFOOT_HEARTBEAT"  # names the file that a rank and its launcher share
START = 60.0  # seconds more that a rank has before its first decision
RING = 8  # last actions kept of each game
OUTSIDE, OVER = -1, -2  # not in a game; training is over


class Heartbeat:
    """Int64 cells: the game being played, decisions, beats; then of every game its seed, length and last actions."""

    def __init__(self, cells: memoryview, num_envs: int) -> None:
        self.cells, self.num_envs = cells, num_envs
        self.lengths, self.ring = 3 + num_envs, 3 + 2 * num_envs

    @staticmethod
    def of(num_envs: int, path: str | os.PathLike[str] | None = None) -> Heartbeat:
        """A new one in this process's memory, or the one in the file `path`, which `lay` has made."""
        size = 3 + (2 + RING) * num_envs
        if path is None:
            return Heartbeat(memoryview(array("q", [OUTSIDE] + [0] * (size - 1))), num_envs)
        with open(path, "r+b") as file:
            return Heartbeat(memoryview(mmap.mmap(file.fileno(), 8 * size)).cast("q"), num_envs)

    @staticmethod
    def lay(path: Path, num_envs: int) -> Heartbeat:
        """Make the file for a rank with so many num_envs."""
        path.write_bytes(bytes(Heartbeat.of(num_envs).cells))
        return Heartbeat.of(num_envs, path)

    def make(self, i: int) -> None:
        """Environment i is about to be made."""
        self.cells[0], self.cells[self.lengths + i] = i, -2

    def begin(self, i: int, seed: int) -> None:
        """Environment i is about to begin an episode, or to go on with one; `seed`: below 0 where it is not known."""
        cells = self.cells
        cells[0], cells[3 + i], cells[self.lengths + i] = i, seed, -1
        cells[2] += 1

    def decide(self, actions: Sequence[int], lengths: list[int], again: bool = False) -> None:
        """All num_envs are about to play their next decision, or some of them the same one again.

        `actions`: none where they are not whole numbers.
        """
        cells, n = self.cells, self.num_envs
        cells[1] += not again
        cells[2] += 1
        place = self.ring + cells[1] % RING * n
        cells[self.lengths : self.lengths + n] = array("q", lengths)
        if actions:
            cells[place : place + n] = array("q", actions)
        elif cells[place] >= 0:
            cells[place : place + n] = array("q", [-1] * n)

    def at(self, i: int) -> None:
        """Environment i is about to be played; that after the last one: all of a VectorEnv."""
        self.cells[0] = i

    def rest(self) -> None:
        """No game is being played."""
        self.cells[0] = OUTSIDE
        self.cells[2] += 1

    def end(self) -> None:
        """Training is over: silence is no alarm any more."""
        self.cells[0] = OVER

    def where(self, i: int, name: int) -> str:
        """Environment i, called `name`, so that what it does can be done again."""
        cells, n = self.cells, self.num_envs
        if i == n:
            return f"the VectorEnv of environments {name - n} to {name - 1} (decision {cells[1]})"
        length, seed = cells[self.lengths + i], f"episode's seed {cells[3 + i]}, " if cells[3 + i] >= 0 else ""
        if length < -1:
            return f"environment {name} (while it is made)"
        if length < 0:
            return f"environment {name} ({seed}at its beginning)"
        past = range(max(cells[1] - min(length, RING - 1), 1), cells[1] + 1)
        numbers = [cells[self.ring + t % RING * n + i] for t in past]
        actions = "" if numbers[-1] < 0 else f", last actions {' '.join(map(str, numbers))}"
        return f"environment {name} ({seed}decision {length + 1}{actions})"


class Watchdog:
    """Who has given no sign of life for `timeout` seconds; the first of the heartbeats is rank `first`'s."""

    def __init__(self, heartbeats: list[Heartbeat], timeout: float, first: int = 0) -> None:
        self.heartbeats, self.timeout, self.first = heartbeats, timeout, first
        self.seen = [0] * len(heartbeats)
        self.since = [time.monotonic()] * len(heartbeats)

    def verdict(self) -> tuple[int, str] | None:
        """The rank that all wait for, and a sentence about it; None while all is well."""
        now = time.monotonic()
        for rank, heartbeat in enumerate(self.heartbeats):
            if heartbeat.cells[2] != self.seen[rank] or heartbeat.cells[0] == OVER:
                self.seen[rank], self.since[rank] = heartbeat.cells[2], now
        patience = [self.timeout + (0 if heartbeat.cells[1] else START) for heartbeat in self.heartbeats]
        late = [rank for rank, since in enumerate(self.since) if now - since > patience[rank]]
        if not late:
            return None
        rank = max(late, key=lambda r: self.heartbeats[r].cells[0])  # in a game rather than waiting for one that is
        heartbeat, since = self.heartbeats[rank], f"for {patience[rank]:g} seconds"
        if heartbeat.cells[0] >= 0:
            number = (self.first + rank) * heartbeat.num_envs + heartbeat.cells[0]
            return rank, f"{heartbeat.where(heartbeat.cells[0], number)} has hung {since}"
        return rank, f"rank {self.first + rank} has given no sign of life {since}"
