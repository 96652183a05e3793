"""Functions that make environments in this process alone, and the keyword arguments of any maker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from surefoot.errors import UserError

OURS = ("gymnasium.", "ale_py.")  # modules whose registered environments run nothing unknown and keep the contract
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None, "null": None}
"""what these words stand for in kwargs, in letters of any size, as in JSON and YAML; in quotes they are words"""
LOCAL_MAKERS: dict[str, Callable[..., Any]] = {}  # functions that only this process has, by their Gymnasium.id


def parse_kwargs(kwargs: Iterable[str], holder: str = "env.kwargs") -> dict[str, Any]:
    """Keyword arguments from NAME=VALUE; raises UserError where there is no name, which says what `holder` holds."""
    import ast

    parsed: dict[str, Any] = {}
    for text in kwargs:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"{holder} holds {text!r}; allowed is NAME=VALUE, as in is_slippery=False")
        try:
            parsed[name] = WORDS[value.lower()] if value.lower() in WORDS else ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # a plain word
            parsed[name] = value
    return parsed
