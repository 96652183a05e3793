"""What can end a run before its time: a user's mistake, a fault on the way, a signal; and how it is said."""

import math
import sys
from contextlib import suppress


class UserError(Exception):
    """A user's mistake: a sentence that names the value, what is allowed and what to do. Shown without a traceback."""


class Fault(UserError):
    """What a run cannot go on with: an environment that failed, a gradient that is not finite, a full disk."""


class Interrupted(BaseException):
    """A signal came while games were played; no `except Exception` of an environment can swallow it."""


def note(sentence: str) -> None:
    """Say something on standard error, at once; where nobody can hear it, nothing else is lost."""
    with suppress(OSError, ValueError):
        print(f"surefoot: {sentence}", file=sys.stderr, flush=True)


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
