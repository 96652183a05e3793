"""The ladder's report: learning curves with bands, a table, and a measured sentence for each rung.

ladder.json has everything that is shown: frames, seeds, start (score of the first 100 episodes), goal, unit, and in
`rungs` the fields of `RungFigures` for each rung, in the ladder's order; a noise that is infinite, or not measured
yet, is null.
"""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import needs_extra
from surefoot.lesson.ladder_rungs import Job, frames_per_step, read_noise
from surefoot.runs.directory import checkpoints, read_evaluation
from surefoot.runs.files import replace_file
from surefoot.runs.metrics import Row, read

POINTS = 100  # of a curve
COLOURS = {
    "reinforce": "#9a9a9a",
    "normalized": "#c9a227",
    "future": "#6a994e",
    "surrogate": "#c85a28",
    "clipped": "#1f6f8b",
    "ppo": "#5a3d8a",
    "trpo": "#a23b72",
}
IDEAS = {
    "reinforce": "Every action is pushed by its episode's total reward",
    "normalized": "Rewards compared between the parallel games",
    "future": "An action answers only for what came after it",
    "surrogate": "Each rollout used four times, weighted by the ratio",
    "clipped": "The ratio clipped",
    "ppo": "A critic and GAE",
    "trpo": "A bound on the KL divergence instead of the clip",
}


@dataclass
class RungFigures:
    """What was measured of one rung; a list has one number for each seed."""

    rung: str
    score: list[float]
    """mean of the last 100 training episodes"""
    evaluation: list[float]
    """mean of the closing evaluation's whole episodes"""
    frames_to_score: list[int | None]
    """frames until the mean of the last 100 training episodes first reached `goal`; None: never"""
    noise: list[float]
    """noise beside signal of one rollout's gradient, where the first rung ended (`ladder_worker.gradient_noise`); NaN
    until it has been measured"""
    effective_samples: list[float]
    """lowest effective sample size of a rollout's ratios, as a fraction (mean over its updates)"""
    largest_kl: list[float]
    """largest KL(rollout's policy || present policy) of a rollout, nats (mean over its updates)"""
    frames: list[int]
    """where the curve has its points"""
    curve: list[float]
    """mean over the seeds of the mean of the last 100 training episodes"""
    low: list[float]
    """its least value among the seeds"""
    high: list[float]
    """its greatest"""


def noise_of_rung(f: RungFigures) -> str:
    """The median of the seeds' noise."""
    known = [x for x in f.noise if not math.isnan(x)]
    return _number(statistics.median(known), 1) if known else "-"


def report(todo: Sequence[Job], run_dir: Path) -> Path:
    """Write report.md, ladder.png and ladder.json of finished runs into `run_dir`; returns report.md's path."""
    rows_of = {job: _rows(job) for job in todo}
    names = list(dict.fromkeys(job.rung for job in todo))
    per_step = frames_per_step(todo[0].cfg)
    end = todo[0].cfg.total_steps * per_step
    start = statistics.fmean(rows[0]["return_mean"] for job, rows in rows_of.items() if job.rung == names[0])
    best = max(statistics.fmean(rows_of[j][-1]["return_mean"] for j in todo if j.rung == name) for name in names)
    goal = (start + best) / 2
    noise = {j.cfg.seed: read_noise(j.run_dir, _newest(j.run_dir)) for j in todo if j.rung == names[0]}
    figures = [_figures(n, [j for j in todo if j.rung == n], rows_of, per_step, end, goal, noise) for n in names]
    facts: dict[str, Any] = {"frames": end, "seeds": [j.cfg.seed for j in todo if j.rung == names[0]]}
    facts |= {"start": start, "goal": goal, "unit": "frames" if per_step > 1 else "steps"}
    plain = [asdict(f) | {"noise": [x if x < math.inf else None for x in f.noise]} for f in figures]
    replace_file(run_dir / "ladder.json", json.dumps(facts | {"rungs": plain}).encode())
    replace_file(run_dir / "ladder.png", picture(figures, goal, facts["unit"]))
    replace_file(run_dir / "report.md", text(figures, todo, facts).encode())
    return run_dir / "report.md"


def _newest(run_dir: Path) -> int:
    return int(checkpoints(run_dir)[-1].name)


