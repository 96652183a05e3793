"""The report card of a run and its learning curve."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.output import clock
from surefoot.paths import is_address, shown
from surefoot.runs.directory import call
from surefoot.runs.files import replace_file
from surefoot.runs.metrics import Row, read
from surefoot.runs.policy_file import BEST

if TYPE_CHECKING:
    from surefoot.algorithm.state import State
    from surefoot.config import Config
    from surefoot.runs.evaluation import Evaluation

NONE_ENDED = "no episode has ended yet"
STAGES = (("emulate", "env_s"), ("act", "act_s"), ("learn", "learn_s"))


def curve(run_dir: Path, path: Path) -> None:
    """The learning curve of a run as a picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in read(run_dir) if row["return_mean"] is not None]
    figure = Figure((7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["step"] for row in rows], [row["return_mean"] for row in rows], color="#1f6f8b")
    tried = [row for row in rows if row.get("evaluation") is not None]
    if tried:
        scores = [row["evaluation"] for row in tried]
        axes.plot([row["step"] for row in tried], scores, ".", color="#d1495b", label="evaluations")
        axes.legend(frameon=False)
    axes.set_xlabel("steps")
    axes.set_ylabel("score, mean of the last 100 episodes")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k")
    axes.grid(alpha=0.3)
    if len(rows) > 1:
        unit, name = (60, "minutes") if rows[-1]["seconds"] > 120 else (1, "seconds")
        first, last = (rows[i]["seconds"] / unit for i in (0, -1))
        top = axes.secondary_xaxis("top", functions=_step_to_time(rows, unit), xlabel=name)
        top.set_xticks([x for x in MaxNLocator(6).tick_values(first, last) if first < x <= last])  # none for the start
    if not rows:
        axes.set_xlim(0, 1)
        axes.text(0.5, 0.5, NONE_ENDED, ha="center", transform=axes.transAxes)
    figure.savefig(picture := io.BytesIO(), dpi=130)
    replace_file(path, picture.getvalue())


def _step_to_time(rows: list[Row], unit: int) -> tuple[Any, Any]:
    import numpy as np

    steps = np.array([0] + [row["step"] for row in rows], float)
    times = np.array([0] + [row["seconds"] / unit for row in rows], float)
    return lambda x: np.interp(x, steps, times), lambda x: np.interp(x, times, steps)


def card(run_dir: Path, cfg: Config, state: State, result: Evaluation | None, pictures: list[str]) -> str:
    """Write report.md, the report card; returns its Markdown."""
    rows, count = read(run_dir), len(state.recent_episodes)
    time = {name: sum(row[key] for row in rows) for name, key in STAGES}
    total = sum(time.values()) or 1.0
    if state.seconds >= cfg.max_seconds:
        further = f"--max-seconds {2 * cfg.max_seconds:g}"
    elif state.mean_score() >= cfg.stop_at:
        further = "--stop-at inf"
    elif cfg.total_steps and state.steps >= cfg.total_steps:
        further = f"--total-steps {2 * cfg.total_steps}"
    else:
        further = f"--total-iterations {2 * cfg.total_iterations}"
    score = f"{state.mean_score():.2f}, mean of the last {count} episodes"
    lines = [f"# {cfg.task}, seed {cfg.seed}", "", "| | |", "|---|---|"]
    if result is not None:
        (low, high), (iqm_low, iqm_high) = result.interval, result.iqm_interval
        whose = ", of the policy that did best on the way" if (run_dir / BEST).exists() else ""
        lines += [
            f"| score | **{result.mean:.2f}** (95 % interval {low:.2f} to {high:.2f}), "
            f"{len(result.scores)} full episodes, actions sampled, seeds never trained on{whose} |",
            f"| its interquartile mean | {result.iqm:.2f} (95 % interval {iqm_low:.2f} to {iqm_high:.2f}) |",
        ]
        lines += [f"| not ended | {result.not_ended()} |"] if result.cut else []
    elif cfg.eval_episodes:
        lines += ["| score | none, since an environment has failed in the evaluation (--env-restarts) |"]
    lines += [
        f"| training score | {score if count else NONE_ENDED} |",
        f"| training time | {clock(state.seconds)} ({state.steps / max(state.seconds, 1e-9):,.0f} steps/s) |",
        f"| steps | {state.steps:,} in {state.iteration:,} iterations, {state.episodes:,} episodes |",
        "| where the time went | " + ", ".join(f"{name} {s / total:.0%}" for name, s in time.items()) + " |",
        "",
        *(f"![{Path(name).stem}]({name})" for name in pictures),
        "",
        "Next:",
        "",
        f"    {call('resume', run_dir)} {further}",
        *([f"    {call('pull', run_dir)}"] if is_address(shown(run_dir)) else []),
        f"    {call('evaluate', run_dir)} --episodes 100",
        f"    {call('video', run_dir)}",
    ]
    text = "\n".join(lines) + "\n"
    replace_file(run_dir / "report.md", text.encode(errors="surrogateescape"))
    return text
