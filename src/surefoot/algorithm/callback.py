"""What the outer loop calls: progress, saving, stopping."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State


class Callback:
    """What the loop calls: does nothing, and never stops; subclasses show progress, save, or stop the run."""

    def should_stop(self, state: State) -> bool:
        """Whether training is over; asked before every rollout."""
        return False

    def collecting(self) -> AbstractContextManager[None]:
        """Entered while environments are stepped: in it a signal may raise Interrupted."""
        return nullcontext()

    def on_dropped_rollout(self, cause: BaseException | None) -> None:
        """A rollout was dropped, on this rank because of `cause` or for another rank's sake; training ends."""

    def on_iteration(self, state: State, rollout: Rollout, returns: Tensor, metrics: Tensor, learn_s: float) -> None:
        """An iteration is done. `metrics` [updates, len(METRIC_NAMES)]; `learn_s`: seconds from rollout to here."""

    def should_save(self) -> bool:
        """Whether it is time to save; asked after every iteration."""
        return False

    def on_save(self, state: State) -> None:
        """Save; called on every rank where any of them should."""
