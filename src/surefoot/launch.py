"""How the ranks of one machine are started and watched: they begin, progress, fail and stop as one program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from surefoot.errors import UserError

PATIENCE = 3.0  # seconds a rank has to end after SIGTERM once another has failed


def usable_cores() -> int:
    """Cores this process may use: affinity and cgroup limits respected, not the machine's count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no limit
        return cores


def choose_ranks(asked: int, games: int) -> int:
    """`asked` if it divides the games; for 0 the largest divisor of them that is not above the usable cores."""
    if asked == 0:
        return max(n for n in range(1, min(games, usable_cores()) + 1) if games % n == 0)
    if asked < 1 or games % asked:
        divisors = ", ".join(str(n) for n in range(1, games + 1) if games % n == 0)
        raise UserError(f"ranks is {asked}; allowed are divisors of the {games} games: {divisors}")
    return asked


def world() -> int:
    """How many ranks this process was started as one of, by us or by torchrun; 0 where it is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return size if size > 1 else 0


def die_with_launcher() -> None:
    """End this rank when its launcher is gone, however it went: its end of our standard input closes then."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would be missed at a regular end
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def launch(command: list[str], count: int) -> int:
    """Run `count` copies of a command as ranks; returns 0, or the first failed one's exit code, or 130 after a signal.

    The first SIGINT or SIGTERM is passed on, so that the ranks stop at the end of their iteration; the second ends
    them. What the failed rank wrote to its standard error is written to ours; the others only suffered from it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    shared |= {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    ranks: list[subprocess.Popen[bytes]] = []
    with ExitStack() as files:
        complaints = [files.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        try:
            with PassingOn(ranks) as signals:
                for rank in range(count):
                    own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    out = None if rank == 0 else subprocess.DEVNULL
                    ranks.append(
                        subprocess.Popen(
                            command,
                            env=own,
                            stdin=subprocess.PIPE,  # its closing tells the rank that we are gone
                            stdout=out,
                            stderr=complaints[rank],
                            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone
                        )
                    )
                failed = watch(ranks)
        finally:
            end(ranks)
        texts = [read_back(file) for file in complaints]
    if failed is None:
        print(texts[0], end="", file=sys.stderr)  # warnings, if any
        return 0
    if signals.seen:  # it came when no rank could stop politely: at the start, or after training
        return 130
    code = ranks[failed].returncode
    cause = f"surefoot: rank {failed} was ended by {signal.Signals(-code).name}\n" if code < 0 else ""
    print(cause + texts[failed], end="", file=sys.stderr)
    return code if code > 0 else 1


def read_back(file: IO[bytes]) -> str:
    """All that was written to a file."""
    file.seek(0)
    return file.read().decode(errors="replace")


def watch(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended well (None) or one has failed (which)."""
    while True:
        codes = [p.poll() for p in ranks]
        bad = [i for i, code in enumerate(codes) if code]
        if bad:  # a rank ended by a signal is the cause; one that lost its connection is not
            return min(bad, key=lambda i: codes[i] or 0)
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)


def end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Make sure that no rank is left."""
    for p in ranks:
        if p.poll() is None:
            p.terminate()
    deadline = time.monotonic() + PATIENCE
    for p in ranks:
        try:
            p.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
        if p.stdin is not None:
            p.stdin.close()


class PassingOn:
    """While it is open, SIGINT and SIGTERM are passed on as SIGTERM once; the second time they interrupt."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]]) -> None:
        self.ranks, self.seen = ranks, False

    def __enter__(self) -> PassingOn:
        def handle(*_: object) -> None:
            if self.seen:
                raise KeyboardInterrupt
            self.seen = True
            for p in self.ranks:
                p.terminate()

        main = threading.current_thread() is threading.main_thread()
        self.old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        return self

    def __exit__(self, *_: object) -> None:
        for s, previous in self.old.items():
            signal.signal(s, previous)
