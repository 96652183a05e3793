"""The commands of the lesson, as in `cli`: dataclasses of their options."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from surefoot.errors import UserError, needs_extra
from surefoot.paths import absolute
from surefoot.presets import find


@dataclass(frozen=True)
class Exercise:
    """Check a coding exercise of the lesson, or write its template; without NAME: list them."""

    name: tyro.conf.Positional[str] = ""
    """future_return, normalize, surrogate, clipped_surrogate or gae; or a file ending in .py, to check all in it"""
    file: tyro.conf.Positional[Path | None] = None
    """the file with your function; default: NAME.py"""

    def __call__(self) -> None:
        from surefoot.lesson.exercises import exercise

        print(exercise(self.name, self.file))


@dataclass(frozen=True)
class Notebook:
    """Execute a notebook of the lesson, old or new, from its first cell to its last."""

    file: tyro.conf.Positional[Path]
    """the notebook; its `import pong_utils`, `parallelEnv` and `gym` get what surefoot has in their place"""
    out: Path | None = None
    """file to write; default: FILE-executed.ipynb"""
    set: tuple[str, ...] = ()
    """NAME=VALUE ...: assigned after the cell that is tagged "parameters", such as episodes=20"""

    def __call__(self) -> None:
        from surefoot.lesson.notebooks import execute

        print(execute(self.file, self.out, self.set))


@dataclass(frozen=True)
class Ladder:
    """Train the six rungs from REINFORCE to PPO with equal numbers of frames, and report what each idea bought."""

    quick: bool = False
    """on a small task of 10x10 pixels instead of Pong: a minute and a half on two quiet cores"""
    rungs: tuple[str, ...] = ()
    """some of: reinforce normalized future surrogate clipped ppo trpo; default: all but trpo"""
    seeds: int = 3
    """number of runs of each rung, with seeds from 1"""
    frames: int = 0
    """emulated frames of each run; 0: 10,240,000 of Pong, or 57,600 steps if quick"""
    run_dir: Path | None = None
    """directory of the runs and of report.md; what is there continues; default: runs/ladder or runs/ladder-quick"""
    episodes: int = 20
    """episodes of each run's closing evaluation"""
    quiet: bool = False
    """print only where the report is"""

    def __call__(self) -> None:
        from surefoot.lesson.ladder import ladder

        print(ladder(self.rungs, self.seeds, self.frames, self.run_dir, self.quick, self.episodes, self.quiet))


@dataclass(frozen=True)
class Lesson:
    """Serve the lesson, from REINFORCE to PPO: interactive pages for a browser on this machine."""

    port: int = 8421
    """port on 127.0.0.1; where it is taken, the next free one"""
    run: Path | None = None
    """run directory whose curves are shown on the page about Pong"""

    def __call__(self) -> None:
        if self.run and not self.run.is_dir():
            raise UserError(f"there is no run directory '{self.run}'")

        def app() -> Any:
            from surefoot.lesson.server import lesson_app

            return lesson_app(self.run)

        with needs_extra("lesson"):
            from surefoot.lesson.guard import serve

            serve(app, self.port)


@dataclass(frozen=True)
class Watch:
    """Show the policy of a run at play in your browser, the newest one while the run trains, with its curves."""

    run: tyro.conf.Positional[Path]
    """a run directory or policy file"""
    port: int = 8431
    """port on 127.0.0.1; where it is taken, the next free one"""
    task: str | None = None
    """another task to play, with the same observations and actions; default: the policy's own"""
    trust: bool = False
    """run the code that the file names, although it was not written here"""

    def __call__(self) -> None:
        if not self.run.exists():
            raise UserError(f"there is no run '{self.run}': name a run directory or a policy file")
        env = find(self.task).env if self.task else None
        if hasattr(os, "nice"):
            os.nice(10)  # a training may run on the same cores

        def app() -> Any:
            from surefoot.lesson.watch import watch_app

            return watch_app(self.run, env, self.trust)

        with needs_extra("lesson"):
            from surefoot.lesson.guard import serve

            serve(app, self.port)


@dataclass(frozen=True)
class Picture:
    """Draw one of the lesson's figures: cliff, clipped or clipped-explained."""

    name: tyro.conf.Positional[str]
    """cliff, clipped or clipped-explained"""
    out: Path | None = None
    """file to write, .png or .svg; default: NAME.png"""

    def __call__(self) -> None:
        from surefoot.commands.pictures import picture

        print(picture(self.name, self.out))


@dataclass(frozen=True)
class Duel:
    """Play two-player Pong against a policy, in your browser."""

    run: tyro.conf.Positional[Path]
    """a run directory or policy file that plays Pong from pixels"""
    port: int = 8441
    """port on 127.0.0.1; where it is taken, the next free one"""
    trust: bool = False
    """run the code that the file names, although it was not written here"""

    def __call__(self) -> None:
        if not self.run.exists():
            raise UserError(f"there is no run '{self.run}': name a run directory or a policy file")
        with needs_extra("duel"):
            import multi_agent_ale_py  # noqa: F401

        def app() -> Any:
            from surefoot.lesson.duel import duel_app

            return duel_app(self.run, self.trust)

        with needs_extra("lesson"):
            from surefoot.lesson.guard import serve

            serve(app, self.port)


LessonCommand = Lesson | Watch | Duel | Exercise | Notebook | Ladder | Picture


@contextmanager
def watched(task: str, run_dir: str | None) -> Iterator[Path]:
    """Run `surefoot watch` beside a training, in a process that ends with it; yields the run directory."""
    from surefoot.runs.directory import discard, new_dir

    with needs_extra("lesson"):
        import starlette  # noqa: F401
    where = absolute(run_dir) if run_dir else new_dir(task)
    where.mkdir(parents=True, exist_ok=True)
    code = "import sys; from surefoot.parallel.launch import die_with_launcher; die_with_launcher(); "
    code += "from surefoot.commands.cli import main; sys.exit(main())"
    call = [sys.executable, "-c", code, "watch", str(where)]
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=sys.stderr.fileno())
    try:
        yield where
    finally:
        process.terminate()
        process.wait()
        discard(where)
