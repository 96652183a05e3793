"""How ranks are watched, stopped and heard, with real processes and signals but ranks that need no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import RANK, Ear, gone_within, launcher, stopped
from surefoot.errors import Fault, UserError
from surefoot.parallel.heartbeat import VARIABLE, Heartbeat, Watchdog
from surefoot.parallel.launch import StderrForwarder, error_file, launch, rank_and_world, watch


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_no_rank_outlives_its_launcher_stopped_or_with_pythons_lock_held(tmp_path: Path) -> None:
    """SIGKILL for the launcher; one rank is stopped, the other is in C code that lets no Python thread run."""
    program = """
if me == 0:
    tell("stops")
    os.kill(os.getpid(), signal.SIGSTOP)
else:
    sys.setswitchinterval(1e6)  # no other thread gets the lock, from here on
    libc, line = ctypes.PyDLL(None), f"{me} {os.getpid()} hangs\\n".encode()
    libc.write(fifo, line, len(line))
    libc.pause()
"""
    with launcher(program, tmp_path) as (process, ear):
        pids = [pid for _, pid, _ in ear.lines(2)]
        while not stopped(pids[0]):
            os.sched_yield()
        process.kill()
        assert gone_within(5, pids)


def test_the_second_signal_ends_ranks_that_do_not_heed_the_first(tmp_path: Path) -> None:
    program = """
signal.signal(signal.SIGTERM, lambda *_: tell("heard"))
tell("begins")
while True: signal.pause()
"""
    with launcher(program, tmp_path) as (process, ear):
        pids = [pid for _, pid, _ in ear.lines(2)]
        process.send_signal(signal.SIGINT)
        assert [said for *_, said in ear.lines(2)] == ["heard", "heard"]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT  # as Python ends of a KeyboardInterrupt
        assert gone_within(5, pids)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_that_was_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    """SIGSTOP, and an hour later by the launcher's clock SIGCONT; then its watchdog looks 20 times at silent ranks."""
    before = f"""
import os, signal, time
monotonic, hours, calls = time.monotonic, [], []
def clock():
    calls.extend(hours[:1])
    if len(calls) == 20: os.write(fifo, b"0 0 patient\\n")
    return monotonic() + 3600 * len(hours)
time.monotonic, fifo = clock, os.open({str(tmp_path / "fifo")!r}, os.O_WRONLY)
signal.signal(signal.SIGCONT, lambda *_: hours.append(1))
"""
    program = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
tell("begins")
signal.sigwait([signal.SIGUSR2])
exit_now(0)
"""
    with launcher(program, tmp_path, before) as (process, ear):
        ranks = [pid for _, pid, _ in ear.lines(2)]
        everyone = [*ranks, process.pid]
        for number, arrived in ((signal.SIGSTOP, True), (signal.SIGCONT, False)):
            for pid in everyone:
                os.kill(pid, number)
            while any(stopped(pid) != arrived for pid in everyone):
                os.sched_yield()
        assert ear.lines(1) == [(0, 0, "patient")]
        for pid in ranks:
            os.kill(pid, signal.SIGUSR2)
        assert process.wait(10) == 0


def test_the_watchdog_does_not_count_time_in_which_it_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("surefoot.parallel.heartbeat.time.monotonic", lambda: now[0])
    heartbeats = [Heartbeat.of(2), Heartbeat.of(2)]
    watchdog = Watchdog(heartbeats, 10.0)

    def after(seconds: float) -> tuple[int, str] | None:
        now[0] += seconds
        return watchdog.verdict()

    for heartbeat in heartbeats:
        heartbeat.decide([0, 0], [0, 0])
        heartbeat.at(1)
    assert after(0.5) is None
    assert [after(0.5) for _ in range(10)] == [None] * 10
    assert after(1e6) is None  # counts as 1, so 6 in all
    heartbeats[0].rest()
    assert [after(0.5) for _ in range(8)] == [None] * 8
    assert after(0.5) == (1, "environment 3 (episode's seed 0, step 1, last actions 0) has hung for 10 seconds")


@pytest.mark.parametrize("ranks", [1, 2])
def test_environments_that_compile_one_after_the_other_in_one_decision_do_not_hang(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times 40 seconds, where 50 are allowed; a rank that has none waits. The ninth does hang."""
    now = [0.0]
    monkeypatch.setattr("surefoot.parallel.heartbeat.time.monotonic", lambda: now[0])
    heartbeats = [Heartbeat.of(9) for _ in range(ranks)]
    watchdog, slow = Watchdog(heartbeats, 50.0), heartbeats[-1]

    def after(seconds: int) -> list[tuple[int, str] | None]:
        verdicts = []
        for _ in range(seconds):
            now[0] += 1
            verdicts.append(watchdog.verdict())
        return verdicts

    for heartbeat in heartbeats:
        heartbeat.decide([0] * 9, [0] * 9)
        heartbeat.rest()
    for i in range(8):
        slow.at(i)
        assert after(40) == [None] * 40
    slow.at(8)
    *earlier, last = after(52)
    assert earlier[:50] == [None] * 50
    assert last is not None
    assert last[0] == ranks - 1
    assert "environment" in last[1]