def _rows(job: Job) -> list[Row]:
    """The iterations of a run up to its end, from the hundredth finished episode on, or the first in a shorter run."""
    rows = [r for r in read(job.run_dir) if r["return_mean"] is not None and r["step"] <= _end(job)]
    return [r for r in rows if r["return_window"] == 100] or rows


def _end(job: Job) -> int:
    """The steps after which the run has ended: its last rollout may go beyond `total_steps`."""
    return job.cfg.total_steps + job.cfg.num_envs * max(job.cfg.num_steps) - 1


def _figures(
    name: str,
    jobs: list[Job],
    rows_of: dict[Job, list[Row]],
    per_step: int,
    end: int,
    goal: float,
    noise: dict[int, dict[str, float]],
) -> RungFigures:
    runs = [rows_of[job] for job in jobs]
    grid = np.linspace(max(rows[0]["step"] for rows in runs) * per_step, end, POINTS)
    curves = np.array(
        [np.interp(grid, [r["step"] * per_step for r in rows], [r["return_mean"] for r in rows]) for rows in runs]
    )
    longer = [read(job.run_dir)[-1]["step"] > _end(job) for job in jobs]  # its evaluation is of a later policy
    evaluations = [None if late else read_evaluation(job.run_dir) for job, late in zip(jobs, longer, strict=True)]
    return RungFigures(
        rung=name,
        score=[rows[-1]["return_mean"] for rows in runs],
        evaluation=[e.mean for e in evaluations if e is not None],
        frames_to_score=[_first(rows, goal, per_step) for rows in runs],
        noise=[noise[job.cfg.seed].get(job.cfg.task, math.nan) for job in jobs],
        effective_samples=[min(r["effective_samples"] for r in rows) for rows in runs],
        largest_kl=[max(r["kl"] for r in rows) for rows in runs],
        frames=[round(x) for x in grid],
        curve=curves.mean(0).tolist(),
        low=curves.min(0).tolist(),
        high=curves.max(0).tolist(),
    )


def _first(rows: list[Row], goal: float, per_step: int) -> int | None:
    """The frames after which the mean of the last 100 episodes first reached the goal."""
    return next((r["step"] * per_step for r in rows if r["return_mean"] >= goal), None)


