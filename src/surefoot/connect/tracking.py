"""A run's metrics in somebody else's tracker: Weights & Biases, MLflow, Trackio.

A process of its own follows metrics.jsonl and passes each row on once. So a tracker that fails, hangs or is slow costs
the run nothing, and a resumed run goes on in the same record (`tracking.json`). Where the records go is for the
trackers' own environment variables to say: WANDB_PROJECT, WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_PROJECT.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from time import perf_counter, time
from typing import Any, Protocol

from surefoot.connect.listing import settings
from surefoot.errors import DAMAGE, UserError, note, one_line
from surefoot.parallel.launch import rank_and_world
from surefoot.paths import is_address, shown
from surefoot.runs.directory import read_config
from surefoot.runs.files import Folder, replace_file
from surefoot.runs.metrics import read

FILE, LOG = "tracking.json", "tracking.log"
EVERY, GRACE = 2.0, 60.0  # seconds between looks at metrics.jsonl; for the last rows when the run is over


class Tracker(StrEnum):
    """Where the metrics of a run can be recorded as well."""

    WANDB = "wandb"
    MLFLOW = "mlflow"
    TRACKIO = "trackio"


def chosen(name: str | None) -> Tracker | None:
    """The tracker of this name; raises UserError where there is none or it is not installed."""
    if name is None:
        return None
    if name not in list(Tracker):
        raise UserError(f"track is {name!r}; allowed is {', '.join(Tracker)}")
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{name} is not installed: pip install 'surefoot[{name}]'")
    return Tracker(name)


def beside(tracker: Tracker | None) -> Callable[[Path], AbstractContextManager[None]]:
    """What to enter while a run is going on in a directory: `tracker` follows it, or the one that did before."""

    def follow(run_dir: Path) -> AbstractContextManager[None]:
        if tracker and is_address(shown(run_dir)):
            raise UserError(f"track is {tracker}; the run at '{shown(run_dir)}' is recorded by none")
        known = record(run_dir).get("tracker")
        name = tracker or (known if known in list(Tracker) else None)
        if name is None or rank_and_world()[0] > 0:
            return nullcontext()
        if importlib.util.find_spec(name) is None:
            note(f"{name}, which has recorded this run, is not installed: pip install 'surefoot[{name}]'")
            return nullcontext()
        return followed(run_dir, Tracker(name))

    return follow


@contextmanager
def followed(run_dir: Path, tracker: Tracker) -> Iterator[None]:
    """Let a process follow the run; what goes wrong with it is a note."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if record(run_dir).get("tracker") != tracker:
            replace_file(run_dir / FILE, json.dumps({"tracker": tracker, "step": 0}).encode())
        with Folder(run_dir) as folder:
            log = folder.descriptor(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            call = [sys.executable, "-m", "surefoot.connect.tracking", str(run_dir)]
            streams: Any = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
            process = subprocess.Popen(call, **streams, start_new_session=True)  # Ctrl-C is for the run
        finally:
            os.close(log)
    except OSError as error:
        note(f"{tracker} does not record this run ({error.strerror or error})")
        yield
        return

    def watch() -> None:
        if process.wait() not in (0, -9):
            note(f"{tracker} has failed ({last_line(run_dir)}): the run goes on, and a resumed run records the rest")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()  # the run is over
        watcher.join(GRACE)
        if watcher.is_alive():
            process.kill()
            note(f"{tracker} takes too long for the last rows: `surefoot resume` records them")
        if not (run_dir / "config.json").exists():  # the run has not begun
            with suppress(OSError), Folder(run_dir) as folder:
                folder.remove(FILE)
                folder.remove(LOG)


def record(run_dir: Path) -> dict[str, Any]:
    """What tracking.json holds: tracker, its own id of the run, the last step that it has; empty for none."""
    try:
        with Folder(run_dir) as folder:
            return dict(json.loads(folder.read(FILE))) if folder.has(FILE) else {}
    except DAMAGE:
        return {}


def last_line(run_dir: Path) -> str:
    """The last line of the tracker's log."""
    with suppress(*DAMAGE), Folder(run_dir) as folder:
        lines = folder.read(LOG).decode(errors="replace").split("\n")
        return one_line(next(line for line in reversed(lines) if line.strip()), 300)
    return f"see {LOG}"


class Record(Protocol):
    """A run in a tracker."""

    id: str

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""

    def finish(self, ended: bool) -> None:
        """Send all; `ended`: the run has come to its end."""


class ThreeCalls:
    """Weights & Biases and Trackio, which share `init`, `log` and `finish`."""

    def __init__(self, tracker: Tracker, id: str, run_dir: Path, config: dict[str, Any]) -> None:
        self.module, self.id = importlib.import_module(tracker), id or secrets.token_hex(4)
        wandb_only = {"id": self.id, "dir": str(run_dir)} if tracker is Tracker.WANDB else {}
        project = os.environ.get(f"{tracker}_PROJECT".upper(), "surefoot")
        name = run_dir.name if wandb_only else f"{run_dir.name}-{self.id}"  # Trackio knows a run by its name
        self.module.init(project=project, name=name, config=config, resume="allow", **wandb_only)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.module.log(dict(numbers), step=step)

    def finish(self, ended: bool) -> None:
        self.module.finish()


class MLflow:
    """MLflow, by its client: no active run of the process."""

    def __init__(self, id: str, run_dir: Path, config: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        self.client, self.id = MlflowClient(), id
        if id:
            self.client.update_run(id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "surefoot")
        experiment = self.client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.id = self.client.create_run(where, run_name=run_dir.name).info.run_id
        for key, value in config.items():
            self.client.log_param(self.id, key, value)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time())
        self.client.log_batch(self.id, metrics=[Metric(key, x, now, step) for key, x in numbers.items()])

    def finish(self, ended: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if ended else "KILLED")


def opened(tracker: Tracker, id: str, run_dir: Path) -> Record:
    """The run's record, a new one where it has no id yet."""
    config = settings(read_config(run_dir))
    return MLflow(id, run_dir, config) if tracker is Tracker.MLFLOW else ThreeCalls(tracker, id, run_dir, config)


def pass_on(run_dir: Path) -> None:
    """Follow a run until standard input is closed, which its launcher does at the end of the run, however it ends."""
    known, place, over = record(run_dir), None, False
    step, every = int(known["step"]), EVERY
    while not over:
        over = bool(select.select([0], [], [], every)[0])
        start = perf_counter()
        rows = [row for row in read(run_dir) if row["step"] > step]
        if rows and place is None:
            place = opened(Tracker(known["tracker"]), known.get("id", ""), run_dir)
        for row in rows:
            assert place is not None
            step = row.pop("step")
            place.log({key: float(x) for key, x in row.items() if x is not None}, step)
        if rows and place is not None:
            replace_file(run_dir / FILE, json.dumps({**known, "id": place.id, "step": step}).encode())
        every = max(EVERY, 20 * (perf_counter() - start))
    if place is not None:
        ended = (run_dir / "report.md").exists()
        if ended:
            with suppress(*DAMAGE), Folder(run_dir) as folder:
                score = json.loads(folder.read("evaluation.json"))  # without importing PyTorch for it
                place.log({f"score_{key}": score[key] for key in ("mean", "low", "high", "iqm")}, step)
        place.finish(ended)


if __name__ == "__main__":
    pass_on(Path(sys.argv[1]))
