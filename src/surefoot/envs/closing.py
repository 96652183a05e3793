"""Closing environments, which may fail and must not cost a result."""

from __future__ import annotations

from typing import Any

from surefoot.errors import note_once


def close_env(env: Any) -> None:
    """Close an environment; what it raises then is said once."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        name = type(getattr(env, "unwrapped", env)).__name__
        note_once(f"closing {name} fails and is left at that: {type(error).__name__}: {' '.join(str(error).split())}")
