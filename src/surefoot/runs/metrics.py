"""A run's metrics: metrics.jsonl with one object per iteration, and the same for TensorBoard."""

from __future__ import annotations

import io
import json
import math
import os
import re
import socket
import statistics
from bisect import bisect_left
from pathlib import Path
from time import time, time_ns
from typing import Any

from surefoot.errors import DAMAGE, UserError, note
from surefoot.paths import shown
from surefoot.runs.files import Folder

Row = dict[str, Any]
NUMBERS = ("step", "iteration", "seconds", "episodes", "return_window", "steps_per_second", "env_s", "act_s", "learn_s")
MAY_BE_NULL = ("return_mean", "length_mean", "return_iteration", "evaluation", "learning_rate", "explained_variance")
OBJECT = re.compile(r"\{[^{}]*\}")  # a row, also where the end of its line is damaged


class Metrics:
    """Both files of one run. Rows after `step` are dropped when a run resumes there, so that no step appears twice."""

    def __init__(self, run_dir: Path, step: int) -> None:
        earlier = [row for row in read(run_dir) if row["step"] <= step]
        self.folder = Folder(run_dir)  # held: should another one take its place, nothing is written there
        self.folder.replace("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in earlier).encode())
        self.file = self.folder.descriptor("metrics.jsonl", os.O_WRONLY | os.O_APPEND)
        self.waiting = b""
        """rows that could not be written yet"""
        self.name = f"events.out.tfevents.{time_ns()}.{socket.gethostname()}"
        self.board: int | None = -1
        """descriptor of TensorBoard's file; -1: not there yet; None: given up"""
        start = {
            "step": step + 1,
            "session_log": {"status": "START"},
        }  # TensorBoard drops what older files have after this
        self.shown = time()
        self.events: list[Row] = [{"wall_time": self.shown} | e for e in ({"file_version": "brain.Event:2"}, start)]

    def add(self, row: Row) -> None:
        """Append one iteration; NaN and infinity become null.

        Where the disk is full the rows wait for room, TensorBoard is given up, and training goes on.
        """
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.waiting += json.dumps(clean).encode() + b"\n"
        self.write("its rows are kept and written when that has ended", self.waiting.count(b"\n") == 1)
        values = [{"tag": k, "simple_value": v} for k, v in clean.items() if v is not None and k != "step"]
        self.events.append({"wall_time": time(), "step": row["step"], "summary": {"value": values}})
        if time() - self.shown > 5:
            self.show()

    def show(self) -> None:
        """Write pending events for TensorBoard, whose own writer is a thread that fails where nobody can catch it.

        Called every 5 s, and before a checkpoint, which a run may go on from. Nothing is written where TensorBoard is
        not installed.
        """
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ModuleNotFoundError:
            self.board = None
        try:
            if self.board == -1:
                with self.folder.inside("tb", make=True) as folder:
                    self.board = folder.descriptor(self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            if self.board is not None:
                written = io.BytesIO()
                for event in self.events:
                    RecordWriter(written).write(Event(**event).SerializeToString())
                data = written.getvalue()
                while data:
                    data = data[os.write(self.board, data) :]
        except Exception as error:  # not worth a run
            note(f"TensorBoard's files are given up: {error}")
            self.board = None
        self.events, self.shown = [], time()

    def write(self, otherwise: str, aloud: bool = True) -> None:
        """Write the waiting rows; where that fails, a note says what happens to them."""
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.file, self.waiting) :]
        except OSError as error:
            if aloud:
                note(f"metrics.jsonl: {error.strerror}; {otherwise}")

    def close(self) -> None:
        """Flush and close."""
        self.write("its last rows are lost")
        self.show()
        os.close(self.file)
        if self.board not in (None, -1):
            os.close(self.board)
        self.folder.close()


def read(run_dir: Path) -> list[Row]:
    """The rows of metrics.jsonl; an incomplete last line is left out, and so are damaged ones, with a note."""
    path, rows = run_dir / "metrics.jsonl", list[Row]()
    try:
        with Folder(run_dir) as folder:
            text = folder.read(path.name).decode(errors="replace") if folder.has(path.name) else ""
            if not text and os.path.lexists(path) and not folder.has(path.name):
                note(f"'{path}' is left out: it is no plain file")
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}' cannot be used ({error}): move it away, and its run goes on without its rows"
        ) from error
    damaged = 0
    for line in text.split("\n")[:-1]:
        recovered = [row for piece in OBJECT.findall(line) if (row := sound(piece)) is not None]
        damaged += not recovered or OBJECT.sub("", line).strip() != ""
        rows += recovered
    ascending_rows = ascending(rows)
    damaged += len(rows) - len(ascending_rows)
    if damaged:
        note(f"{damaged} damaged rows of '{shown(path)}' are left out")
    return ascending_rows


def sound(text: str) -> Row | None:
    """A row from its JSON; None where it is damaged: what never is null must be a number, anything else may be null."""
    try:
        row = json.loads(text)
        row = dict.fromkeys(NUMBERS, 0) | {"step": row["step"]} | row  # one of another version may lack some
        if type(row["step"]) is not int or not all(is_number(row[name]) and row[name] >= 0 for name in NUMBERS):
            return None
    except DAMAGE:
        return None
    row = {name: value if is_number(value) else None for name, value in row.items()}
    return row | {name: None for name in MAY_BE_NULL if name not in row}


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no whole one of more than 64 bits."""
    most = 1 << 63 if type(value) is int else math.inf
    return type(value) in (int, float) and -most < value < most  # type: ignore[operator]


def ascending(rows: list[Row]) -> list[Row]:
    """The most rows whose steps ascend, which they do as they were written: one that is out of order is damaged.

    Of two that exclude each other the one stays whose steps per iteration are nearer to the others'.
    """
    steps = [row["step"] for row in rows]
    low = longest_ascent(steps)
    if len(low) == len(rows):
        return rows
    high = [len(rows) - 1 - i for i in longest_ascent([-step for step in reversed(steps)])][::-1]
    pace = [row["step"] / max(1, row["iteration"]) for row in rows]
    usual = statistics.median(pace)
    return [rows[i] for i in min(low, high, key=lambda chain: sum(abs(pace[i] - usual) for i in chain))]


def longest_ascent(numbers: list[int]) -> list[int]:
    """Places of a longest ascending part of a list; where there are several, of the one with the smallest numbers."""
    ends, before = list[int](), list[int]()  # where the best part of each length ends; what comes before each place
    for i, number in enumerate(numbers):
        length = bisect_left(ends, number, key=lambda j: numbers[j])
        before.append(ends[length - 1] if length else -1)
        ends[length : length + 1] = [i]
    chain, i = list[int](), ends[-1] if ends else -1
    while i >= 0:
        chain.append(i)
        i = before[i]
    return chain[::-1]
