"""The figures drawn from records: Pong's learning curves, and the curves of a reader's own run."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import UserError
from surefoot.lesson.svg import Axis, Mark, axis, number, plot
from surefoot.lesson.widgets import Choice, Drawn, Figure, Slider
from surefoot.runs.metrics import Row, read

HERE = Path(__file__).parent
COLORS = {"pong-reinforce": "a", "pong-lesson": "b", "pong": "c"}
WORDS = {
    "score": "return_mean",
    "KL divergence": "kl",
    "clip fraction": "clip_fraction",
    "entropy": "entropy",
    "value loss": "value_loss",
    "explained variance": "explained_variance",
    "effective samples": "effective_samples",
    "norm of the gradient": "grad_norm",
    "learning rate": "learning_rate",
}


@cache
def record(name: str) -> Any:
    """What `bench/lesson_records.py` has written of our records."""
    return json.loads((HERE / "records" / f"{name}.json").read_text(encoding="utf-8"))


def band(runs: list[dict[str, Any]], frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least, mean and greatest score of several runs at these frames; NaN where a run has none."""
    rows = np.array([np.interp(frames, r["frames"], r["return_mean"], np.nan, np.nan) for r in runs])
    return rows.min(0), rows.mean(0), rows.max(0)


def pong(width: int, until: float) -> Drawn:
    """Mean and range over the seeds of each preset, up to so many million frames."""
    frames = np.linspace(0, until * 1e6, 200)
    marks, values = [], {}
    for name, runs in record("pong").items():
        low, mean, high = band(runs, frames)
        marks.append(Mark("area", frames / 1e6, (low, high), COLORS[name]))
        marks.append(Mark("line", frames / 1e6, mean, COLORS[name], f"{name}, {len(runs)} seeds"))
        known = mean[np.isfinite(mean)]
        values[f"{name}, last"] = number(float(known[-1])) if len(known) else "none yet"
    picture = plot(marks, Axis("emulated frames, millions", 0, until), Axis("score", -22, 22), width)
    says = f"After {number(until)} million frames: {', '.join(f'{k[:-6]} {v}' for k, v in values.items())}."
    return Drawn([picture], values, says)


def rows_of(run: Path) -> list[Row]:
    """The rows of a run's metrics; raises UserError where the run is gone."""
    if not run.is_dir():
        raise UserError(f"there is no run directory '{run}' any more")
    return read(run)


def run_curve(width: int, what: str, run: Path) -> Drawn:
    """One metric of a run against its steps."""
    rows = rows_of(run)
    name = WORDS[what]
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        says = "The run has no such number yet." if rows else "The run has not finished its first iteration yet."
        return Drawn([plot([], Axis("steps", 0, 1), Axis(what, 0, 1), width)], {}, says)
    steps, values = np.array(points, float).T
    marks = [Mark("line", steps, values, "a", f"{what} of {run.name}")]
    picture = plot(marks, axis("steps", steps, low=0), axis(what, values), width, height=240)
    numbers = {"steps": number(float(steps[-1])), what: number(float(values[-1]))}
    return Drawn([picture], numbers, f"{what} is {number(float(values[-1]))} after {steps[-1]:,.0f} steps.")


def of_run(run: Path) -> Figure:
    """The figure with the curves of a run, read anew each time."""
    caption = f"{run.name}, read from its metrics.jsonl."
    return Figure(caption, {"what": Choice("curve", tuple(WORDS))}, partial(run_curve, run=run))


FIGURES = {
    "pong": Figure(
        "Lines are means over the seeds, bands reach from the worst to the best seed. Read from our records.",
        {"until": Slider("up to, in million frames", 0.2, 5.2, 0.2, 5.2)},
        pong,
    ),
}
