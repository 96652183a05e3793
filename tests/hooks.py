"""Functions that a run calls after every iteration, also in processes of its own."""

from __future__ import annotations

from typing import Any


def third_iteration(row: dict[str, Any]) -> bool:
    return bool(row["iteration"] == 3)


def first_env(_: Any, state: Any) -> float:
    return float(state.envs.indices[0])
