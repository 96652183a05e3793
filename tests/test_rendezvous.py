"""Ranks that torchrun, or whoever sets its variables, has started: how they meet, and what is said if not."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from surefoot.errors import Fault, UserError
from surefoot.parallel import rendezvous
from surefoot.parallel.rendezvous import Meeting, meet


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port that nobody listens on, as MASTER_PORT; a note after a moment instead of ten seconds."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = int(probe.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    monkeypatch.setattr(rendezvous, "SILENT", 0.2)
    return number


@pytest.mark.parametrize(("rank", "here"), [(0, "1 of 3 are here"), (2, "nobody answers there yet")])
def test_a_rank_says_what_it_waits_for_and_ends_with_a_sentence(
    rank: int, here: str, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = f"rank {rank} waits for the others at 127.0.0.1 port {port}: {here}"
    with pytest.raises(Fault, match=f"{waits}; they have not come in 1 seconds; .* unset RANK, WORLD_SIZE"):
        meet(rank, 3, 0.6)
    assert capsys.readouterr().err.startswith(f"surefoot: {waits}; where this is no rank of a job, unset RANK")


@pytest.mark.usefixtures("signals_interrupt", "port")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_that_waits_hears_signals(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "note", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        meet(0, 2, 60.0)


@pytest.mark.parametrize("built", ["with libuv", "without"])
def test_two_processes_that_are_the_same_rank_are_told(port: int, built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if built == "without":
        monkeypatch.setenv("USE_LIBUV", "0")
    first = Meeting(0, 2, 20.0)
    waiting = threading.Thread(target=first.go)
    waiting.start()
    try:
        while not first.here and waiting.is_alive():
            waiting.join(0.01)
        with pytest.raises(UserError, match=f"two processes are rank 0 at 127.0.0.1 port {port}"):
            meet(0, 2, 20.0)
    finally:
        first.over.set()
        waiting.join()


def test_a_place_where_nobody_can_meet_is_told_at_once(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of a torchrun that is gone; a name that does not exist; a port that another program has."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match=rf"cannot meet at .* port {port} .ConnectionRefused.* another one has left"):
        meet(0, 2, 60.0)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with socket.create_server(("", port)), pytest.raises(Fault, match=r"cannot meet the others .*(EADDRINUSE|in use)"):
        meet(0, 2, 60.0)
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    with pytest.raises(UserError, match=r"cannot meet at nowhere\.invalid port"):
        meet(1, 2, 60.0)
