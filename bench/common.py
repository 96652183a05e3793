"""What race.py, speed.py and peer.py share: the race's rules, the bare emulator's rate, memory. Imports no surefoot."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
REFERENCE = 5_700.0  # bare emulator steps/s per core: times are given as they would be on such a machine


@dataclass(frozen=True)
class Rule:
    """When a policy counts: `first` games, from a mean of `gate` on `games` others, which must average `bar`."""

    bar: float = 18.0
    gate: float = 12.0
    first: int = 10
    games: int = 100
    batch: int = 25
    best: float = 21.0
    """the highest score a game can have"""

    def judge(self, play: Callable[[range], list[float]]) -> Row:
        """Play a policy's games, batch by batch; ends early only where the bar has come out of reach."""
        first, scores = play(range(self.first)), list[float]()
        while statistics.mean(first) >= self.gate and len(scores) < self.games:
            begin = self.first + len(scores)
            scores += play(range(begin, begin + min(self.batch, self.games - len(scores))))
            if sum(self.best - score for score in scores) > (self.best - self.bar) * self.games:
                break
        return {"first": first, "scores": scores}

    def passed(self, row: Row) -> bool:
        """Whether a judged policy has reached the bar."""
        return len(row["scores"]) == self.games and statistics.mean(row["scores"]) >= self.bar


def reached(passed: Mapping[int, bool]) -> int | None:
    """The race's winner: the first policy that reaches the bar and whose successor does too."""
    return next((i for i in sorted(passed) if passed[i] and passed.get(i + 1)), None)


def plan(passed: Mapping[int, bool], count: int) -> list[int]:
    """Which of `count` policies to judge next, in order, until `reached` is what it would be with all of them judged.

    Of two neighbours one has an odd number: only those are judged, and the neighbours of those that pass. Where no
    pair has passed, the last policy is judged too, to say how far it came.
    """
    wanted = []
    for odd in range(1, count, 2):
        if odd not in passed:
            wanted.append(odd)
        elif passed[odd]:
            for neighbour in (odd - 1, odd + 1):
                if neighbour < count and neighbour not in passed:
                    return [*wanted, neighbour]
                if passed.get(neighbour):
                    return wanted
    return wanted or [i for i in [count - 1] if i >= 0 and i not in passed]


def bare_rates(seconds: float) -> list[float]:
    """Steps per second of ALE Pong, 4 frames a step, on every usable core at once."""
    code = (
        "import os, sys, time; from surefoot.commands.benchmark import bare; from surefoot.envs.atari import Pong; "
        "os.sched_setaffinity(0, {int(sys.argv[1])}); time.sleep(max(0, float(sys.argv[2]) - time.time())); "
        "print(bare(Pong(), float(sys.argv[3])))"
    )
    begin = time.time() + 1.5
    call = [sys.executable, "-c", code]
    cores = [[*call, str(core), str(begin), str(seconds)] for core in sorted(os.sched_getaffinity(0))]
    processes = [subprocess.Popen(core, stdout=subprocess.PIPE, text=True) for core in cores]
    return [round(float(p.communicate()[0]), 1) for p in processes]


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def memory(root: int) -> int:
    """Bytes that a process and its descendants hold: PSS, shared pages counted once."""
    total = 0
    for process in tree(root):
        with suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def attend(command: list[str], log: Path, look: Callable[[], None] = lambda: None) -> tuple[float, int, int]:
    """Run a command to its end; `look` is called four times a second. Returns when it began, its code, peak memory."""
    peak, ticks = 0, 0
    with open(log, "wb") as out:
        began = time.time()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                if ticks % 8 == 0:
                    peak = max(peak, memory(process.pid))
                look()
                ticks += 1
                time.sleep(0.25)
            look()
        except BaseException:
            for pid in reversed(tree(process.pid)):
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
            process.wait()
            raise
    return began, process.returncode, peak


def record(row: Mapping[str, Any], out: Path | None, name: str) -> None:
    """Append a row to the file `name` of a record, which is made if it is not there; nothing where `out` is None."""
    if out:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / name, "a") as log:
            log.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
