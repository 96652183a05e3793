"""Where ranks of torchrun meet: at MASTER_ADDR and MASTER_PORT, for a bounded time, in which signals are heard."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from surefoot.errors import Fault, UserError, note, said
from surefoot.parallel.heartbeat import WaitingClock

SILENT = 10.0  # seconds after which a rank says what it waits for
UNSET = (
    "where this is no rank of a job, unset RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which another one has left"
)


class Meeting:
    """This rank's way into the group, in a thread of its own, since PyTorch's waiting hears no signal."""

    def __init__(self, rank: int, count: int, seconds: float) -> None:
        self.rank, self.count, self.seconds = rank, count, seconds
        self.host, self.port = os.environ["MASTER_ADDR"].strip(), int(os.environ["MASTER_PORT"])
        self.agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own store, which is there
        self.here, self.error, self.over = 0, list[BaseException](), threading.Event()

    def check(self) -> None:
        """Raise UserError where nobody can ever meet there."""
        try:
            socket.getaddrinfo(self.host, self.port)
            if self.agent:
                socket.create_connection((self.host, self.port), SILENT).close()
        except OSError as error:
            raise UserError(f"the ranks cannot meet at {self.host} port {self.port} ({said(error)}): {UNSET}") from None

    def go(self) -> None:
        """Meet all others, and connect to them; what fails is left in `error`."""
        try:
            wait = timedelta(seconds=self.seconds)
            master = self.rank == 0 and not self.agent
            uv = os.environ.get("USE_LIBUV", "0" if sys.platform == "win32" else "1") == "1"  # as torchrun's store
            store = dist.TCPStore(  # type: ignore[attr-defined]
                self.host, self.port, self.count, master, wait, wait_for_workers=False, multi_tenant=True, use_libuv=uv
            )
            # torchrun's store outlives a restart of the ranks, which is a meeting of its own
            again = f"surefoot/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{self.count}"
            group = dist.PrefixStore(again, store)  # type: ignore[attr-defined]
            if group.add(f"rank/{self.rank}", 1) > 1:
                twice = f"two processes are rank {self.rank} at {self.host} port {self.port}"
                raise UserError(f"{twice}: give each job a MASTER_PORT of its own; {UNSET}")
            self.here = group.add("here", 1)
            while self.here < self.count and not self.over.is_set():
                time.sleep(0.05)
                self.here = group.add("here", 0)
            if not self.over.is_set():
                dist.init_process_group("gloo", store=group, rank=self.rank, world_size=self.count, timeout=wait)
        except BaseException as error:
            self.error.append(error)
        self.over.set()

    def where(self) -> str:
        """What is waited for, as a clause."""
        arrived = f"{self.here} of {self.count} are here" if self.here else "nobody answers there yet"
        return f"rank {self.rank} waits for the others at {self.host} port {self.port}: {arrived}"


def meet(rank: int, count: int, seconds: float) -> None:
    """Join the group of `count` ranks, with gloo; raises Fault where they have not come after so many seconds."""
    meeting, clock, told = Meeting(rank, count, seconds), WaitingClock(1.0), False
    meeting.check()
    thread = threading.Thread(target=meeting.go, daemon=True)
    thread.start()
    try:
        while not meeting.over.wait(0.1):
            waited = clock.read()
            if waited > SILENT and not told:
                told = True
                note(f"{meeting.where()}; {UNSET}")
            if waited > seconds:
                raise Fault(f"{meeting.where()}; they have not come in {seconds:.0f} seconds; {UNSET}")
    finally:
        meeting.over.set()
        thread.join(1.0)  # PyTorch aborts a process that ends while its store is being made
    for error in meeting.error:
        if isinstance(error, UserError):
            raise error
        raise Fault(
            f"rank {rank} cannot meet the others at {meeting.host} port {meeting.port}: {said(error)}"
        ) from error
