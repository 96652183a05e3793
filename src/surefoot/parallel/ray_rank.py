"""A rank as a worker of Ray Train, and the Mailbox, an actor through which ranks and the calling program talk."""

from __future__ import annotations

import io
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from surefoot.errors import Fault, UserError, one_line, said
from surefoot.output import answer_to
from surefoot.parallel.guard import exit_now, guarded

TRIES = 3  # losses of ranks without a new checkpoint, after which a run is given up
PACKAGES = ("surefoot", "torch", "numpy", "gymnasium")  # of which all nodes must have the same version
MARK = ".ray"  # the file in the run directory by which ranks know that it is the caller's

Word = tuple[int, bool, str]
"""a rank, whether it is for standard error, a text"""


@dataclass
class Mailbox:
    """The actor between caller and ranks; each method is a message."""

    words: list[Word] = field(default_factory=list)
    asked: tuple[int, int] = (0, 0)
    """the signal that stops the run, and how often a checkpoint was asked for"""
    error: tuple[bool, str] | None = None
    """what ends the run: whether it is a Fault, its sentence"""
    lost: str = "without a word"
    ranks: int = 0
    starts: list[int] = field(default_factory=list)
    """the checkpoints from which ranks have started; -1: from none"""
    ended: dict[int, int] = field(default_factory=dict)
    """the signal, or 0, with which each rank has ended"""

    def fit(self, job: Job, count: int, grow: float, folder: str) -> None:
        """Have Ray Train run the job, in a thread of this actor's own, until it has succeeded."""
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.backend import Backend
        from ray.train.torch import TorchConfig, TorchTrainer

        class Bare(TorchConfig):  # type: ignore[misc]
            """No process group: which workers are ranks is known only on them."""

            backend_cls = Backend

        TorchTrainer(
            lambda: job(),
            torch_config=Bare(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=(1, count), elastic_resize_monitor_interval_s=grow),
            run_config=RunConfig(name="surefoot", storage_path=folder, failure_config=FailureConfig(max_failures=-1)),
        ).fit()

    def say(self, rank: int, on_stderr: bool, text: str) -> None:
        self.words.append((rank, on_stderr, text))

    def ask(self, signal: int, saves: int) -> None:
        self.asked = signal, saves

    def wanted(self) -> tuple[int, int, bool]:
        """What was asked for, and whether the run has ended with an error."""
        return *self.asked, self.error is not None

    def begin(self, ranks: int, checkpoint: int) -> int:
        """Rank 0 starts, from this checkpoint; returns how many starts there were before."""
        before, self.ranks, self.ended = self.ranks, ranks, {}
        self.starts.append(checkpoint)
        if before:
            why = "there are cores for more ranks" if ranks > before else f"a rank was lost ({self.lost})"
            self.say(0, True, f"surefoot: {why}: the run goes on from its newest checkpoint, with {ranks} of them\n")
        if self.starts[-TRIES - 1 :] == [checkpoint] * (TRIES + 1):
            self.fail(True, f"ranks were lost {TRIES} times without a checkpoint in between ({self.lost})")
        return len(self.starts) - 1

    def lose(self, what: str) -> None:
        self.lost = what

    def fail(self, fault: bool, sentence: str) -> None:
        self.error = self.error or (fault, sentence)

    def end(self, rank: int, stopped: int) -> None:
        self.ended[rank] = stopped

    def take(self) -> tuple[list[Word], int, tuple[bool, str] | None, int | None]:
        """What was said since the last call; starts so far; the error; once all ranks have ended, their signal or 0."""
        words, self.words = self.words, []
        over = self.ranks > 0 and len(self.ended) == self.ranks
        return words, len(self.starts), self.error, max(self.ended.values()) if over else None


class Line(io.TextIOBase):
    """A standard stream of a rank: what is written is sent."""

    def __init__(self, send: Callable[[str], object], terminal: bool = False) -> None:
        self.send, self.terminal = send, terminal

    def write(self, text: str) -> int:
        if text:
            self.send(text)
        return len(text)

    def isatty(self) -> bool:
        return self.terminal


