"""Environments that end their process, go on beside it, or speak in odd voices; tests name them as endings:NAME."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from worlds import Catch


class Wandering(Catch):
    """Goes elsewhere when it is made, as environments do that look for their files."""

    def __init__(self) -> None:
        super().__init__()
        os.chdir(os.environ["ELSEWHERE"])


class Quitting(Catch):
    """Ends its process in the 20th step, in one of several ways."""

    steps = 0
    way = staticmethod(lambda: os._exit(0))

    def step(self, action: int):
        Quitting.steps += 1
        if Quitting.steps == 20:
            type(self).way()
        return super().step(action)


class Leaving(Quitting):
    way = staticmethod(lambda: sys.exit(0))


class InC(Quitting):
    way = staticmethod(lambda: ctypes.CDLL(None)._exit(0))


class RegularlyInC(Quitting):
    way = staticmethod(lambda: ctypes.CDLL(None).exit(0))


class Replaced(Quitting):
    way = staticmethod(lambda: os.execv("/bin/true", ["true"]))


def _elsewhere() -> None:
    threading.Thread(target=os._exit, args=(0,)).start()
    time.sleep(60)


class InThread(Quitting):
    way = staticmethod(_elsewhere)


class Own(BaseException):
    """Nobody's Exception."""


class Unspeakable(Own):
    def __str__(self) -> str:
        raise Own


def _raise(error: BaseException) -> None:
    raise error


class Basely(Quitting):
    way = staticmethod(lambda: _raise(Own("basely")))


class Speechless(Quitting):
    way = staticmethod(lambda: _raise(Unspeakable()))


class Verbose(Quitting):
    way = staticmethod(lambda: _raise(ValueError("much\n\x1b[31m" + "ado " * 1_000_000)))


class Everything(Wandering):
    """Goes elsewhere, leaves a thread, and forks two copies, of which one comes back and one stays."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=threading.Event().wait).start()

    def step(self, action: int):
        Everything.steps += 1
        for lingers in (False, True) if Everything.steps == 20 else ():
            if os.fork() == 0:
                Path(os.environ["ELSEWHERE"], f"copy-{os.getpid()}").touch()
                time.sleep(600 * lingers)
                break
        return super().step(action)


class Lingering(Quitting):
    """A copy of the process stays."""

    @staticmethod
    def way() -> None:
        if os.fork() == 0:
            time.sleep(600)


class Removing(Quitting):
    """Somebody removes the run directory while it trains."""

    @staticmethod
    def way() -> None:
        shutil.rmtree(os.environ["ELSEWHERE"])


class Unmade(Catch):
    """Ends the process when it is made."""

    def __init__(self) -> None:
        super().__init__()
        os._exit(0)
