"""Small programs that stand for ranks without importing torch, and whether processes are gone."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RANK = """
import ctypes, os, signal, sys
from surefoot.parallel.launch import VARIABLE, die_with_launcher, error_file, exit_now
die_with_launcher()
me, fifo = int(os.environ["RANK"]), os.open(sys.argv[1], os.O_WRONLY)
def tell(word): os.write(fifo, f"{me} {os.getpid()} {word}\\n".encode())
def last(word): error_file(os.environ[VARIABLE]).write_text(word)
"""
LAUNCHER = """
import sys
from surefoot.parallel.launch import launch
launch([sys.executable, "-c", *sys.argv[1:]], 2, 1, 300.0)
"""


class Ear:
    """Hears what ranks tell, line by line."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.handle = os.open(path, os.O_RDWR)  # for writing as well: there is no end while nobody writes
        self.rest = b""

    def lines(self, count: int) -> list[tuple[int, int, str]]:
        """The next lines: rank, process id, word."""
        while self.rest.count(b"\n") < count:
            assert select.select([self.handle], [], [], 60)[0], "nobody says anything"
            self.rest += os.read(self.handle, 4096)
        *heard, self.rest = self.rest.split(b"\n", count)
        parts = [line.decode().split(" ", 2) for line in heard]
        return sorted((int(rank), int(pid), said) for rank, pid, said in parts)


@contextmanager
def launcher(program: str, folder: Path, before: str = "") -> Iterator[tuple[subprocess.Popen[bytes], Ear]]:
    """A process that launches two ranks, which do `program`; it does `before` itself."""
    ear = Ear(folder / "fifo")
    command = [sys.executable, "-c", before + LAUNCHER, RANK + program, str(folder / "fifo")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process, ear
        finally:
            process.kill()
            os.close(ear.handle)


def stopped(pid: int) -> bool:
    """Whether a process (Linux) is stopped, as by SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def listening(pid: int) -> list[str]:
    """The addresses at which a process (Linux) listens for TCP connections, as the kernel writes them."""
    files = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    sockets = (line.split() for line in lines)
    return [each[1].split(":")[0] for each in sockets if each[3] == "0A" and f"socket:[{each[9]}]" in files]


def gone_within(seconds: float, pids: list[int]) -> bool:
    """Whether all of these processes end in time."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = select.select([handle], [], [], seconds)[0]
        os.close(handle)
        if not ended:
            return False
    return True
