"""Paths that users name: `~`, the directory they are meant from, and names that every system allows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeGuard

from surefoot.errors import UserError

_typed: dict[Path, Path | str] = {}  # whole paths, as they were typed, or the address that they stand for


def is_address(place: object) -> TypeGuard[str]:
    """Whether a run is named by the address of its files (s3://bucket/run)."""
    return isinstance(place, str) and re.match(r"[A-Za-z][\w+.-]+://", place) is not None


def absolute(path: Path | str, typed: str = "") -> Path:
    """The path as it is meant now, whatever becomes of the working directory later; `~` is the user's home.

    `typed`: as it was typed, if not like this.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}' cannot be found ({error}): name the directory itself") from None
    if re.match(r"[A-Za-z][\w+.-]+:[/\\]", str(path)):
        where = "only train and resume take the address of a run, as a text; `surefoot pull` brings one here"
        raise UserError(f"'{path}' is an address, and a path is needed here: {where}")
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
        if isinstance(typed := _typed.get(above), str):
            return "/".join((typed, *path.relative_to(above).parts))
        if typed is not None:
            return str(typed / path.relative_to(above))
    return str(path)


def named(path: Path, address: str) -> None:
    """Have a path shown as the address that it stands for."""
    _typed[path] = address


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
