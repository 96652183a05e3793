"""The watch of a process over itself, where no launcher watches it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from surefoot.errors import Fault, note
from surefoot.parallel.heartbeat import Heartbeat, Watchdog
from surefoot.parallel.launch import HUNG_GRACE, exit_now


@contextmanager
def watch_over(heartbeat: Heartbeat, timeout: float, rank: int) -> Iterator[list[Fault]]:
    """Watch this process from a thread: a hanging environment ends the run.

    Yields a list that then holds the Fault, which is raised where nobody stops politely: games are made, or reset.
    """
    hung, over, here = list[Fault](), threading.Event(), threading.get_ident()

    def watch() -> None:
        dog = Watchdog([heartbeat], timeout, rank)
        while (verdict := dog.verdict()) is None:
            if over.wait(min(1.0, timeout / 4)):
                return
        hung.append(Fault(verdict[1]))
        if here == threading.main_thread().ident:  # no other can be interrupted
            signal.pthread_kill(here, signal.SIGINT)
        if not over.wait(HUNG_GRACE) and not heartbeat.over:
            note(verdict[1])
            exit_now(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield hung
    except KeyboardInterrupt:
        if not hung:
            raise
        raise hung[0] from None
    finally:
        over.set()
