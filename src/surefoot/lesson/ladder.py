"""The ladder from REINFORCE to PPO, measured: its rungs with equal numbers of frames and several seeds each.

Every rung and seed is a run directory of its own, RUN_DIR/RUNG/seed-S, so whatever was stopped continues. Runs share
the cores, one process each; `ladder_report` makes report.md, ladder.png and ladder.json of what there is.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic
from typing import IO, NamedTuple

from surefoot.config import Config
from surefoot.errors import Fault, UserError, note
from surefoot.lesson.ladder_rungs import PONG_FRAMES, QUICK_FRAMES, jobs
from surefoot.parallel.launch import usable_cores

LAST = 60.0  # seconds a run has for its checkpoint after the ladder was stopped


def ladder(
    names: Sequence[str] = (),
    seeds: int = 3,
    frames: int = 0,
    run_dir: Path | None = None,
    quick: bool = False,
    episodes: int = 20,
    quiet: bool = False,
) -> Path:
    """Train what is missing of the ladder and write its report, after each seed anew; returns the path of report.md.

    `names`: of rungs, all if there are none; `frames`: emulated by each run, 0: 10.24 million, or 57,600 if `quick`;
    `run_dir`: default runs/ladder or runs/ladder-quick; `episodes`: of each closing evaluation. Raises UserError for a
    mistake, Fault where a run has failed. Ctrl-C and SIGTERM save all runs first.
    """
    from surefoot.lesson.ladder_report import report

    run_dir = run_dir or Path("runs", "ladder-quick" if quick else "ladder")
    todo = jobs(names, seeds, frames or (QUICK_FRAMES if quick else PONG_FRAMES), run_dir, quick, episodes)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{run_dir}' cannot be made ({error.strerror}): name another --run-dir") from error
    training = [Order(f"{job.rung}, seed {job.cfg.seed}", "train", [job.cfg], job.run_dir) for job in todo]
    measuring = [
        Order(f"gradient noise, seed {seed}", "measure", [job.cfg for job in same], same[0].run_dir)
        for seed in range(1, seeds + 1)
        if (same := [job for job in todo if job.cfg.seed == seed])
    ]
    start, finished, reported = monotonic(), list[str](), 0
    if not quiet:
        steps, cores = todo[0].cfg.total_steps, min(usable_cores(), len(training))
        print(f"{len(todo)} runs of {steps:,} steps on {cores} cores, into {run_dir}", flush=True)

    def done(label: str) -> None:
        nonlocal reported
        finished.append(label)
        if not quiet:
            number = f"{len(finished)} of {len(training + measuring)}"
            print(f"{timedelta(seconds=int(monotonic() - start))}  {number}: {label}", flush=True)
        left = [job.cfg.seed for job in todo if f"{job.rung}, seed {job.cfg.seed}" not in finished]
        if (complete := min(left, default=seeds + 1) - 1) > reported:  # all rungs with these seeds: a first picture
            reported = complete
            report([job for job in todo if job.cfg.seed <= complete], run_dir)

    try:
        with workers(min(usable_cores(), len(training))) as crew:
            work(crew, training, done)
            work(crew, measuring, done)
    except KeyboardInterrupt:
        note("all runs are saved; the same command continues")
        raise
    return report(todo, run_dir)


class Worker(NamedTuple):
    """A process that carries out one order after another, and the file with what it writes to standard error."""

    process: subprocess.Popen[str]
    errors: IO[bytes]


@contextmanager
def workers(count: int) -> Iterator[list[Worker]]:
    """Processes that are ended at the end; a run that is being trained then is saved."""
    command, pipe = [sys.executable, "-m", "surefoot.lesson.ladder_worker"], subprocess.PIPE
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile()) for _ in range(count)]
        started = [
            Worker(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=f, text=True, start_new_session=True), f)
            for f in files
        ]
        try:
            yield started
        finally:
            for process, _ in started:
                process.terminate()
            for process, _ in started:
                try:
                    process.communicate(timeout=LAST)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()


class Order(NamedTuple):
    """What a process of the ladder is told to do, and what that is called."""

    label: str
    what: str  # "train" or "measure"
    cfgs: list[Config]
    run_dir: Path


def work(crew: Sequence[Worker], orders: Sequence[Order], done: Callable[[str], None]) -> None:
    """Have all orders carried out; `done(label)` is called after each. Raises Fault for the first that fails."""
    waiting, answers = queue.SimpleQueue[Order](), queue.SimpleQueue[tuple[Order, str]]()
    for order in orders:
        waiting.put(order)

    def serve(worker: Worker) -> None:
        process = worker.process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(queue.Empty):
            while order := waiting.get_nowait():
                answer = ""
                with suppress(OSError, ValueError):  # it has ended
                    message = [order.what, [cfg.to_json() for cfg in order.cfgs], str(order.run_dir)]
                    print(json.dumps(message), file=process.stdin, flush=True)
                    answer = process.stdout.readline()
                answers.put((order, answer.strip() or _ending(worker)))
                if not answer:
                    return

    for worker in crew:
        threading.Thread(target=serve, args=(worker,), daemon=True).start()
    for _ in orders:
        order, answer = answers.get()
        if answer != "ok":
            raise Fault(f"{order.label}: {answer}; the same command continues")
        done(order.label)


def _ending(worker: Worker) -> str:
    """That a process has ended, with the last line of what it has written."""
    code = worker.process.wait()
    worker.errors.seek(0)
    last = worker.errors.read().decode(errors="replace").strip().splitlines()[-1:]
    return f"its process has ended ({code}){': ' if last else ''}{''.join(last)}"
