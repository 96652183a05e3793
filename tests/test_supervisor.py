"""The process that waits for the one that plays somebody else's environment: ends, signals, stops. Real programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import Ear, gone_within, stopped
from surefoot.commands import exits
from surefoot.parallel import guard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is none elsewhere")
PROGRAM = """
import ctypes, os, signal, sys
from surefoot.parallel import supervisor
from surefoot.parallel.guard import exit_now, interrupt
fifo, supervisor.LOOK = os.open(sys.argv[1], os.O_WRONLY), 0.01
supervisor.supervise()
signal.signal(signal.SIGTERM, interrupt)
bell, rope = os.pipe()
os.set_blocking(rope, False)
signal.set_wakeup_fd(rope)
def wait():
    while True: os.read(bell, 1)
def tell(word): os.write(fifo, f"0 {os.getpid()} {word}\\n".encode())
"""
WAITING = """
for word in ("here", "stopped", "now", "late"):
    try:
        tell(word)
        wait()
    except KeyboardInterrupt:
        if word == sys.argv[2]: exit_now(130)
"""


@contextmanager
def supervised(program: str, folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Ear]]:
    """A program whose supervisor is the process that is given, in a process group of its own."""
    ear = Ear(folder / "fifo")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + program, str(folder / "fifo"), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process, ear
        finally:
            process.kill()
            os.close(ear.handle)


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("exit_now(0)", 0, b""),
        ("exit_now(2)", 2, b""),
        ("ctypes.CDLL(None)._exit(0)", 1, b"surefoot: the program has ended with exit code 0 before"),
        ("ctypes.CDLL(None)._exit(130)", 1, b"surefoot: the program has ended with exit code 130 before"),
        ("ctypes.CDLL(None)._exit(3)", 3, b"surefoot: the program has failed with exit code 3"),
        ("os.execv('/bin/true', ['true'])", 1, b"surefoot: the program has ended with exit code 0 before"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, b"surefoot: the program was ended by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, b"surefoot: the program was ended by SIGKILL"),
        ("os.fork() or exit_now(0); os.wait(); ctypes.CDLL(None)._exit(0)", 1, b"surefoot: the program has ended with"),
    ],
)
def test_an_end_that_was_not_announced_is_heard(program: str, code: int, said: bytes, tmp_path: Path) -> None:
    with supervised(program, tmp_path) as (process, _):
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.count(b"\n") == bool(said)
    assert err.startswith(said)


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["one process", "the group"])
def test_each_signal_counts_once_whether_it_comes_to_one_process_or_to_both(send: object, tmp_path: Path) -> None:
    assert callable(send)
    with supervised(WAITING, tmp_path, "now") as (process, ear):
        for word, number in (("here", signal.SIGTERM), ("stopped", signal.SIGINT)):
            assert ear.lines(1)[0][2] == word
            send(process.pid, number)
        assert ear.lines(1)[0][2] == "now"
        send(process.pid, signal.SIGTERM)
        assert process.wait(60) == 130


def test_a_third_signal_ends_what_does_not_listen(tmp_path: Path) -> None:
    with supervised(WAITING, tmp_path, "never") as (process, ear):
        for word in ("here", "stopped", "now"):
            assert ear.lines(1)[0][2] == word
            process.terminate()
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_the_program_ends_with_its_supervisor_and_stops_with_it(tmp_path: Path) -> None:
    on = "signal.signal(signal.SIGCONT, lambda *_: tell('on')); tell('here'); wait()"
    with supervised(on, tmp_path) as (process, ear):
        child = ear.lines(1)[0][1]
        assert child != process.pid
        for _ in range(3):
            process.send_signal(signal.SIGSTOP)
            while not stopped(child):
                os.sched_yield()
            process.send_signal(signal.SIGCONT)
            assert ear.lines(1) == [(0, child, "on")]
        process.kill()
        assert gone_within(5, [child])


def test_which_commands_have_a_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[bool]()
    monkeypatch.setattr(exits, "supervise", lambda: calls.append(True))
    for words in ("train pong", "train CartPole-v1 --seed 3", "train ALE/Breakout-v5", "bench cartpole", "plot a"):
        exits.supervised(words.split())
    exits.supervised([])
    exits.supervised(["train", "module:Env", "--help"])
    assert not calls
    theirs = ("train module:Env", "train CartPole-v1 --env.id module:Env", "resume a", "evaluate a", "train", "doctor")
    for words in theirs:
        exits.supervised(words.split())
    assert len(calls) == len(theirs)
    assert guard.announced < 0
