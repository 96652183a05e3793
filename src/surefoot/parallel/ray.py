"""Ranks as the workers of a Ray Train TorchTrainer: Ray places and starts them, again where one is lost."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from surefoot.errors import Fault, UserError, is_terminal, note, put, said
from surefoot.output import Progress, doing, out
from surefoot.parallel.launch import SignalForwarder, usable_cores
from surefoot.parallel.ray_rank import MARK, Job, Mailbox, versions

LOCAL = "local"  # the address that starts Ray on this machine
GROW = 60.0  # seconds from one look for cores that have come back to the next
SILENT = 10.0  # seconds without a word of the ranks after which the caller says what it waits for
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
OURS = QUIET | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""of a Ray of our own: its servers ask for a token and, where there can be no cluster, listen on loopback alone"""


class Caller:
    """Stands for the ranks where signals are forwarded: keeps what is to be asked of them."""

    def __init__(self) -> None:
        self.signal, self.saves = 0, 0

    def terminate(self) -> None:
        self.signal = 1

    def send_signal(self, _: int) -> None:
        self.saves += 1


@contextmanager
def connected(address: str, count: int, what: str = "ranks", **settings: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address` or, as before, to the calling program's; raises UserError.

    `count`: cores it must have, for `what`; `settings`: of the environment meanwhile.
    """
    wanted = settings | (OURS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if address == LOCAL else QUIET)
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ |= wanted | before
    try:
        with doing("starting Ray" if address == LOCAL else f"connecting to Ray at {address}"):
            ray, new = connect(address)
        try:
            if (cores := int(ray.cluster_resources().get("CPU", 0))) < count:
                raise UserError(f"{what} is {count}; the Ray cluster has {cores} cores: add nodes, or ask for fewer")
            keep(handler)
            yield ray
        finally:
            if new:
                ray.shutdown()
                keep(handler)
    finally:
        for name in wanted.keys() - before.keys():
            os.environ.pop(name, None)


def keep(handler: Any) -> None:
    """Take SIGTERM back from Ray, which takes it when it begins, and leaves it to the system when it ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def connect(address: str) -> tuple[Any, bool]:
    """Ray, and whether it was connected here; raises UserError."""
    if address.startswith("ray://"):
        raise UserError(f"'{address}' is for Ray's client: type the command on one of its nodes, with HOST:PORT")
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), SILENT).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster is at '{address}' ({said(error)})") from None
    try:
        import ray
        import ray.train
    except ModuleNotFoundError as error:
        raise UserError(f"Ray is not installed ({error}): pip install 'surefoot[ray]'") from None
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"num_cpus": usable_cores(), "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        where = "can be started here" if address == LOCAL else f"is at '{address}'"
        raise UserError(f"no Ray cluster {where} ({said(error)})") from None
    return ray, True


@contextmanager
def marked(run_dir: Path | str) -> Iterator[str]:
    """Meanwhile the run directory, which is made if need be, has a mark that no other has; an address has its own."""
    mark = secrets.token_hex(16)
    if isinstance(run_dir, str):
        yield mark
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / MARK).unlink(missing_ok=True)
        with open(run_dir / MARK, "x", encoding="ascii") as file:  # through no link
            file.write(mark)
    except OSError as error:
        cannot = f"the run directory '{run_dir}' cannot be written ({error.strerror})"
        raise UserError(f"{cannot}: choose another --run-dir") from error
    try:
        yield mark
    finally:
        with suppress(OSError):
            (run_dir / MARK).unlink()


def launch_on_ray(
    address: str,
    count: int,
    num_envs: int,
    timeout: float,
    run_dir: Path | str,
    work: Callable[[str, Callable[[Any], None]], int],
    newest: Callable[[Any], int],
    order: str,
) -> int:
    """Run `work` as up to `count` ranks on the Ray cluster at `address`; as `launch` does otherwise.

    Returns 0, or the signal after which they have saved and stopped. Raises the UserError or Fault of a rank.
    """
    with marked(run_dir) as mark, connected(address, count) as ray, tempfile.TemporaryDirectory() as folder:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(concurrency_groups={"fit": 1})(Mailbox)
        mailbox = actor.options(num_cpus=0, scheduling_strategy=here).remote()
        store = str(Path(folder) / "store") if address == LOCAL else None
        screen = is_terminal(out()), shutil.get_terminal_size().columns
        job = Job(work, newest, order, run_dir, num_envs, timeout, mailbox, store, mark, versions(), *screen)
        try:
            fit = mailbox.fit.options(concurrency_group="fit").remote(job, count, GROW, folder)
            failure, stopped = follow(ray, mailbox, fit)
            if address != LOCAL:  # killed, it would keep what it has reserved for three minutes
                with doing("ending"):
                    ray.wait([fit], timeout=60)
        except ray.exceptions.RayError as error:
            raise Fault(f"Ray has failed ({said(error)})") from None
        finally:
            ray.kill(mailbox)  # and with it what it has started
    if failure:
        raise (Fault if failure[0] else UserError)(failure[1])
    return stopped


def follow(ray: Any, mailbox: Any, fit: Any) -> tuple[tuple[bool, str] | None, int]:
    """Pass on what the ranks say, and signals to them, until they have ended.

    Returns their error (whether it is a Fault, its sentence), if there is one, and the signal that has stopped them.
    """
    caller, progress, sentences, heard = Caller(), Progress(), set[str](), time.monotonic()
    sent, starts = (0, 0), 0

    def waiting() -> str | None:
        late = time.monotonic() - heard > SILENT
        return "waiting for the ranks that Ray starts" if late or not starts else None

    with doing(waiting), SignalForwarder([caller]) as signals:  # type: ignore[list-item]
        signals.forward_saves()
        while True:
            ended = ray.wait([fit], timeout=0.1)[0]
            words, starts, error, over = ray.get(mailbox.take.remote())
            for rank, on_stderr, text in words:
                heard = time.monotonic()
                if not on_stderr:
                    progress.write(text, "")
                elif text.startswith("surefoot: "):
                    if text not in sentences:
                        note(text.removeprefix("surefoot: "))
                    sentences.add(text)
                elif rank == 0:
                    put(text, sys.stderr, "")
            if error or over is not None:
                return error, over or 0
            if ended:
                ray.get(ended)
                raise Fault("Ray Train has ended before the ranks")
            if signals.seen and not starts:
                raise KeyboardInterrupt
            if (signals.seen, caller.saves) != sent:
                sent = signals.seen, caller.saves
                ray.get(mailbox.ask.remote(*sent))