def test_the_first_step_of_a_vectorenv_may_take_as_long_as_those_of_its_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("surefoot.parallel.heartbeat.time.monotonic", lambda: now[0])
    heartbeat = Heartbeat.of(8)
    watchdog = Watchdog([heartbeat], 50.0)
    verdicts = []
    for _ in range(2):
        heartbeat.decide([], [0] * 8)
        heartbeat.at(8)
        for second in range(400):
            now[0] += 1
            verdicts.append((second, watchdog.verdict() is not None))
    assert [second for second, hung in verdicts[:400] if hung] == []
    assert next(second for second, hung in verdicts[400:] if hung) in (50, 51)


@pytest.mark.parametrize(
    ("program", "kind", "says"),
    [
        ("last('two lines\\nof a mistake'); exit_now(2)", UserError, "two lines\nof a mistake"),
        ("last('an environment failed'); exit_now(1)", Fault, "an environment failed"),
        (
            "if me == 0: signal.pause()\nos.kill(os.getpid(), signal.SIGKILL)",
            Fault,
            "rank 1 was ended by SIGKILL, perhaps for want of memory",
        ),
        ("if me == 0: signal.pause()\n1 / 0", Fault, "rank 1 has failed with exit code 1"),
    ],
    ids=["mistake", "fault", "killed", "traceback"],
)
def test_what_a_rank_ends_of_is_raised_in_its_own_words(
    program: str, kind: type[Exception], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ear = Ear(tmp_path / "fifo")
    with pytest.raises(UserError) as caught:
        launch([sys.executable, "-c", RANK + program, str(tmp_path / "fifo")], 2, 1, 300.0)
    os.close(ear.handle)
    assert type(caught.value) is kind
    assert str(caught.value) == says
    assert ("ZeroDivisionError" in capsys.readouterr().err) == ("/ 0" in program)


def test_the_cause_is_the_rank_that_was_killed_or_says_why_and_not_one_that_lost_its_connection(tmp_path: Path) -> None:
    """All have ended when the launcher looks."""
    files = [tmp_path / f"{rank}.err" for rank in range(3)]
    for file in files:
        file.touch()
    exits = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (1, 1)]
    killed = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    for process in (*exits, killed):
        process.wait()
    dog = Watchdog([], 300.0)
    error_file(files[1]).write_text("the cause")
    assert watch(exits, dog, StderrForwarder(files)) == 1
    assert watch([*exits, killed], dog, StderrForwarder(files)) == 2


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RANK", "one", "RANK is 'one'; allowed is a whole number from 0 to 1, as torchrun sets it"),
        ("RANK", "2", "RANK is '2'; allowed is a whole number from 0 to 1, as torchrun sets it"),
        ("RANK", "-1", "RANK is '-1'; allowed is a whole number from 0 to 1, as torchrun sets it"),
        ("WORLD_SIZE", "", "WORLD_SIZE is ''; allowed is a whole number from 1 to 1000000, as torchrun sets it"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0'; allowed is a whole number from 1 to 1000000, as torchrun sets it"),
        (
            "MASTER_PORT",
            "65536",
            "MASTER_PORT is '65536'; allowed is a whole number from 1 to 65535, as torchrun sets it",
        ),
        ("MASTER_ADDR", " ", "MASTER_ADDR is empty; torchrun sets it to the address where the ranks meet"),
    ],
)
def test_malformed_variables_of_torchrun_are_refused_in_a_sentence(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    fine = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    for key, text in fine.items():
        monkeypatch.setenv(key, text)
    assert rank_and_world() == (1, 2)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        rank_and_world()
    assert str(caught.value) == says
    monkeypatch.delenv(name)
    assert rank_and_world() == (0, 0)  # not started by torchrun
