"""What other processes must know to make an environment that this program has registered with Gymnasium."""

from __future__ import annotations

import copy
import functools
import sys

from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import EnvSpec
from surefoot.envs.makers import OURS


def registration(env: EnvSpec) -> str | None:
    """The registration of an environment's id, as JSON; empty: there is nothing to know; None: it cannot be told."""
    gymnasium = sys.modules.get("gymnasium")
    spec = gymnasium.registry.get(env.id) if gymnasium and isinstance(env, Gymnasium) else None
    if spec is None or str(spec.entry_point).startswith(OURS):
        return ""
    spec = copy.copy(spec)
    spec.entry_point = importable(spec.entry_point) if callable(spec.entry_point) else spec.entry_point
    if spec.entry_point is None or spec.entry_point.startswith("__main__:"):
        return None
    try:
        return str(spec.to_json())
    except (TypeError, ValueError):  # it holds more than JSON can
        return None


def importable(made_by: object) -> str | None:
    """A class or function as MODULE:NAME, if other processes can import it."""
    module, name = getattr(made_by, "__module__", ""), getattr(made_by, "__qualname__", "")
    try:
        by_name = functools.reduce(getattr, name.split("."), sys.modules.get(module))
    except AttributeError:
        return None
    return f"{module}:{name}" if by_name is made_by and module != "__main__" else None


def register(text: str) -> None:
    """Register what `registration` has told, unless this process knows the id."""
    if text:
        from gymnasium.envs.registration import EnvSpec as Spec
        from gymnasium.envs.registration import registry

        spec = Spec.from_json(text)
        registry.setdefault(spec.id, spec)
