"""What an environment may not do to its process: end it unheard, copy it, keep it alive. And what it is ended with."""

from __future__ import annotations

import atexit
import ctypes
import os
import random
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import NoReturn

from surefoot.errors import note, note_once, put, said

_really_exit = os._exit
_owner = [0]  # the process that is guarded; 0: none
_copy = [False]  # whether this process is a copy of it, which an environment has forked
_by_main = [False]
_heard = dict[int, object]()  # what C's exit() calls, by process
announced = -1  # where a supervisor reads how this process means to end; below 0: nobody does
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_interrupted = [False]
LEFT = 1.0  # seconds that other threads have to end after the command


def exit_now(code: int) -> NoReturn:
    """End this process at once, its output flushed: gloo's threads now and then abort Python's regular shutdown."""
    for stream in (sys.stdout, sys.stderr):
        put("", stream, "")
    if announced >= 0:
        with suppress(OSError):
            os.write(announced, f"{os.getpid()} {code}".encode())
    _really_exit(code)


def standard_streams() -> None:
    """Let what is written to standard streams neither fail for a letter nor land in a file that is opened later."""
    with suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed stream's number is the next file's
            pass
        os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def guarded() -> Iterator[None]:
    """Meanwhile os._exit raises SystemExit instead, as sys.exit does, and copies of this process end by themselves.

    A copy that the main thread has forked ends with this process (Linux), and otherwise when it comes back to the loop.
    """
    if _owner[0] == os.getpid():
        yield
        return
    before, thread = (_owner[0], _copy[0]), threading.get_ident()
    _owner[0], _copy[0] = os.getpid(), False

    def refuse(status: int) -> NoReturn:
        if os.getpid() != _owner[0]:
            _really_exit(status)  # a process of the environment's own
        if threading.get_ident() == thread:
            raise SystemExit(f"os._exit({status}) was called")
        note(f"a thread of the environment has ended the program with os._exit({status})")
        exit_now(status or 1)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = _really_exit
        if os.getpid() == _owner[0]:
            _owner[0], _copy[0] = before


def leave_if_copy() -> None:
    """End this process if an environment has forked it off the one that trains."""
    if _copy[0]:
        _really_exit(1)


def _before_fork() -> None:
    _by_main[0] = _owner[0] == os.getpid() and threading.current_thread() is threading.main_thread()


def _in_child() -> None:
    if _owner[0]:
        _copy[0] = True
        if _by_main[0] and _libc is not None:  # another thread's end would end it as well
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


@contextmanager
def callers_settings() -> Iterator[None]:
    """Meanwhile PyTorch computes with one thread; then its threads and the global random numbers are as before.

    The results' bits depend on the number of threads, and environments may use random numbers that are global.
    """
    import numpy as np
    import torch

    threads, numbers = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_rng_state(numbers[2])


def is_profiled() -> bool:
    """Whether a profiler measures this program."""
    monitoring = getattr(sys, "monitoring", None)
    return bool(sys.getprofile() or (monitoring and monitoring.get_tool(monitoring.PROFILER_ID)))


def is_supervised() -> bool:
    """Whether this process has a supervisor: a signal to the process group comes twice then, once from there."""
    return announced >= 0


def interrupt(*_: object) -> None:
    """Handle a signal as Ctrl-C is; in a supervised process the first time alone."""
    if not (is_supervised() and _interrupted[0]):
        _interrupted[0] = True
        raise KeyboardInterrupt


def hear_exit() -> None:
    """From now on C's `exit()` ends this program with a sentence and 1, and so only `end` may end it regularly.

    Not on Windows, and not under a profiler, which writes its file after the program.
    """
    if os.name == "posix" and not is_profiled() and not _heard:
        _heard[os.getpid()] = ctypes.CFUNCTYPE(None)(_exit_was_called)
        ctypes.CDLL(None).__cxa_atexit(_heard[os.getpid()], None, None)
        atexit.register(exit_now, 1)  # after a mistake of ours; C's exit() comes when Python is gone
        sys.unraisablehook = _say_unraisable


def _say_unraisable(failed: sys.UnraisableHookArgs) -> None:
    """Say in a sentence what an environment's `__del__` raises, which costs nothing."""
    name = getattr(failed.object, "__qualname__", type(failed.object).__name__)
    note_once(f"{name} fails and is left at that: {said(failed.exc_value or failed.exc_type())}")


def _exit_was_called() -> None:
    if os.getpid() in _heard:  # not a copy of it
        note("the program was ended from within: exit() was called in C, by the environment or a library")
        exit_now(1)


def end(threads: Collection[threading.Thread], code: int) -> None:
    """End the program with `code`, where others than these threads would keep it, or `hear_exit` was called."""
    left = [t for t in threading.enumerate() if not t.daemon and t not in threads]
    for thread in left:
        thread.join(LEFT / len(left))
    if _heard or any(thread.is_alive() for thread in left):
        atexit.unregister(exit_now)
        with suppress(Exception):
            atexit._run_exitfuncs()
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C has printed
        exit_now(code)
