"""Learning curves of several runs, over steps and over time, with bands over the seeds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surefoot.connect.listing import find_runs, settings
from surefoot.errors import UserError, needs_extra
from surefoot.paths import shown
from surefoot.rng import Purpose, stream
from surefoot.runs.directory import MAY_CHANGE, read_config
from surefoot.runs.files import replace_file
from surefoot.runs.measures import middle_mean
from surefoot.runs.metrics import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, which the colour-blind can tell apart"""
POINTS, RESAMPLES = 200, 2_000
PAPER: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "surefoot",
}
LABELS = {"return_mean": "score, mean of the last 100 episodes", "evaluation": "score in evaluations"}
OWN = {"seed", "task", "env_restarts", *MAY_CHANGE}  # settings that do not make groups by themselves


class Curve:
    """One run's metric: `steps`, `minutes` and `values`, [rows]."""

    def __init__(self, run: Path, metric: str) -> None:
        rows = read(run)
        if rows and not any(metric in row for row in rows):
            raise UserError(f"'{shown(run)}' has no metric '{metric}': it has {', '.join(rows[-1])}")
        rows = [row for row in rows if row[metric] is not None]
        self.steps = np.array([row["step"] for row in rows], float)
        self.minutes = np.array([row["seconds"] for row in rows], float) / 60
        self.values = np.array([row[metric] for row in rows], float)


def groups(runs: Sequence[Path], by: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Runs that belong together, by a label: equal in the settings `by`, or in all but their seed and their length.

    Raises UserError where a path holds no run, or a run no such setting.
    """
    by_run = dict[Path, dict[str, Any]]()
    for path in runs:
        below = list(find_runs(path)) if path.is_dir() else []
        if not below:
            raise UserError(f"'{shown(path)}' is not a run directory and holds none")
        by_run |= {run: settings(read_config(run)) for run in below}
    names = [name.replace("-", "_") for name in by]
    known = set[str]().union(*by_run.values())
    for name in names:
        if name not in known:
            raise UserError(f"by is {name}: the runs have no such setting, but {', '.join(sorted(known))}")
    if not names:
        all_names = dict.fromkeys(name for options in by_run.values() for name in options if name not in OWN)
        names = [name for name in all_names if len({str(options.get(name)) for options in by_run.values()}) > 1]
        tasks = {options["task"] for options in by_run.values()}
        names = ["task"] * (len(tasks) > 1 or not names) + names
        if len(tasks) == len({tuple(str(options.get(name)) for name in names) for options in by_run.values()}):
            names = ["task"]  # which says it all
    together = dict[str, list[Path]]()
    for run, options in by_run.items():
        values = [options.get(name, "none") for name in names]
        label = ", ".join(str(x) if name == "task" else f"{name} {x}" for name, x in zip(names, values, strict=True))
        together.setdefault(label, []).append(run)
    return together


def band(xs: Sequence[Array], ys: Sequence[Array]) -> tuple[Array, Array, Array, Array]:
    """Where all curves have values: x, interquartile mean, and its 95 % bootstrap interval over the curves, [POINTS].

    Source: Agarwal et al. 2021.
    """
    grid = np.linspace(max(x[0] for x in xs), min(x[-1] for x in xs), POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)], 1)
    draws = stream(0, Purpose.BOOTSTRAP).integers(len(xs), size=(RESAMPLES, len(xs)))
    low, high = np.percentile([middle_mean(values[:, draw]) for draw in draws], (2.5, 97.5), 0)
    return grid, middle_mean(values), low, high


def draw(axes: Axes, curves: Sequence[Curve], over: str, color: str, label: str) -> None:
    """One group: a line for a single run, otherwise the interquartile mean with its band."""
    xs, ys = [getattr(curve, over) for curve in curves], [curve.values for curve in curves]
    if len(curves) == 1:
        axes.plot(xs[0], ys[0], color=color, lw=1.4, label=label)
    elif max(x[0] for x in xs) < min(x[-1] for x in xs):
        x, middle, low, high = band(xs, ys)
        axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        axes.plot(x, middle, color=color, lw=1.4, label=label)
    else:  # they have no stretch in common
        for k, (x, y) in enumerate(zip(xs, ys, strict=True)):
            axes.plot(x, y, color=color, lw=0.8, label=label if k == 0 else None)


def plot(
    runs: Sequence[Path], out: Path = Path("curves.png"), by: Sequence[str] = (), metric: str = "return_mean"
) -> Path:
    """Draw the curves of `runs`, run directories or folders of them, into `out` (.png, .svg or .pdf); returns `out`."""
    with needs_extra("plots"):
        import matplotlib
        from matplotlib.figure import Figure

    if out.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"'{out}' must end in .png, .svg or .pdf")
    together = groups(runs, by)
    with matplotlib.rc_context(PAPER):
        figure = Figure((7.0, 2.9), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        drawn = False
        for k, (label, paths) in enumerate(together.items()):
            curves = [curve for curve in (Curve(path, metric) for path in paths) if len(curve.values)]
            label += f" ({len(curves)} runs)" if len(curves) > 1 else ""
            for axes, over in zip(both, ("steps", "minutes"), strict=True):
                if curves:
                    draw(axes, curves, over, COLORS[k % len(COLORS)], label)
                    drawn = True
        if not drawn:
            raise UserError(f"the runs have no values of {metric} yet")
        both[0].set(xlabel="environment steps", ylabel=LABELS.get(metric, metric.replace("_", " ")))
        both[0].xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k" if x else "0")
        both[1].set(xlabel="minutes of training")
        for axes in both:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, lw=0.5)
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=min(3, len(labels)))
        metadata: dict[str, Any] = (
            {} if out.suffix == ".png" else {"Date" if out.suffix == ".svg" else "CreationDate": None}
        )
        figure.savefig(picture := io.BytesIO(), dpi=300, format=out.suffix[1:], metadata=metadata)
    try:
        replace_file(out, picture.getvalue())
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}") from error
    return out
