"""How the ranks of one machine are started and watched: they begin, progress, fail and stop as one program."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from surefoot.errors import Fault, UserError, note
from surefoot.parallel.heartbeat import VARIABLE, Heartbeat, Watchdog

EXIT_STOPPED = 130  # the exit code of a rank that a signal has stopped and that was saved
HANGING = 5.0  # the same where one has hung: the others save
PATIENCE = 3.0  # seconds a rank has to end after SIGTERM once another has failed


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: affinity and the limits of its cgroups respected, not the machine's count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = root / "sys/fs/cgroup"
    with suppress(OSError):
        group /= (root / "proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # no cgroup v2, or no limit
            quota, period = (folder / "cpu.max").read_text().split()
            cores = max(1, min(cores, int(quota) // int(period)))
    return cores


def choose_ranks(asked: int, num_envs: int) -> int:
    """`asked` if it divides the games; for 0 the largest divisor of them that is not above the usable cores."""
    if asked == 0:
        return max(n for n in range(1, min(num_envs, usable_cores()) + 1) if num_envs % n == 0)
    if asked < 1 or num_envs % asked:
        divisors = ", ".join(str(n) for n in range(1, num_envs + 1) if num_envs % n == 0)
        raise UserError(f"ranks is {asked}; allowed are divisors of the {num_envs} environments: {divisors}")
    return asked


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are, as `launch` or torchrun started it; (0, 0) where it is on its own."""
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return 0, 0
    if VARIABLE not in os.environ:
        if not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            return 0, 0
        if not os.environ["MASTER_ADDR"].strip():
            raise UserError("MASTER_ADDR is empty; torchrun sets it to the address where the ranks meet")
        from_environment("MASTER_PORT", 1, 65_535)
    count = from_environment("WORLD_SIZE", 1, 1_000_000)
    return from_environment("RANK", 0, count - 1), count


def from_environment(name: str, low: int, high: int) -> int:
    """The whole number in an environment variable. Raises UserError."""
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise UserError(f"{name} is {text!r}; allowed is a whole number from {low} to {high}, as torchrun sets it")
    return int(text)


def world() -> int:
    """How many ranks this process was started as one of; 0 where it is on its own."""
    return rank_and_world()[1]


def store_file() -> str | None:
    """The file through which ranks that `launch` started on this machine find each other; None under torchrun."""
    shared = os.environ.get(VARIABLE)
    return None if shared is None else str(Path(shared).with_name("store"))


def die_with_launcher() -> None:
    """End this rank when its launcher is gone, however it went: its end of our standard input closes then.

    On Linux the kernel ends it, even where it is stopped or an environment holds Python's lock.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if select.select([0], [], [], 0)[0]:  # gone before; getppid would not tell in every container
            os._exit(1)

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would be missed at a regular end
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def exit_now(code: int) -> NoReturn:
    """End this rank at once, with all it has to say: gloo's threads now and then abort an orderly end of Python."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_with_error(mistake: UserError) -> NoReturn:
    """End this rank; its launcher raises the mistake."""
    with suppress(OSError):
        error_file(os.environ[VARIABLE]).write_text(str(mistake))
    exit_now(1 if isinstance(mistake, Fault) else 2)


def error_file(memory: str | Path) -> Path:
    """The file that says what a rank has ended of, beside the memory that it shares with its launcher."""
    return Path(memory).with_suffix(".word")


