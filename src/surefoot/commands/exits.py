"""What a command's end says, its exit code, and which commands have a supervisor."""

from __future__ import annotations

import re
from collections.abc import Sequence

from surefoot.errors import Fault, UserError, note, said
from surefoot.output import out, silence
from surefoot.parallel.launch import world
from surefoot.parallel.supervisor import supervise
from surefoot.presets import ATARI_ID, PRESETS

WITH_ENVIRONMENTS = ("train", "resume", "evaluate", "video", "export", "summary", "bench", "doctor")
LOST = re.compile(r"gloo|rank \d+ (?:is gone|has not come)|[Cc]onnection (?:closed|reset|refused)")


def exit_code(error: BaseException, args: Sequence[str]) -> int:
    """0, 2 for a mistake, 1 for a Fault, 130 after a signal; raises `error` where it is a mistake of ours."""
    if isinstance(error, UserError):
        note(str(error))
        return 1 if isinstance(error, Fault) else 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        if {"-h", "--help"} & set(args):
            try:
                out().flush()
            except OSError as unwritten:
                return exit_code(unwritten, args)
            return int(error.code or 0)
        note(f"the program was ended from within: {said(error)}")
        return 1
    if isinstance(error, OSError):  # of standard output, for what else fails is said where it is opened
        silence(out())
        if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
            return 0
        note(f"'{error.filename or 'standard output'}' cannot be used ({error.strerror or error})")
        return 1
    if isinstance(error, RuntimeError) and world() > 1 and LOST.search(str(error)):
        note(f"another rank was lost ({said(error)}): the same command goes on from the last checkpoint, as torchrun "
             "--max-restarts does by itself")  # fmt: skip
        return 1
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "not enough memory" in str(error)):
        note("there is not enough memory: choose fewer environments or steps, or a smaller network")
        return 1
    raise error


def supervised(args: Sequence[str]) -> None:
    """Go on under a supervisor where the command may play an environment that neither Gymnasium nor ALE brings."""
    if not args or args[0] not in WITH_ENVIRONMENTS or {"-h", "--help"} & set(args):
        return
    task = args[1] if len(args) > 1 and args[0] in ("train", "bench", "summary") else ""
    if not (task in PRESETS or ATARI_ID.fullmatch(task)) or any(word.startswith(("--env", "env:")) for word in args):
        supervise()