@dataclass
class Job:
    """What a rank must know. `work` does its work: it takes `order` and a function that takes what has `stop`,
    `signal` and `save_now`, to be set while it works; it returns the signal that has stopped it, or 0."""

    work: Callable[[str, Callable[[Any], None]], int]
    newest: Callable[[Any], int]
    """the run directory's newest checkpoint, -1 for none"""
    order: str
    run_dir: Path | str  # a text for an address
    num_envs: int
    timeout: float
    mailbox: Any
    store: str | None
    """on one machine: the beginning of the names of files by which ranks find each other"""
    mark: str
    versions: dict[str, str]
    terminal: bool
    columns: int

    def tell(self, message: str, *facts: Any) -> Any:
        """Send the mailbox a message, and wait for its answer."""
        import ray

        return ray.get(getattr(self.mailbox, message).remote(*facts))

    def meet(self) -> bool:
        """Let this worker find the others as a rank of torchrun does; returns whether it is needed.

        Ranks must divide the environments: where 3 workers are left for 8 environments, one of them has nothing to do.
        """
        import ray
        from ray import train
        from ray.train.collective import broadcast_from_rank_zero
        from torch import distributed as dist

        context = train.get_context()
        rank, workers = context.get_world_rank(), context.get_world_size()
        count = max(n for n in range(1, workers + 1) if self.num_envs % n == 0)
        place: Any = None
        if rank == 0:
            with socket.socket() as probe:
                probe.bind(("", 0))
                place = self.tell("begin", count, self.newest(self.run_dir)), probe.getsockname()[1]
            place = *place, ray.util.get_node_ip_address()
        attempt, port, address = broadcast_from_rank_zero(place)
        if rank >= count or self.tell("wanted")[2]:
            return False
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(context.get_local_world_size() if count == workers else 1)}
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        if self.store and count > 1:
            os.environ["GLOO_SOCKET_IFNAME"] = dict(socket.if_nameindex()).get(1, "lo")
            store = dist.FileStore(f"{self.store}-{attempt}", count)  # type: ignore[attr-defined]
            wait = timedelta(seconds=2 * self.timeout + 300)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=wait)
        return True

    def listen(self, target: list[Any]) -> None:
        """Do what the caller asks for, as a signal would; end this process where the run has failed elsewhere."""
        saved = self.tell("wanted")[1]
        while True:
            try:
                signal, saves, failed = self.tell("wanted")
            except Exception:  # the caller is gone
                failed = True
            if failed:
                exit_now(1)
            for reporter in target:
                if signal and not reporter.stop:
                    reporter.stop, reporter.signal = True, signal
                reporter.save_now, saved = reporter.save_now or saves > saved, saves
            time.sleep(1)

    def __call__(self) -> None:
        """Be a rank, in a thread of a worker of Ray Train."""
        from ray import train

        rank, target = train.get_context().get_world_rank(), list[Any]()
        os.environ["COLUMNS"] = str(self.columns)
        answer_to(Line(lambda text: self.mailbox.say.remote(rank, False, text), self.terminal))
        sys.stderr = Line(lambda text: self.tell("say", rank, True, text))
        try:
            with guarded():
                require_same_place(self.run_dir, self.mark, self.versions)
                if not self.meet():
                    return
                threading.Thread(target=self.listen, args=(target,), daemon=True).start()
                stopped = self.work(self.order, target.append)
            self.tell("end", rank, stopped)
        except UserError as error:
            self.tell("fail", isinstance(error, Fault), str(error))
            exit_now(1)  # others may wait for this rank: its sockets close
        except BaseException as error:
            self.tell("lose", one_line(f"rank {rank}: {said(error)}", 300))
            raise


def versions() -> dict[str, str]:
    """What ranks must have alike."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def require_same_place(run_dir: Path | str, mark: str, wanted: dict[str, str]) -> None:
    """Raise UserError where this node has other versions, or another run directory, than the caller."""
    here = versions()
    wrong = [f"{name} {here[name]} instead of {want}" for name, want in wanted.items() if here[name] != want]
    node = f"node {socket.gethostname()}"
    if wrong:
        raise UserError(f"{node} has {', '.join(wrong)}: install the same on all nodes")
    if isinstance(run_dir, str):
        return  # the rank looks whether the address has the mark of its command
    with suppress(OSError):
        if (run_dir / MARK).read_text() == mark:
            return
    raise UserError(f"{node} does not see the run directory '{run_dir}': choose one that all nodes share")