def launch(command: list[str], count: int, num_envs: int, timeout: float) -> int:
    """Run `count` copies of a command; returns 0, or the signal after which they have saved and stopped.

    The first SIGINT or SIGTERM is passed on, so that the ranks save and stop; the second ends them; so does silence
    of `timeout` seconds (each rank has so many `games`). Our own sentences on the ranks' standard error are passed on
    at once; of the rest only what the failed rank wrote, at the end: the others only suffered from it. Raises
    UserError or Fault with the last word of the failed rank, KeyboardInterrupt where no rank could stop politely.
    """
    loopback = socket.if_indextoname(1)  # whatever it is called, it is the first on Linux and macOS
    shared = os.environ | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": loopback}
    shared |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:  # nobody else may enter it (mode 0700)
        memory = [Path(folder, str(rank)) for rank in range(count)]
        dog = Watchdog([Heartbeat.lay(path, num_envs) for path in memory], timeout)
        complaints = [path.with_suffix(".err") for path in memory]
        heard = StderrForwarder(complaints)
        failed: int | str | None = None
        try:
            with SignalForwarder(ranks) as signals:
                for rank in range(count):
                    own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), VARIABLE: str(memory[rank])}
                    with open(complaints[rank], "wb") as complaint:
                        process = subprocess.Popen(
                            command,
                            env=own,
                            stdin=subprocess.PIPE,  # its closing tells the rank that we are gone
                            stdout=None if rank == 0 else subprocess.DEVNULL,
                            stderr=complaint,
                            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone
                        )
                    ranks.append(process)
                    if signals.seen:  # just now, when this one could not hear it
                        process.terminate()
                signals.pass_saves()
                failed = watch(ranks, dog, heard)
        except KeyboardInterrupt:
            end(ranks, 0.0)
            raise
        finally:
            end(ranks, HANGING if isinstance(failed, str) else PATIENCE)
            heard.pass_on()
        if failed is None:
            with suppress(OSError):
                print(heard.rest(0), end="", file=sys.stderr, flush=True)  # warnings, if any
            return (signals.seen or signal.SIGTERM) if any(p.returncode for p in ranks) else 0
        if signals.seen:  # it came when no rank could stop politely: at the start, or after training
            raise KeyboardInterrupt
        if isinstance(failed, str):
            raise Fault(failed)
        code, said = ranks[failed].returncode, error_file(memory[failed])
        with suppress(OSError):
            print(heard.rest(failed), end="", file=sys.stderr, flush=True)
        if said.exists():
            raise (UserError if code == 2 else Fault)(said.read_text())
        cause = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has failed with exit code {code}"
        raise Fault(f"rank {failed} {cause}")


class StderrForwarder:
    """What ranks write to their standard error: our own sentences are passed on at once, and each only once."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.places = files, [0] * len(files)
        self.said = set[bytes]()

    def pass_on(self) -> None:
        """Pass on the sentences that have come since the last time."""
        for rank, path in enumerate(self.files):
            if path.stat().st_size == self.places[rank]:
                continue
            with open(path, "rb") as file:
                file.seek(self.places[rank])
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self.places[rank] += len(new)
            for line in new.splitlines():
                if line.startswith(b"surefoot: ") and line not in self.said:
                    self.said.add(line)
                    note(line.decode(errors="replace").removeprefix("surefoot: "))

    def rest(self, rank: int) -> str:
        """All else that a rank has written."""
        lines = self.files[rank].read_bytes().splitlines(keepends=True)
        return b"".join(line for line in lines if not line.startswith(b"surefoot: ")).decode(errors="replace")


def watch(ranks: list[subprocess.Popen[bytes]], dog: Watchdog, heard: StderrForwarder) -> int | str | None:
    """Wait until all have ended well (None), one has failed (which), or one is silent (a sentence about it)."""
    while True:
        codes = [p.poll() for p in ranks]
        heard.pass_on()
        bad = [i for i, code in enumerate(codes) if code not in (None, 0, EXIT_STOPPED)]
        if bad:  # a rank ended by a signal is the cause, or one that says why; one that lost its connection is not
            return min(bad, key=lambda i: min(codes[i] or 0, 0) or not error_file(heard.files[i]).exists())
        if None not in codes:
            return None
        if verdict := dog.verdict():
            return verdict[1]
        time.sleep(0.05)


def end(ranks: list[subprocess.Popen[bytes]], patience: float) -> None:
    """Make sure that no rank is left."""
    for p in ranks:
        if p.poll() is None:
            p.terminate()
    deadline = time.monotonic() + patience
    for p in ranks:
        try:
            p.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
        if p.stdin is not None:
            p.stdin.close()


def stops() -> list[int]:
    """The signals that stop a run: Ctrl-C, SIGTERM, and a closed terminal, where that is not ignored (nohup)."""
    closed = [signal.SIGHUP] if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *closed]


class SignalForwarder:
    """While it is open, SIGINT and SIGTERM are passed on as SIGTERM once; the second time they interrupt."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]]) -> None:
        self.ranks, self.seen = ranks, 0

    def __enter__(self) -> SignalForwarder:
        def handle(number: int, _: object) -> None:
            if self.seen:
                raise KeyboardInterrupt
            self.seen = number
            for p in self.ranks:
                p.terminate()

        wanted: dict[int, Any] = dict.fromkeys(stops(), handle)
        if hasattr(signal, "SIGUSR1"):
            wanted[signal.SIGUSR1] = signal.SIG_IGN  # which the ranks inherit, until they can save
        main = threading.current_thread() is threading.main_thread()
        self.old = {s: signal.signal(s, handler) for s, handler in wanted.items()} if main else {}
        return self

    def pass_saves(self) -> None:
        """From now on SIGUSR1 is passed on as well."""

        def save(*_: object) -> None:
            for p in self.ranks:
                p.send_signal(signal.SIGUSR1)

        if self.old and hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, save)

    def __exit__(self, *_: object) -> None:
        for s, previous in self.old.items():
            signal.signal(s, previous)
