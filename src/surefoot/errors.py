"""The one exception for mistakes a user can make: a sentence that names the value, what is allowed and what to do."""


class UserError(Exception):
    """Shown without a traceback; the command line ends with exit code 2."""
