"""What can end a run before its time: a user's mistake, a fault on the way, a signal."""


class UserError(Exception):
    """A user's mistake: a sentence that names the value, what is allowed and what to do. Shown without a traceback."""


class Fault(UserError):
    """What a run cannot go on with: an environment that failed, a gradient that is not finite, a full disk."""


class Interrupted(BaseException):
    """A signal came while games were played; no `except Exception` of an environment can swallow it."""
