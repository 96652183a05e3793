"""Scripts that let a shell complete commands and options; tyro writes them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Union

import tyro

from surefoot.presets import PRESETS


class Shell(StrEnum):
    """What a script is for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def script(shell: Shell, commands: Mapping[str, type], with_task: Mapping[str, Any]) -> str:
    """The script; `with_task`: the commands that take a Config, whose options are those of `pong`'s."""
    defaults = {name: {"default": make(PRESETS["pong"])} for name, make in with_task.items()}
    kinds: Any = tuple(
        Annotated[kind, tyro.conf.subcommand(name, **defaults.get(name, {}))] for name, kind in commands.items()
    )
    union: Any = Union[kinds]  # noqa: UP007
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(
            union, args=["--tyro-print-completion", shell], prog="surefoot", config=(tyro.conf.CascadeSubcommandArgs,)
        )
    return text.getvalue()
