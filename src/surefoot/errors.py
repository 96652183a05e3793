"""Exceptions with a message for the user, how it is written, and the range checks of settings."""

import functools
import math
import numbers
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

LONGEST = 2_000  # characters of a sentence that is shown; of an environment's own words in it a fifth
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # what a terminal obeys instead of showing it


class UserError(Exception):
    """A user's mistake, in one sentence: the value, what is allowed, what to do. No traceback; exit code 2."""


class Fault(UserError):
    """An error that ends a run: an environment failed, the gradient is not finite, the disk is full. Exit code 1."""


class Interrupted(BaseException):
    """A signal during a rollout; a BaseException, so that an environment's `except Exception` does not catch it."""


DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
"""what reading a file raises in which something else is than was written"""
OURS = (Interrupted, KeyboardInterrupt)  # what is not an environment's own, though it comes out of one


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text as one line of bounded length, in which a terminal finds nothing to obey."""
    start = " ".join(text[: 2 * longest].split())
    line = CONTROL.sub(lambda match: ascii(match[0])[1:-1], start)
    return line if len(line) <= longest and len(text) <= 2 * longest else f"{line[: longest - 3].rstrip()}..."


def said(error: BaseException) -> str:
    """What somebody else's exception says, as "Kind: text" in one line, even where its text cannot be had."""
    try:
        text = str(error)
    except BaseException as failure:
        if isinstance(failure, OURS):
            raise
        text = f"(its text fails with {type(failure).__name__})"
    return one_line(f"{type(error).__name__}: {text}", LONGEST // 5).rstrip(": ")


def put(text: str, stream: Any, end: str = "\n") -> bool:
    """Write a text to a standard stream, as far as it has the letters; returns whether the stream could be written."""
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
        stream.flush()
        return True
    except (OSError, ValueError, AttributeError, LookupError):  # full, closed, None, of an unknown encoding
        return False


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal; a closed one, or none, is not."""
    with suppress(OSError, ValueError, AttributeError):
        return bool(stream.isatty())
    return False


def note(sentence: str) -> None:
    """Write a sentence to standard error at once, in one line; does nothing where that is closed."""
    put(f"surefoot: {one_line(sentence)}", sys.stderr)


note_once = functools.cache(note)


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turn a missing library of an extra into a sentence on how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "surefoot":
            raise
        raise UserError(f"{package} is not installed: pip install 'surefoot[{name}]'") from error


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise UserError where a value is not allowed: "NAME is VALUE; allowed is ..."."""
    if not ok:
        raise UserError(f"{name} is {value}; allowed is {allowed}")


def builtin(value: Any) -> Any:
    """A NumPy number, or a list of numbers, as Python's own; anything else as it is."""
    if type(value) in (bool, int, float, str, tuple):
        return value if type(value) is not tuple or all(builtin(x) is x for x in value) else tuple(map(builtin, value))
    if isinstance(value, list | tuple):
        return tuple(map(builtin, value))
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return bool(value) if type(value).__name__ in ("bool_", "bool") else value


def require_range(
    part: object, *names: str, low: float = 0, high: float = math.inf, above: bool = False, below: bool = False
) -> None:
    """Raise UserError unless these numbers of a part, or all numbers of a tuple, are from `low` to `high` and finite.

    `above`: `low` itself is not allowed; `below`: `high` itself is not.
    """
    most = f" and {'below' if below else 'at most'} {high:g}" if high < math.inf else ", finite"
    below = below or high == math.inf
    for name in names:
        value = builtin(getattr(part, name))
        object.__setattr__(part, name, value)  # parts are frozen
        several = value if isinstance(value, tuple) else (value,)
        ok = [
            isinstance(x, int | float) and low <= x <= high and not ((above and x == low) or (below and x == high))
            for x in several
        ]
        allowed = f"{'above' if above else 'at least'} {low:g}{most}"
        require(len(ok) > 0 and all(ok), f"{type(part).__name__}.{name}", value, allowed)
