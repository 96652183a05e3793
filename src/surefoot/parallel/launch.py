"""Ranks of one machine as one program: starting them, watching them, passing on signals, ending all if one fails."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from surefoot.errors import Fault, UserError, note, put
from surefoot.output import RANKS_STDOUT, doing, stdout_for_rank
from surefoot.parallel import guard
from surefoot.parallel.heartbeat import BEATS, OUTSIDE, POSITION, VARIABLE, Heartbeat, Watchdog, require_heartbeat

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "surefoot-"  # of temporary folders
EXIT_STOPPED = 130  # the exit code of a rank that has saved and stopped because of a signal
GRACE = 3.0  # seconds a rank has to end after SIGTERM once another has failed
HUNG_GRACE = 5.0  # the same where another hangs: the rest save meanwhile


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
    """`asked` if it divides `num_envs`; for 0 the largest divisor that is not above the usable cores."""
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
    if VARIABLE in os.environ:
        require_heartbeat(os.environ[VARIABLE])
    else:
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


def die_with_parent() -> None:
    """On Linux: the kernel ends this process when the thread that has started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def die_with_launcher() -> None:
    """End this rank when its launcher ends, for whatever reason: the pipe that is our standard input closes then.

    On Linux the kernel ends it, even where it is stopped or an environment holds Python's global lock.
    """
    die_with_parent()
    if sys.platform == "linux" and select.select([0], [], [], 0)[0]:  # it ended before; getppid may not tell
        exit_now(1)

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock is needed at a regular end
            pass
        exit_now(1)

    threading.Thread(target=wait, daemon=True).start()


def exit_now(code: int) -> NoReturn:
    """End this rank at once, with the mark that it has ended by itself and not an environment has ended it."""
    if path := os.environ.get(VARIABLE):
        leave(done_file(path), b"")
    guard.exit_now(code)


def exit_with_error(error: UserError) -> NoReturn:
    """End this rank; its launcher raises the error."""
    leave(error_file(os.environ[VARIABLE]), str(error).encode(errors="surrogatepass"))
    exit_now(1 if isinstance(error, Fault) else 2)


def leave(path: Path, data: bytes) -> None:
    """Write a file that is not there yet."""
    with suppress(OSError), open(path, "xb") as file:
        file.write(data)


def error_file(heartbeat: str | Path) -> Path:
    """The file, beside a rank's heartbeat, with the error that has ended the rank."""
    return Path(heartbeat).with_suffix(".error")


def done_file(heartbeat: str | Path) -> Path:
    """The file, beside a rank's heartbeat, that a rank makes which ends by itself."""
    return Path(heartbeat).with_suffix(".done")


def launch(command: list[str], count: int, num_envs: int, timeout: float, starting: str = "") -> int:
    """Run `count` copies of a command as ranks; returns 0, or the signal after which they have saved and stopped.

    The first SIGINT or SIGTERM is passed on, so that the ranks save and stop; the second ends them. A rank, of
    `num_envs` environments, that gives no sign of life for `timeout` seconds ends all. Standard error: surefoot's own
    sentences are passed on at once; the rest at the end, and only the failed rank's. Raises the UserError or Fault
    `starting`: a sign of life until the first rank gives its own. The first rank writes to our standard output what it
    `adopt_stdout`s; what its environments print lands where ours does. Raises the UserError or Fault
    that the failed rank has left, KeyboardInterrupt where the signal came when no rank could save.
    """
    loopback = dict(socket.if_nameindex()).get(1, "lo")  # whatever it is called, it is the first on Linux and macOS
    shared = os.environ | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": loopback}
    shared |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ranks: list[subprocess.Popen[bytes]] = []
    with workspace() as folder:
        heartbeats = [folder / str(rank) for rank in range(count)]
        watchdog = Watchdog([Heartbeat.create(path, num_envs) for path in heartbeats], timeout)
        stderr_files = [path.with_suffix(".stderr") for path in heartbeats]
        forwarder = StderrForwarder(stderr_files)
        failed: int | str | None = None
        first = watchdog.heartbeats[0].cells

        def sign() -> str | None:
            return starting if first[POSITION] == OUTSIDE and not first[BEATS] else None

        try:
            with ExitStack() as stack:
                handle = stack.enter_context(stdout_for_rank())
                if starting:
                    stack.enter_context(doing(sign))
                signals = stack.enter_context(SignalForwarder(ranks))
                for rank in range(count):
                    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), VARIABLE: str(heartbeats[rank])}
                    answers = rank == 0 and handle is not None
                    place |= {RANKS_STDOUT: str(handle)} if answers else {}
                    with open(stderr_files[rank], "wb") as stderr:
                        process = subprocess.Popen(
                            command,
                            env=shared | place,
                            stdin=subprocess.PIPE,  # it closes when this process ends
                            stdout=None if rank == 0 else subprocess.DEVNULL,
                            stderr=stderr,
                            pass_fds=(handle,) if answers and handle is not None else (),
                            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone
                        )
                    ranks.append(process)
                    if signals.seen:  # while this rank was being started
                        process.terminate()
                signals.forward_saves()
                failed = watch(ranks, watchdog, forwarder)
        except KeyboardInterrupt:
            end_all(ranks, 0.0)
            raise
        finally:
            end_all(ranks, HUNG_GRACE if isinstance(failed, str) else GRACE)
            forwarder.forward()
        if failed is None:
            put(forwarder.remaining(0), sys.stderr, "")  # warnings, if any
            return (signals.seen or signal.SIGTERM) if any(p.returncode for p in ranks) else 0
        if signals.seen:  # when no rank could save: at the start, or after training
            raise KeyboardInterrupt
        if isinstance(failed, str):
            raise Fault(failed)
        code, error = ranks[failed].returncode, error_file(heartbeats[failed])
        put(forwarder.remaining(failed), sys.stderr, "")
        if error.exists():
            raise (UserError if code == 2 else Fault)(error.read_bytes().decode(errors="surrogatepass"))
        raise Fault(f"rank {failed} {cause_of(code)}")