def picture(figures: Sequence[RungFigures], goal: float, unit: str) -> bytes:
    """A panel for each rung as a PNG: mean and range of its seeds, and the mean of the rung before it in gray."""
    with needs_extra("plots"):
        from matplotlib.figure import Figure

    columns = min(3, len(figures))
    rows = math.ceil(len(figures) / columns)
    figure = Figure((3 * columns + 1, 2.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(figures) :]:
        panel.set_visible(False)
    for i, (axes, f) in enumerate(zip(panels, figures, strict=False)):
        if i:
            before = figures[i - 1]
            axes.plot(before.frames, before.curve, color="#aaaaaa", lw=1.5, label=before.rung)
        axes.fill_between(f.frames, f.low, f.high, color=COLOURS[f.rung], alpha=0.22, lw=0)
        axes.plot(f.frames, f.curve, color=COLOURS[f.rung], lw=2.2, label=f.rung)
        axes.axhline(goal, color="#bbbbbb", lw=0.8, ls=":")
        axes.set_title(f.rung, color=COLOURS[f.rung], fontweight="bold")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k")
        axes.margins(x=0.01)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left", fontsize="small", reverse=True)
    figure.supxlabel("emulated frames" if unit == "frames" else "environment steps", fontsize="medium")
    figure.supylabel("score, mean of the last 100 episodes", fontsize="medium")
    figure.savefig(data := io.BytesIO(), dpi=120, format="png")
    return data.getvalue()


def spread(values: Sequence[float]) -> float:
    """Standard deviation between seeds; NaN for one."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _number(x: float, digits: int = 2) -> str:
    return "-" if math.isnan(x) else "over 100" if x > 100 else f"{x:.{digits}f}"


def _reached(f: RungFigures) -> str:
    """The median of the frames to the goal, and how many seeds reached it."""
    reached = [x for x in f.frames_to_score if x is not None]
    if not reached:
        return "never"
    many = "" if len(reached) == len(f.frames_to_score) else f" ({len(reached)} of {len(f.frames_to_score)} seeds)"
    return f"{statistics.median(reached):,.0f}{many}"


def text(figures: Sequence[RungFigures], todo: Sequence[Job], facts: dict[str, Any]) -> str:
    """The report in Markdown."""
    cfg, seeds = todo[0].cfg, len(facts["seeds"])
    task = "Pong" if facts["unit"] == "frames" else "Rally, a small task of 10x10 pixels"
    goal, unit = facts["goal"], facts["unit"]
    own_steps = f" ({cfg.total_steps:,} steps of the policy)" if unit == "frames" else ""
    lines = [
        f"# The ladder on {task}",
        "",
        f"{len(figures)} rungs, {facts['frames']:,} {unit} each{own_steps}, "
        f"{seeds} seed{'s' * (seeds > 1)}; {cfg.num_envs} games, rollouts of {cfg.num_steps[0]} steps from a reset. "
        f"The first 100 episodes have {facts['start']:.1f} points.",
        "",
        "![learning curves](ladder.png)",
        "",
        f"| rung | score | between seeds | evaluation | {unit} to {goal:.1f} | gradient noise | effective samples |",
        "|---|---|---|---|---|---|---|",
    ]
    for f in figures:
        evaluation = _number(statistics.fmean(f.evaluation)) if f.evaluation else "-"
        row = [f.rung, _number(statistics.fmean(f.score)), _number(spread(f.score)), evaluation, _reached(f)]
        row += [noise_of_rung(f), f"{min(f.effective_samples):.0%}"]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## What each idea bought", ""]
    for i, f in enumerate(figures):
        lines.append(f"- **{f.rung}.** {sentence(f, figures[i - 1] if i else None, facts)}")
    lines += [
        "",
        "Score: mean of the last 100 training episodes, mean over the seeds; between seeds: its standard deviation. "
        "Evaluation: whole episodes with fresh seeds after training. "
        f"{goal:.1f} points are half way from the beginning to the best rung's end; median over the seeds. "
        "Gradient noise: how many times longer than the true gradient the random error of one rollout's gradient is, "
        f"for each rung at the policy that `{figures[0].rung}` ended with (and its critic, which has not learned); "
        "median over the seeds. "
        "Effective samples: what the re-weighted samples of a rollout are worth at the worst, as a fraction; all of "
        "them where a rollout is used once. The bands in the picture are the seeds' range, the gray lines "
        "the rung before.",
    ]
    return "\n".join(lines) + "\n"


def sentence(f: RungFigures, before: RungFigures | None, facts: dict[str, Any]) -> str:
    """What the idea of this rung bought, beside the rung before it; all of it measured."""
    idea, score, noise = IDEAS[f.rung], statistics.fmean(f.score), noise_of_rung(f)
    if before is None:
        gain = score - facts["start"]
        return (
            f"{idea}: {gain:+z.1f} points in {facts['frames']:,} {facts['unit']}, with a gradient whose noise is "
            f"{noise} times its signal."
        )
    old = statistics.fmean(before.score)
    words = f"{idea}: {old:z.1f} becomes {score:z.1f} points, {_significance(f.score, before.score)}"
    if f.rung in ("normalized", "future", "ppo"):
        words += f"; the gradient's noise goes from {noise_of_rung(before)} to {noise} times its signal"
    if f.rung in ("surrogate", "clipped"):
        words += (
            f"; within one rollout the policy moved by up to {_nats(f)} nats (before: "
            f"{_nats(before)}), and its samples were worth {min(f.effective_samples):.0%} at the worst"
        )
    return words + "."


def _nats(f: RungFigures) -> str:
    return f"{x:.2g}" if (x := max(f.largest_kl)) > 1e-6 else "0"


def _significance(new: Sequence[float], old: Sequence[float]) -> str:
    """Whether two rungs' means differ by more than twice their standard error."""
    if min(len(new), len(old)) < 2:
        return "with one seed each, so that chance cannot be told"
    error = math.sqrt(statistics.variance(new) / len(new) + statistics.variance(old) / len(old))
    difference = abs(statistics.fmean(new) - statistics.fmean(old))
    return "more than seeds differ by chance" if difference > 2 * error else "no more than seeds differ by chance"
