"""Standard output is the user's: what a command answers goes there, what an environment prints to standard error.

And signs of life: what is being done is said where nothing else has been printed for some seconds.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO, TextIOWrapper
from time import perf_counter
from typing import Any

from surefoot.errors import is_terminal, one_line, put

RANKS_STDOUT = "SUREFOOT_STDOUT"  # names the descriptor to which a rank writes what it answers
FIRST, EVERY = 1.0, 4.5  # seconds of silence until the first sign of life, and the next ones

_ours: list[Any] = []
_doing: list[tuple[Callable[[], str | None], float]] = []
_told = [0.0]  # when something was shown last
_pulse = threading.Lock()


def out() -> Any:
    """The stream of what a command or a run answers: standard output as the user has it."""
    return _ours[-1] if _ours else sys.stdout


@contextmanager
def environments_on_stderr(for_good: bool = False) -> Iterator[None]:
    """Meanwhile what Python or C writes to standard output lands on standard error, and `out` is where it was.

    `for_good`: also afterwards, since libraries in C write what they have kept when the program ends.
    """
    before: Any = sys.stdout
    ours = StringIO() if before is None else before  # closed: nobody listens
    with suppress(OSError, ValueError, AttributeError):
        if isinstance(before, TextIOWrapper) and before.fileno() == 1:
            before.flush()
            ours = open(os.dup(1), "w", encoding=before.encoding, errors="backslashreplace")  # noqa: SIM115
            os.dup2(2, 1)
    _ours.append(ours)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        put("", ours, "")
        if not for_good:
            sys.stdout = before
            _ours.pop()
            if ours is not before:
                os.dup2(ours.fileno(), 1)
                ours.close()


@contextmanager
def stdout_for_rank() -> Iterator[int | None]:
    """A descriptor that the first of several ranks may write to: `out`, whatever that is (a notebook's is no file).

    None on Windows, where a process inherits its standard streams alone.
    """
    stream: Any = out()
    if os.name == "nt":
        yield None
        return
    with suppress(OSError, ValueError):
        if isinstance(stream, TextIOWrapper):
            stream.flush()
            handle = stream.fileno()
            yield handle
            return
    reader, writer = os.pipe()

    def pass_on() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while chunk := os.read(reader, 1 << 16):
            put(decoder.decode(chunk), stream, "")
        os.close(reader)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        os.close(writer)
        thread.join(1.0)  # a process that an environment has left behind may hold the other end


def adopt_stdout() -> None:
    """In a rank: write what it answers to where its launcher says, and leave standard output to the environments."""
    if handle := os.environ.pop(RANKS_STDOUT, ""):
        with suppress(OSError, ValueError):
            stream = open(int(handle), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            _ours.append(stream)
            os.set_inheritable(int(handle), False)


def answer_to(stream: Any) -> None:
    """In a rank: write what it answers to this stream from now on."""
    _ours.append(stream)


class Progress:
    """One line, rewritten in place on a terminal, or printed every few seconds where there is none; `quiet`: none.

    `stream`: None for `out`; `prefix`: before every line.
    """

    def __init__(self, quiet: bool = False, every: float = EVERY, stream: Any = None, prefix: str = "") -> None:
        self.quiet, self.every, self.last, self.prefix = quiet, every, -float("inf"), prefix
        self.stream: Any = stream or out()
        self.terminal = is_terminal(self.stream)

    def show(self, text: str, force: bool = False) -> None:
        """Show the line, unless the last one is too recent."""
        now = perf_counter()
        if self.quiet or (not force and now - self.last < (0.2 if self.terminal else self.every)):
            return
        self.last, line = now, one_line(self.prefix + text)
        if self.terminal:
            self.write(f"\r\x1b[2K{line[: self.columns() - 1]}", "\n" if force else "")
        else:
            self.write(line)

    def columns(self) -> int:
        """The width of the terminal."""
        with suppress(OSError, ValueError, AttributeError):
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        return shutil.get_terminal_size().columns

    def write(self, text: str, end: str = "\n") -> None:
        """A closed pipe or a full disk behind the stream silences progress and does not end the run."""
        _told[0] = perf_counter()
        if not self.quiet and not put(text, self.stream, end):
            self.quiet = True
            silence(self.stream)


def silence(stream: Any) -> None:
    """Let a standard stream whose reader is gone write into nothing, where it is a file at all."""
    with suppress(OSError, ValueError, AttributeError), open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


@contextmanager
def doing(what: str | Callable[[], str | None]) -> Iterator[None]:
    """Meanwhile this is what a sign of life says; a function is asked each time, and None means nothing."""
    _doing.append((what if callable(what) else lambda: what, perf_counter()))
    try:
        yield
    finally:
        _doing.pop()


@contextmanager
def signs_of_life(progress: Progress) -> Iterator[None]:
    """Show what is being `doing` wherever nothing has been shown for some seconds; within another one: nothing."""
    if progress.quiet or not _pulse.acquire(blocking=False):
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(0.25, FIRST)):
            wait = EVERY if _told[0] > began else FIRST
            if perf_counter() - _told[0] >= wait and _doing:
                say, since = _doing[-1]
                text = say()
                if text and not over.is_set():
                    progress.show(f"{text} · {clock(perf_counter() - since)}")

    _told[0] = began = perf_counter()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)  # it may be writing into a pipe that nobody reads
        _pulse.release()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