def cause_of(code: int) -> str:
    """How a process has ended that has not said why."""
    if code < 0:
        killed = ", perhaps for want of memory" if code == -9 else ""
        return f"was ended by {signal.Signals(-code).name}{killed}"
    if code in (0, EXIT_STOPPED):
        return f"has ended with exit code {code} before its work was done: its environment, or a library, has ended it"
    return f"has failed with exit code {code}"


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder that nobody else may enter (mode 0700); what killed programs have left of theirs is removed.

    Its file `held` is locked as long as this process lives (not on Windows, where nothing is removed).
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, ExitStack() as stack:
        folder = Path(name)
        if fcntl is not None:
            for other in folder.parent.glob(f"{PREFIX}*/held"):
                with suppress(OSError), open(other, "r+b") as left:
                    if os.fstat(left.fileno()).st_uid == os.getuid() and not other.parent.is_symlink():
                        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(other.parent, ignore_errors=True)
            held = stack.enter_context(open(folder / "new", "wb"))
            fcntl.flock(held, fcntl.LOCK_EX)
            os.rename(folder / "new", folder / "held")
        yield folder


class StderrForwarder:
    """What ranks write to standard error, a file each: surefoot's sentences are passed on, each once for all ranks."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.offsets = files, [0] * len(files)
        self.forwarded = set[bytes]()

    def forward(self) -> None:
        """Pass on the sentences that are new since the last call."""
        for rank, path in enumerate(self.files):
            if path.stat().st_size == self.offsets[rank]:
                continue
            with open(path, "rb") as file:
                file.seek(self.offsets[rank])
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self.offsets[rank] += len(new)
            for line in new.splitlines():
                if line.startswith(b"surefoot: ") and line not in self.forwarded:
                    self.forwarded.add(line)
                    note(line.decode(errors="replace").removeprefix("surefoot: "))

    def remaining(self, rank: int) -> str:
        """All else that a rank has written."""
        lines = self.files[rank].read_bytes().splitlines(keepends=True)
        return b"".join(line for line in lines if not line.startswith(b"surefoot: ")).decode(errors="replace")


def watch(ranks: list[subprocess.Popen[bytes]], watchdog: Watchdog, forwarder: StderrForwarder) -> int | str | None:
    """Wait until all ranks have ended well (None), one has failed (which), or one hangs (a sentence about it)."""
    while True:
        codes = [p.poll() for p in ranks]
        forwarder.forward()
        well = [code in (0, EXIT_STOPPED) and done_file(forwarder.files[i]).exists() for i, code in enumerate(codes)]
        failed = [i for i, code in enumerate(codes) if code is not None and not well[i]]
        if failed:  # the cause is one ended by a signal, or one that left an error; not one that lost its connection
            return min(failed, key=lambda i: min(codes[i] or 0, 0) or not error_file(forwarder.files[i]).exists())
        if None not in codes:
            return None
        if verdict := watchdog.verdict():
            return verdict[1]
        time.sleep(0.05)


def end_all(ranks: list[subprocess.Popen[bytes]], grace: float) -> None:
    """End all ranks that are left: SIGTERM, and SIGKILL after `grace` seconds."""
    for p in ranks:
        if p.poll() is None:
            p.terminate()
    deadline = time.monotonic() + grace
    for p in ranks:
        try:
            p.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
        if p.stdin is not None:
            p.stdin.close()


def stop_signals() -> list[int]:
    """The signals that stop a run: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (terminal closed) unless ignored (nohup)."""
    closed = [signal.SIGHUP] if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *closed]


class SignalForwarder:
    """A context in which the first stop signal is passed on to the ranks as SIGTERM; a second one interrupts."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]]) -> None:
        self.ranks, self.seen = ranks, 0

    def __enter__(self) -> SignalForwarder:
        def handle(number: int, _: object) -> None:
            if self.seen and guard.is_supervised():  # that ends us by other means
                return
            if self.seen:
                raise KeyboardInterrupt
            self.seen = number
            for p in self.ranks:
                p.terminate()

        wanted: dict[int, Any] = dict.fromkeys(stop_signals(), handle)
        if hasattr(signal, "SIGUSR1"):
            wanted[signal.SIGUSR1] = signal.SIG_IGN  # ranks inherit this, until they can save
        main = threading.current_thread() is threading.main_thread()
        self.old = {s: signal.signal(s, handler) for s, handler in wanted.items()} if main else {}
        return self

    def forward_saves(self) -> None:
        """From now on SIGUSR1, which asks for a checkpoint, is passed on as well."""

        def save(*_: object) -> None:
            for p in self.ranks:
                p.send_signal(signal.SIGUSR1)

        if self.old and hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, save)

    def __exit__(self, *_: object) -> None:
        for s, previous in self.old.items():
            signal.signal(s, previous)
