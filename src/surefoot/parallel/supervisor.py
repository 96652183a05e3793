"""A process that waits for the one that does the work, and hears where that ends by `_exit` or `exec` in C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from surefoot.errors import note
from surefoot.parallel import guard
from surefoot.parallel.launch import EXIT_STOPPED, cause_of, die_with_parent, stop_signals

NOW = getattr(signal, "SIGUSR2", 0)  # what a second signal to stop is passed on as
LOOK = 0.5  # seconds between two looks whether the supervisor is stopped


def supervise() -> None:
    """Go on in a copy of this process, which waits for it, passes signals on and ends as it has ended.

    An end that `guard.exit_now` has not announced is said, and its exit code is not 0. The copy ends with this process,
    and stops with it. On Linux, outside of torchrun, profilers and debuggers, and where no thread runs yet.
    """
    alone = threading.active_count() == 1 and "RANK" not in os.environ
    if sys.platform != "linux" or not alone or guard.is_profiled() or sys.gettrace():
        return
    guard.standard_streams()  # a closed one's number would be the pipe's
    stops, parent = stop_signals(), os.getpid()
    awaited = {*stops, signal.SIGUSR1, signal.SIGCONT, signal.SIGCHLD}
    reader, guard.announced = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    if child := os.fork():
        os.close(guard.announced)
        wait_for(child, reader, stops, awaited)
    os.close(reader)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, guard.interrupt)
    signal.signal(NOW, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    threading.Thread(target=stop_with, args=(parent,), daemon=True).start()


def stop_with(supervisor: int) -> None:
    """Stop this process where its supervisor is stopped (SIGSTOP), which continues it."""
    while True:
        time.sleep(LOOK)
        with suppress(OSError):
            if Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                os.kill(os.getpid(), signal.SIGSTOP)


def wait_for(child: int, reader: int, stops: list[int], awaited: set[int]) -> NoReturn:
    """Pass signals on until the child has ended; end as it has. A second signal to stop comes as NOW, a third kills."""
    seen, continued, ended = list[int](), False, (0, 0)
    while not ended[0]:
        received = signal.sigtimedwait(awaited, 2 * LOOK if continued else 3600.0)
        number = received.si_signo if received else signal.SIGCONT if continued else 0
        continued = received is not None and number == signal.SIGCONT  # once more later: it may just be about to stop
        if number in stops:
            seen.append(number)
            number = number if len(seen) == 1 else NOW if len(seen) == 2 else signal.SIGKILL
        if number != signal.SIGCHLD:
            os.kill(child, number)
        ended = os.waitpid(child, os.WNOHANG)
    code = os.waitstatus_to_exitcode(ended[1])
    os.set_blocking(reader, False)
    with suppress(BlockingIOError):
        if os.read(reader, 64).decode() == f"{child} {code}":
            os._exit(code)
    if len(seen) > 2:
        os._exit(EXIT_STOPPED)
    if -code not in seen:
        note(f"the program {cause_of(code)}")
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # there is one of the child
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code if code not in (0, EXIT_STOPPED) else 1)
