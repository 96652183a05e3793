"""What a user gives from Python, also in processes of a run's own: functions that are called, an objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


def third_iteration(row: dict[str, Any]) -> bool:
    return bool(row["iteration"] == 3)


def first_env(_: Any, state: Any) -> float:
    return float(state.envs.indices[0])


@dataclass(frozen=True)
class Halved:
    """The surrogate times a factor."""

    factor: float = 0.5

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        return self.factor * (logp - logp_old).exp() * advantage
