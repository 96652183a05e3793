"""Paths that users name: `~`, the directory they are meant from, and names that every system allows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surefoot.errors import UserError

_typed: dict[Path, Path] = {}  # whole paths, as they were typed


def absolute(path: Path | str, typed: str = "") -> Path:
    """The path as it is meant now, whatever becomes of the working directory later; `~` is the user's home.

    `typed`: as it was typed, if not like this.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}' cannot be found ({error}): name the directory itself") from None
    if re.match(r"[A-Za-z][\w+.-]+:[/\\]", str(path)):
        raise UserError(f"'{path}' is an address, and a run is written to a directory: mount it, and name that")
    if "\0" in str(path):
        raise UserError(f"'{path}' is no path: it holds a zero byte")
    try:
        os.getcwd()
    except OSError:
        if not path.is_absolute():
            sentence = f"the present directory is gone, and '{path}' is meant from it: name a whole path"
            raise UserError(sentence) from None
        os.chdir(path.anchor)  # libraries fail in a directory that is gone: on Intel's processors MKL ends the process
    whole = path.absolute()
    if typed or whole != path:
        _typed[whole] = Path(typed or path)
    return whole


def shown(path: Path) -> str:
    """The path as the user typed it, or the one that it lies below."""
    for above in (path, *path.parents):
        if above in _typed:
            return str(_typed[above] / path.relative_to(above))
    return str(path)


@contextmanager
def same_directory() -> Iterator[None]:
    """Come back to the present working directory, wherever an environment goes that is only looked at."""
    try:
        here = os.getcwd()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(here)


def file_name(text: str) -> str:
    """A file's name made of a text: only what every system allows in names, and not too long for any."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:100] or "run"
