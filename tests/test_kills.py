"""Runs killed with SIGKILL at random instants, in real processes: what goes on is the run it would have been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import surefoot
from surefoot.models.networks import MLP
from surefoot.runs.checkpoint import read_checkpoint
from surefoot.runs.directory import checkpoints
from surefoot.runs.metrics import read

TIMES = {"seconds", "steps_per_second", "env_s", "act_s", "learn_s"}
CARTPOLE = ["cartpole", "--network.hidden", "16", "--total-steps", "30720", "--eval-episodes", "0"]
PONG = [
    *("pong", "--num-envs", "4", "--num-steps", "32", "--minibatch-size", "64", "--network.hidden", "16"),
    *("--total-steps", "6400", "--eval-episodes", "0"),
]


def begin(task: list[str], where: Path, ranks: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "surefoot", "train", *task, "--run-dir", str(where), "--save-every", "0.05"]
    command += ["--ranks", str(ranks), "--quiet"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def processes(launcher: int) -> list[int]:
    """The launcher and its ranks."""
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    except OSError:
        children = []
    return [launcher, *map(int, children)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def killed_and_gone_on_with(task: list[str], where: Path, ranks: int, kills: int, luck: random.Random) -> list[str]:
    """Run to the end through so many kills; returns who was killed, and after how many decisions."""
    story: list[str] = []
    while len(story) < kills:
        process = begin(task, where, ranks)
        first = len(checkpoints(where)) and int(checkpoints(where)[-1].name)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # until it has gone on a little
            found = checkpoints(where)
            if found and int(found[-1].name) > first:
                break
            time.sleep(0.01)
        time.sleep(luck.random() * 0.5)
        everyone = processes(process.pid)
        victim = luck.choice(everyone)
        if process.poll() is not None:  # it came to its end before
            return story
        os.kill(victim, signal.SIGKILL)
        process.wait(30)
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in everyone):
            assert time.monotonic() < deadline, "an orphan is left"
            time.sleep(0.01)
        who = "launcher" if victim == process.pid else f"rank {everyone.index(victim) - 1}"
        story.append(f"{who} after {int(checkpoints(where)[-1].name)}")
    assert begin(task, where, ranks).wait(120) == 0
    return story


def assert_same_run(a: Path, b: Path) -> None:
    def rows(where: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in read(where)]

    assert rows(a) == rows(b)
    mine, theirs = (surefoot.load_policy(where)[0].state_dict() for where in (a, b))
    assert all(torch.equal(x, theirs[k]) for k, x in mine.items())
    states = [read_checkpoint(checkpoints(where)[-1]) for where in (a, b)]
    assert states[0][1] == states[1][1]  # policy, Adam's moments, games: byte for byte
    boards = []
    for where in (a, b):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(where / "tb"), purge_orphaned_data=True)
        board.Reload()
        boards.append([(e.step, e.value) for e in board.Scalars("return_mean")])
    assert boards[0] == boards[1]  # nothing missing, nothing twice


@pytest.mark.long
def test_a_run_killed_once_is_the_same_run(tmp_path: Path) -> None:
    fields = {"network": MLP((16,)), "total_steps": 8192, "eval_episodes": 0, "save_every": 0.05}
    surefoot.train("cartpole", run_dir=tmp_path / "whole", ranks=1, quiet=True, **fields)
    check([*CARTPOLE, "--total-steps", "8192"], tmp_path, ranks=1, runs=1, kills=1, seed=int.from_bytes(os.urandom(4)))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "runs", "kills"), [(CARTPOLE, 8, 6), (PONG, 1, 4)], ids=["cartpole", "pong"])
def test_a_run_killed_again_and_again_is_the_same_run(task: list[str], runs: int, kills: int, tmp_path: Path) -> None:
    check(task, tmp_path, ranks=2, runs=runs, kills=kills, seed=1)


def check(task: list[str], tmp_path: Path, ranks: int, runs: int, kills: int, seed: int) -> None:
    if not (tmp_path / "whole").exists():
        assert begin(task, tmp_path / "whole", ranks).wait(120) == 0
    luck, stories = random.Random(seed), []
    for _ in range(runs):
        where = tmp_path / "parts"
        story = killed_and_gone_on_with(task, where, ranks, kills, luck)
        assert_same_run(tmp_path / "whole", where)
        stories += story
        shutil.rmtree(where)
    assert stories, f"seed {seed}: every run ended before its kill"
    print(f"seed {seed}, killed: {'; '.join(stories)}")


def usage(pids: list[int]) -> tuple[int, int, int]:
    """Resident kilobytes, open files and threads of some processes."""
    memory, handles, threads = 0, 0, 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        memory += int(status.split("VmRSS:")[1].split()[0])
        threads += int(status.split("Threads:")[1].split()[0])
        handles += len(os.listdir(f"/proc/{pid}/fd"))
    return memory, handles, threads


@pytest.mark.slow
def test_a_soak_of_twenty_minutes_keeps_memory_files_and_processes_flat(tmp_path: Path) -> None:
    """A run that saves every half second: between the 5th and the 20th minute nothing grows."""
    minutes = float(os.environ.get("SOAK_MINUTES", "20"))
    command = [sys.executable, "-m", "surefoot", "train", "cartpole", "--run-dir", str(tmp_path / "a"), "--ranks", "2"]
    command += ["--total-steps", "1000000000000", "--save-every", "0.5", "--quiet"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    began, seen = time.monotonic(), list[tuple[int, int, int]]()
    while time.monotonic() - began < 60 * minutes:
        time.sleep(5)
        assert process.poll() is None
        everyone = processes(process.pid)
        assert len(everyone) == 3
        seen.append(usage(everyone))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    early, late = seen[len(seen) // 4 : len(seen) // 4 + 6], seen[-6:]
    print(f"kilobytes, files, threads after {minutes / 4:g} minutes {early}, after {minutes:g} {late}")
    for kind in (1, 2):
        assert max(s[kind] for s in late) <= max(s[kind] for s in seen[: len(seen) // 4])
    memory = [sorted(s[0] for s in part)[3] for part in (early, late)]
    assert memory[1] < 1.02 * memory[0] + 4096
    assert len(checkpoints(tmp_path / "a")) <= 4
