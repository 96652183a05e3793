"""Which environments are open; closing them, which may fail and must not cost a result."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

from surefoot.errors import note_once

_open = dict[int, weakref.ref[Any]]()  # by the address of what is inside of all wrappers


def is_open(env: Any) -> bool:
    """Whether an environment is open already, since a function has given the same object again; from now on it is."""
    with suppress(Exception):  # some cannot be referred to
        known = _open.get(id(env.unwrapped))
        _open[id(env.unwrapped)] = weakref.ref(env.unwrapped)
        return known is not None and known() is env.unwrapped
    return False


def close_env(env: Any) -> None:
    """Close an environment; what it raises then is said once."""
    with suppress(Exception):
        _open.pop(id(env.unwrapped), None)
    try:
        env.close()
    except (Exception, SystemExit) as error:
        name = type(getattr(env, "unwrapped", env)).__name__
        note_once(f"closing {name} fails and is left at that: {type(error).__name__}: {' '.join(str(error).split())}")
