"""An objective of the reader's own, given from Python, and the laws it is held to before anything is trained."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from surefoot.errors import UserError, note, said

if TYPE_CHECKING:
    from torch import Tensor

RATIOS, ADVANTAGES = (0.5, 0.9, 1.0, 1.1, 2.0), (-2.0, -0.3, 0.3, 2.0)  # that the laws are tried at


@dataclass(frozen=True)
class GivenObjective:
    """`function(logp, logp_old, advantage)`, per sample, to be maximised. Files hold its name: they name no code."""

    name: str
    function = None  # no field: neither compared nor written

    @staticmethod
    def of(function: Any) -> GivenObjective:
        """The objective around a frozen dataclass, or any callable, of the reader's."""
        described = is_dataclass(function) and not isinstance(function, type)
        name = repr(function) if described else getattr(function, "__qualname__", type(function).__name__)
        given = GivenObjective(name)
        object.__setattr__(given, "function", function)
        return given

    @property
    def clip_range(self) -> float:
        """The function's own, for `clip_fraction`; 0.2 where it has none."""
        return float(getattr(self.function, "clip_range", 0.2))

    def address(self) -> tuple[str, dict[str, Any]] | None:
        """Where another process finds it: MODULE:NAME, and a dataclass's fields; None where it cannot."""
        from surefoot.envs.registrations import importable

        if not is_dataclass(self.function):
            where = importable(self.function)
            return (where, {}) if where else None
        where = importable(type(self.function))
        settings = {f.name: getattr(self.function, f.name) for f in fields(self.function)}
        plain = all(type(x) in (bool, int, float, str) for x in settings.values())
        return (where, settings) if where and plain else None

    @staticmethod
    def at_address(where: str, settings: dict[str, Any]) -> GivenObjective:
        """What `address` gave."""
        module, _, path = where.partition(":")
        imported = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        return GivenObjective.of(imported(**settings) if is_dataclass(imported) else imported)

    def at(self, iteration: int, progress: float) -> GivenObjective:
        """This objective in a given iteration, where it has an `at` of its own."""
        at: Any = getattr(self.function, "at", None)
        return self if at is None else GivenObjective.of(at(iteration, progress))

    def __call__(self, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
        if self.function is None:
            raise UserError(
                f"the objective {self.name} is Python code, which no file holds: give it with "
                "surefoot.resume(RUN, objective=...), or with surefoot.train"
            )
        objective: Tensor = self.function(logp, logp_old, advantage)
        return objective


def require_lawful(objective: GivenObjective) -> None:
    """Raise UserError for an objective that cannot be learned from; note what is unusual but can be."""
    for law, wrong in broken_laws(objective.at(0, 0.0)):
        sentence = f"the objective {objective.name} {wrong}"
        if law in ("per sample", "finite", "differentiable", "uphill", "leaves its arguments alone"):
            raise UserError(f"{sentence} (law: {law})")
        note(f"{sentence} (law: {law}); it is learned from all the same")


def broken_laws(objective: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """The laws of objectives that this one breaks, each with what was seen.

    Those after which nothing else can be tried come first, and alone.
    """
    import torch

    grid = torch.cartesian_prod(torch.tensor(RATIOS), torch.tensor(ADVANTAGES)).double()
    ratio, advantage = (x.contiguous() for x in grid.T)
    logp_old = torch.linspace(-3.0, -0.1, len(grid), dtype=torch.float64)

    def tried(some: Any) -> tuple[Tensor, Tensor]:
        """Objective and its derivative by log pi(a|s) of some of the samples."""
        logp = (logp_old + ratio.log())[some].requires_grad_()
        with torch.enable_grad():
            value = objective(logp, logp_old[some], advantage[some])
            (grad,) = torch.autograd.grad(value.sum(), logp)
        return value.detach(), grad

    copies = [x.clone() for x in (logp_old, advantage)]
    try:
        with torch.enable_grad():
            logp = (logp_old + ratio.log()).requires_grad_()
            first = objective(logp, logp_old, advantage)
    except UserError:
        raise
    except Exception as error:
        yield "per sample", f"fails for {len(grid)} samples: {said(error)}"
        return
    if not isinstance(first, torch.Tensor) or first.shape != logp.shape:
        what = f"of shape {tuple(first.shape)}" if isinstance(first, torch.Tensor) else f"a {type(first).__name__}"
        yield "per sample", f"returns {what} for {len(grid)} samples instead of a number for each: take no mean"
        return
    if not all(map(torch.equal, copies, (logp_old, advantage))):
        yield "leaves its arguments alone", "changes the tensors that it is given"
        return
    if not first.requires_grad:
        yield "differentiable", "does not depend on logp, so it has no gradient: compute with PyTorch, without detach()"
        return
    value, grad = tried(slice(None))
    if not (value.isfinite().all() and grad.isfinite().all()):
        at = int((~(value.isfinite() & grad.isfinite())).nonzero()[0])
        yield "finite", f"or its gradient is {float(value[at])} at ratio {ratio[at]:g} and advantage {advantage[at]:g}"
        return
    pushed, wanted = grad[ratio == 1], advantage[ratio == 1]
    if bool((pushed * wanted < 0).all()):
        yield "uphill", "is pushed against the advantage at pi = pi_old: return what is to be maximised, not a loss"
        return
    if not torch.allclose(pushed, wanted, rtol=1e-6):
        seen, given = (", ".join(f"{x:g}" for x in some) for some in (pushed, wanted))
        what = f"its gradient by logp is {seen} for the advantages {given}"
        yield "REINFORCE's gradient at pi = pi_old", f"has another gradient there: {what}"
    if not all(map(torch.equal, (value, grad), tried(slice(None)))):
        yield "deterministic", "gives other numbers for the same samples: a resumed run is not exact"
        return
    half = tried(slice(0, len(grid) // 2))
    if not all(torch.allclose(x, y[: len(x)], rtol=1e-9) for x, y in zip(half, (value, grad), strict=True)):
        yield "no peeking", "gives a sample another number where others are not there: minibatches change it"
