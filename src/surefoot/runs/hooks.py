"""Functions of a user's that a run calls after every iteration: a stop condition, metrics."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surefoot.envs.registrations import importable
from surefoot.errors import UserError
from surefoot.runs.metrics import MAY_BE_NULL, NUMBERS, Row

if TYPE_CHECKING:
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State

LEARNING = ("kl", "clip_fraction", "entropy", "value_loss", "ratio_drift", "effective_samples", "grad_norm")
TAKEN = {*NUMBERS, *MAY_BE_NULL, *LEARNING, "ratio_drift_first", "kl_coef", "reward_shift", "sent_bytes"}


@dataclass(frozen=True)
class Hooks:
    """What a user's program adds to a run; raises UserError where a metric has a name that is taken."""

    stop: Callable[[Row], object] | None = None
    """called with the iteration's row of metrics.jsonl; the run has come to its end where it returns a true value"""
    metrics: Mapping[str, Callable[[Rollout, State], float]] = field(default_factory=dict)
    """numbers for that row, each of this rank's rollout; the row has their mean over the ranks"""

    def __post_init__(self) -> None:
        if taken := TAKEN & set(self.metrics):
            raise UserError(f"metrics has {min(taken)!r}, which is surefoot's own: give yours another name")
        for function in filter(None, (self.stop, *self.metrics.values())):
            if not callable(function):
                raise UserError(f"{function!r} is no function: stop and metrics take functions")

    def names(self) -> dict[str, Any] | None:
        """The functions as MODULE:NAME, for other processes; None where one of them cannot be imported there."""
        functions = {"": self.stop, **self.metrics} if self.stop else dict(self.metrics)
        addresses = {name: importable(function) for name, function in functions.items()}
        return None if None in addresses.values() else addresses

    @staticmethod
    def named(names: Mapping[str, str]) -> Hooks:
        """What `names` gave."""
        imported = dict[str, Any]()
        for name, where in names.items():
            module, _, path = where.partition(":")
            imported[name] = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        return Hooks(imported.pop("", None), imported)
