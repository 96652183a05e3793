"""The runs below a directory: what each is, how far it has come, and in which settings two differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from surefoot.config import Config
from surefoot.errors import UserError, note
from surefoot.output import clock
from surefoot.paths import shown
from surefoot.runs.directory import checkpoints, read_config, read_evaluation
from surefoot.runs.files import Folder, locked
from surefoot.runs.metrics import read

DEPTH = 5  # folders below each other that are looked into


class State(StrEnum):
    """How far a run has come."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Listed:
    """A run as a list shows it."""

    path: Path
    task: str
    seed: int
    steps: int
    score: float | None
    """mean score of the closing evaluation; without one of the last 100 training episodes; None before the first"""
    evaluated: bool
    """whether it is of the closing evaluation"""
    seconds: float
    state: State


def is_run(folder: Path) -> bool:
    """Whether a directory is a run's."""
    return (folder / "config.json").is_file() or bool(checkpoints(folder))


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The run directories below a folder, or the folder itself, in the order of their names; without links."""
    if is_run(folder):
        yield folder
    elif depth:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from find_runs(Path(entry.path), depth - 1)


def state_of(run: Path) -> State:
    """Whether a process holds the run's lock; otherwise whether its report card is there."""
    if (run / ".lock").is_file():
        try:
            with Folder(run) as folder, locked(folder, 0.0):
                pass
        except TimeoutError:
            return State.RUNNING
        except OSError:  # somebody else's, which cannot be asked
            pass
    return State.FINISHED if (run / "report.md").is_file() else State.STOPPED


def listed(run: Path) -> Listed:
    """What a list shows of a run; raises UserError where it cannot be read."""
    cfg, rows, evaluation = read_config(run), read(run), read_evaluation(run)
    scores = [row["return_mean"] for row in rows if row["return_mean"] is not None]
    score = evaluation.mean if evaluation else scores[-1] if scores else None
    steps, seconds = (rows[-1]["step"], rows[-1]["seconds"]) if rows else (0, 0.0)
    return Listed(run, cfg.task, cfg.seed, steps, score, evaluation is not None, seconds, state_of(run))


def list_runs(folder: Path) -> list[Listed]:
    """All runs below a folder, without those that cannot be read, with a note. Raises UserError for none."""
    if not folder.is_dir():
        raise UserError(f"there is no directory '{shown(folder)}': name one that holds runs")
    runs = list[Listed]()
    for run in find_runs(folder):
        try:
            runs.append(listed(run))
        except UserError as error:
            note(str(error))
    if not runs:
        raise UserError(f"'{shown(folder)}' holds no runs")
    return runs


def table(runs: Sequence[Listed], above: Path) -> str:
    """The runs as a table, their paths from `above`; scores of training in parentheses."""
    rows = [("run", "task", "seed", "steps", "score", "time", "state")]
    for run in runs:
        score = "" if run.score is None else f"{run.score:.2f}" if run.evaluated else f"({run.score:.2f})"
        name = os.path.relpath(run.path, above)
        rows.append((name, run.task, str(run.seed), f"{run.steps:,}", score, clock(run.seconds), run.state))
    text = columns(rows, right=(2, 3, 4, 5))
    note = "in parentheses: mean of the last 100 training episodes, where there was no closing evaluation"
    return f"{text}\n{note}" if any(run.score is not None and not run.evaluated for run in runs) else text


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text below each other; `right`: the columns that end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [x.rjust(w) if i in right else x.ljust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in cells)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict with dotted names; a part's `type` has the part's own name."""
    flat_data = dict[str, Any]()
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat_data |= flat(value, f"{prefix}{name}.")
        else:
            flat_data[prefix.rstrip(".") if name == "type" else prefix + name] = value
    return flat_data


def settings(cfg: Config) -> dict[str, Any]:
    """All settings of a Config with dotted names."""
    return flat(cfg.to_json())


def difference(a: Path, b: Path) -> list[tuple[str, str, str]]:
    """The settings in which two runs differ: name, a's, b's; empty where one has no such setting."""
    left, right = settings(read_config(a)), settings(read_config(b))
    names = [name for name in left | right if left.get(name) != right.get(name)]
    shown = ({name: str(value) for name, value in side.items()} for side in (left, right))
    first, second = shown
    return [(name, first.get(name, ""), second.get(name, "")) for name in names]
