"""Exceptions with a message for the user, and the range checks of settings."""

import functools
import math
import sys
from contextlib import suppress


class UserError(Exception):
    """A user's mistake, in one sentence: the value, what is allowed, what to do. No traceback; exit code 2."""


class Fault(UserError):
    """An error that ends a run: an environment failed, the gradient is not finite, the disk is full. Exit code 1."""


class Interrupted(BaseException):
    """A signal during a rollout; a BaseException, so that an environment's `except Exception` does not catch it."""


def note(sentence: str) -> None:
    """Write a sentence to standard error at once; does nothing where that is closed."""
    with suppress(OSError, ValueError):
        print(f"surefoot: {sentence}", file=sys.stderr, flush=True)


note_once = functools.cache(note)


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise UserError where a value is not allowed: "NAME is VALUE; allowed is ..."."""
    if not ok:
        raise UserError(f"{name} is {value}; allowed is {allowed}")


def require_range(
    part: object, *names: str, low: float = 0, high: float = math.inf, above: bool = False, below: bool = False
) -> None:
    """Raise UserError unless these numbers of a part, or all numbers of a tuple, are from `low` to `high` and finite.

    `above`: `low` itself is not allowed; `below`: `high` itself is not.
    """
    most = f" and {'below' if below else 'at most'} {high:g}" if high < math.inf else ", finite"
    below = below or high == math.inf
    for name in names:
        value = getattr(part, name)
        numbers = value if isinstance(value, tuple) else (value,)
        ok = [
            isinstance(x, int | float) and low <= x <= high and not ((above and x == low) or (below and x == high))
            for x in numbers
        ]
        allowed = f"{'above' if above else 'at least'} {low:g}{most}"
        require(len(ok) > 0 and all(ok), f"{type(part).__name__}.{name}", value, allowed)
