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
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic
from typing import IO, Any, NamedTuple

from surefoot.algorithm.schedules import FixedRate
from surefoot.config import Config
from surefoot.envs.atari import Pong
from surefoot.envs.gym import Gymnasium
from surefoot.errors import Fault, UserError, note
from surefoot.models.networks import SmallCNN
from surefoot.parallel.launch import usable_cores
from surefoot.presets import LADDER
from surefoot.runs.report_card import clock

PONG_FRAMES, QUICK_FRAMES = 10_240_000, 57_600  # the lesson's 500 rollouts; 80 rollouts
LAST = 60.0  # seconds a run has for its checkpoint after the ladder was stopped


@dataclass(frozen=True)
class Job:
    """One rung with one seed."""

    rung: str
    cfg: Config
    run_dir: Path


def frames_per_step(cfg: Config) -> int:
    """Emulated frames, or steps of another environment, that one step of the policy takes."""
    if not isinstance(cfg.env, Pong):
        return 1
    return round(sum(cfg.env.frame_skip) / len(cfg.env.frame_skip)) * (2 if cfg.env.settle else 1)


def rungs(names: Sequence[str] = (), quick: bool = False) -> list[Config]:
    """The Configs of the rungs with these names, all if there are none, in the ladder's order. Raises UserError.

    `quick`: the same on Rally, with 16 games, a smaller network and a larger learning rate.
    """
    known = [cfg.task for cfg in LADDER]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no rung {unknown[0]}: choose from {', '.join(known)}")
    chosen = [cfg for cfg in LADDER if not names or cfg.task in names]
    if not quick:
        return chosen
    fields: dict[str, Any] = {
        "env": Gymnasium("surefoot.lesson.rally:Rally"),
        "network": SmallCNN((8, 16), (4, 2), (2, 2), 64, background=0.0, scale=255.0),
        "num_envs": 16,
        "num_steps": (45,),
        "learning_rate": FixedRate(5e-3),
    }
    return [replace(cfg, **fields, task=f"{cfg.task}-quick") for cfg in chosen]


def jobs(names: Sequence[str], seeds: int, frames: int, run_dir: Path, quick: bool, episodes: int) -> list[Job]:
    """All runs, the first seed of every rung first. Raises UserError."""
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; allowed is at least 1")
    found = []
    for seed in range(1, seeds + 1):
        for cfg in rungs(names, quick):
            steps = frames // frames_per_step(cfg)
            if steps < 1:
                raise UserError(f"frames is {frames}; allowed is at least {frames_per_step(cfg)}")
            how: dict[str, Any] = {"total_steps": steps, "total_iterations": 0, "eval_episodes": episodes, "seed": seed}
            rung = cfg.task.removesuffix("-quick")
            found.append(Job(rung, replace(cfg, **how), run_dir / rung / f"seed-{seed}"))
    return found


def ladder(
    names: Sequence[str] = (),
    seeds: int = 3,
    frames: int = 0,
    run_dir: Path | None = None,
    quick: bool = False,
    episodes: int = 20,
    quiet: bool = False,
) -> Path:
    """Train what is missing of the ladder and write its report; returns the path of report.md.

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
    start, count = monotonic(), 0

    def done(label: str) -> None:
        nonlocal count
        count += 1
        if not quiet:
            print(f"{clock(monotonic() - start)}  {count} of {len(training + measuring)}: {label}", flush=True)

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
        found = [
            Worker(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=f, text=True, start_new_session=True), f)
            for f in files
        ]
        try:
            yield found
        finally:
            for process, _ in found:
                process.terminate()
            for process, _ in found:
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
