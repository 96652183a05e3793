"""What can end a run before its time: a user's mistake, a fault on the way, a signal; and how it is said."""

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
