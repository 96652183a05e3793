"""The figures drawn from records: Pong's learning curves, and the curves of a reader's own run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import UserError
from surefoot.lesson.svg import Axis, Mark, axis, half_of, number, plot
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


CASES = {
    "healthy": "Healthy: the KL divergence stays near 0.01, the entropy falls slowly, the critic learns "
    "first, the score follows. At the end the explained variance is below 0 and no cause for "
    "worry: all returns are alike, and little is left to explain.",
    "rate-too-large": "The first update already moved the policy by 14 nats, and the entropy is 0: it always does "
    "the same, and cannot learn any more. Divide the learning rate by ten, or let it adapt; "
    "lower --target-kl.",
    "rate-too-small": "Nothing is wrong, and nothing happens: KL of a few millionths, not a sample clipped, the "
    "entropy where it began. Multiply the learning rate by ten until the KL divergence is near "
    "0.01.",
    "off-the-cliff": "Twenty epochs on the plain surrogate: KL above 1, most ratios far from 1, the entropy "
    "gone; the score climbs and falls. Clip, take fewer epochs, or stop them early with "
    "--target-kl.",
    "too-much-entropy": "KL and critic look healthy, but the entropy stays near ln 2 = 0.69, as that is what is "
    "paid for. Lower --entropy.coef, or let it fall to 0 with --entropy.end-factor 0.",
    "no-critic": "The explained variance stays at 0: the critic learns nothing, so advantages are as noisy "
    "as returns, and the score stops halfway. Raise --value-coef; look whether observations and "
    "rewards are scaled.",
}
NORMAL = {
    "return_mean": Axis("score", 0, 520),
    "kl": Axis("KL(old ‖ new), nats", 0, 15),
    "clip_fraction": Axis("clip fraction", 0, 1),
    "entropy": Axis("entropy, nats", 0, 0.75),
    "explained_variance": Axis("explained variance", -1, 1.05),
    "value_loss": Axis("value loss", 0, 62),
}


def normal(width: int, case: str) -> Drawn:
    """Six curves of a short training, beside those of the healthy one."""
    cases = {name: run["columns"] for name, run in record("normal").items()}
    shown, healthy = cases[case], cases["healthy"]
    half = half_of(width)
    end, pictures, values = shown["step"][-1], [], {}
    for name, y in NORMAL.items():
        numbers, usual = (np.array(columns[name], float) for columns in (shown, healthy))
        y = replace(y, high=max(0.05, 1.1 * float(np.nanmax([*numbers, *usual])))) if name == "kl" else y
        marks = [Mark("line", healthy["step"], usual, "grey", "healthy")] if case != "healthy" else []
        marks.append(Mark("line", shown["step"], numbers, "b", case))
        pictures.append(plot(marks, Axis("steps", 0, end), y, half, height=190))
        values[y.label + ", at the end"] = number(float(numbers[np.isfinite(numbers)][-1]))
    return Drawn(pictures, values, CASES[case])


RUNGS = ("reinforce", "normalized", "future", "surrogate", "clipped", "ppo")


def ladder(width: int, rung: str, name_of_record: str, score: Axis) -> Drawn:
    """The curves of all rungs, or of one beside the rung below it, with what was measured of each."""
    found = record(name_of_record)
    rungs, seeds = {r["rung"]: r for r in found["rungs"]}, len(found["seeds"])
    label, unit = ("emulated frames, millions", 1e6) if found["unit"] == "frames" else ("steps", 1)
    at = RUNGS.index(rung) if rung in RUNGS else -1
    chosen = RUNGS if at < 0 else RUNGS[max(0, at - 1) : at + 1]
    marks = []
    for name in chosen:
        r, color = rungs[name], "gaecbd"[RUNGS.index(name)].replace("g", "grey")
        if at >= 0:
            marks.append(Mark("area", np.array(r["frames"]) / unit, (r["low"], r["high"]), color))
        marks.append(Mark("line", np.array(r["frames"]) / unit, r["curve"], color, name))
    picture = plot(marks, Axis(label, 0, found["frames"] / unit), score, width)
    values = {}
    for name in chosen:
        values[f"{name}: scores of the seeds"] = ", ".join(number(x) for x in rungs[name]["score"])
        if at >= 0:
            values[f"{name}: least effective samples"] = f"{100 * min(rungs[name]['effective_samples']):.0f} %"
            values[f"{name}: largest KL"] = number(max(rungs[name]["largest_kl"]))
    means = [float(np.mean(rungs[name]["score"])) for name in chosen]
    if at < 0:
        says = f"From {number(means[0])} to {number(means[-1])} in five steps, {seeds} seeds each."
    elif at == 0:
        says = f"reinforce ends at {number(means[0])}, where it began."
    else:
        says = f"{chosen[0]} ends at {number(means[0])}, {chosen[1]} at {number(means[1])}, mean of {seeds} seeds."
    return Drawn([picture], values, says)


FIGURES = {
    "ladder": Figure(
        "Mean score of the last 100 episodes; bands reach from the worst to the best of the seeds.",
        {"rung": Choice("rung", ("all rungs", *RUNGS))},
        partial(ladder, name_of_record="ladder", score=Axis("score, mean of the seeds", -2.7, 3.8)),
    ),
    "ladder-pong": Figure(
        "Points within 320 steps, mean of the last 100 trajectories; bands reach from the worst to the best seed.",
        {"rung": Choice("rung", ("all rungs", *RUNGS))},
        partial(ladder, name_of_record="ladder-pong", score=Axis("points, mean of the seeds", -16, 6)),
    ),
    "normal": Figure(
        "CartPole, 60,000 steps, one seed each, with the metrics that every run writes into metrics.jsonl.",
        {"case": Choice("training", tuple(CASES))},
        normal,
    ),
    "pong": Figure(
        "Lines are means over the seeds, bands reach from the worst to the best seed. Read from our records.",
        {"until": Slider("up to, in million frames", 0.2, 10.4, 0.2, 10.4)},
        pong,
    ),
}
