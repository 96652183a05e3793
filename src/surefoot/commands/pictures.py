"""The lesson's three figures, computed with the package's own functions: the cliff, clipping, and one term of the sum.

The first two show the policy of `lesson/cliff.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from surefoot.algorithm.objectives import ClippedSurrogate, Objective, Surrogate
from surefoot.errors import UserError, needs_extra
from surefoot.lesson.cliff import EPSILON, START, ascend, average_reward, model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUTH, MODEL, DOTS = "#1f6f8b", "#c85a28", "#222222"


def _ascent(objective: Objective, title: str, label: str) -> Figure:
    """True expected return, the objective's estimate, and the steps on the estimate drawn at their true return."""
    figure, axes = _figure(1)
    axes = axes[0]
    old = torch.tensor(START, dtype=torch.float64)
    grid = torch.linspace(-2.5, 3.0, 221, dtype=torch.float64)
    truth, estimate = average_reward(grid), model(grid, old, objective)
    path = [x for x in ascend(objective) if x <= grid[-1]]
    axes.plot(grid, truth, color=TRUTH, lw=2.2, label="average reward of the policy")
    axes.plot(grid, estimate, color=MODEL, lw=1.8, ls="--", label=label)
    axes.plot(
        path, [float(average_reward(x)) for x in path], "o", color=DOTS, ms=5, label="gradient steps on the model"
    )
    axes.plot(START, float(average_reward(old)), "o", ms=11, mfc="none", mec=DOTS, label="current policy")
    axes.set(xlabel="policy parameter θ", ylabel="average reward", title=title, ylim=(float(truth.min()) - 2, 16))
    axes.legend(loc="lower left", frameon=False)
    return figure


def _term() -> Figure:
    """One term of the objective against the ratio, for a positive and a negative advantage: plain, clipped, min."""
    figure, both = _figure(2)
    ratio = torch.linspace(0.4, 1.6, 241, dtype=torch.float64)
    logp_old = torch.zeros_like(ratio)
    for axes, sign in zip(both, (1.0, -1.0), strict=True):
        advantage = torch.full_like(ratio, sign)
        clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
        plain, clip = (Surrogate()(r.log(), logp_old, advantage) for r in (ratio, clipped))
        axes.plot(ratio, plain, color=TRUTH, ls="--", label="plain: r A")
        axes.plot(ratio, clip, color="#888888", ls=":", lw=2, label="clip(r) A")
        minimum = ClippedSurrogate(EPSILON)(ratio.log(), logp_old, advantage)
        axes.plot(ratio, minimum, color=MODEL, lw=2.5, label="min of both", zorder=1)
        axes.axvline(1.0, color="#bbbbbb", lw=0.8)
        title = f"{'positive' if sign > 0 else 'negative'} advantage, A = {sign:+.0f}"
        axes.set(xlabel="ratio r = π'(a|s) / π(a|s)", ylabel="objective", title=title)
        axes.legend(frameon=False)
    return figure


def _figure(panels: int) -> tuple[Figure, Any]:
    with needs_extra("plots"):
        from matplotlib.figure import Figure

    figure = Figure((7 if panels == 1 else 9, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.25)
    return figure, axes


PICTURES = {
    "cliff": lambda: _ascent(Surrogate(), "The policy/reward cliff", "surrogate from the current policy's episodes"),
    "clipped": lambda: _ascent(
        ClippedSurrogate(EPSILON), "The clipped surrogate holds before the cliff", f"clipped surrogate, ε = {EPSILON}"
    ),
    "clipped-explained": _term,
}


def picture(name: str, out: Path | str | None = None) -> Path:
    """Draw the figure `name` into `out` (.png or .svg; default NAME.png); returns `out`."""
    out = Path(out or f"{name}.png")
    if name not in PICTURES:
        raise UserError(f"there is no picture '{name}': choose one of {', '.join(PICTURES)}")
    if out.suffix not in (".png", ".svg"):
        raise UserError(f"'{out}' must end in .png or .svg")
    try:
        PICTURES[name]().savefig(out, dpi=140)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error}") from error
    return out
