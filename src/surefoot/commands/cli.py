"""The command line: each command is a dataclass of its options; torch and numpy are imported only when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

import surefoot
from surefoot.commands.complaints import expected, following, sentence, timeout_in, with_choices
from surefoot.commands.completion import Shell, script
from surefoot.commands.exits import WITH_ENVIRONMENTS, exit_code, supervised
from surefoot.commands.lessons import LessonCommand, watched
from surefoot.commands.tools import Tool, Tune
from surefoot.commands.whole_numbers import numbers
from surefoot.config import Config
from surefoot.connect.tracking import Tracker, beside, chosen
from surefoot.errors import UserError
from surefoot.output import EVERY, Progress, doing, environments_on_stderr, out, signs_of_life
from surefoot.parallel.guard import end, guarded, hear_exit, interrupt, standard_streams
from surefoot.presets import PRESETS, find

STARTED = time.perf_counter()  # the start of the process, for the time to a score


@dataclass(frozen=True)
class Train:
    """Train a policy on TASK, evaluate it, and write a report card."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """directory or address of the run, where one with the same options is continued; default: runs/TASK-DATE-TIME"""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """start from the policy of this run or policy file"""
    ranks: int = 0
    """processes that share the environments; 0: one per core where the network sees images, otherwise one"""
    ray: str = ""
    """the ranks are on the Ray cluster at this address (HOST:PORT, or auto); without one Ray is started here"""
    seeds: int = 1
    """number of runs, with this seed and the following ones; their scores are summarised"""
    track: Annotated[Tracker | None, tyro.conf.EnumChoicesFromValues] = None
    """record the metrics with wandb, mlflow or trackio, too; where is said by its own environment variables"""
    watch: bool = False
    """show the policy at play in your browser while it trains, as `surefoot watch` does"""
    quiet: bool = False
    """print nothing"""

    def __call__(self) -> None:
        from surefoot.runs.start import start, start_seeds

        if self.seeds < 1 or (self.watch and self.seeds > 1):
            raise UserError(f"seeds is {self.seeds}; allowed is {'1 with --watch' if self.watch else 'at least 1'}")
        if self.watch:
            with watched(self.config.task, self.run_dir) as run_dir:
                dataclasses.replace(self, watch=False, run_dir=str(run_dir))()
            return
        where = self.config, self.run_dir, self.source, self.quiet, self.ranks
        how: dict[str, Any] = {"ray": self.ray, "beside": beside(chosen(self.track))}
        if not (start_seeds(self.seeds, *where, **how) if self.seeds > 1 else start(*where, STARTED, **how))[1]:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, or extend one that has ended."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """the run directory, or its address"""
    total_steps: int | None = None
    """new end of the run, in environment steps of all environments together"""
    total_iterations: int | None = None
    """new end of the run, in iterations (rollouts)"""
    max_seconds: float | None = None
    """stop training after this time"""
    stop_at: float | None = None
    """stop training when the mean score of the last 100 episodes reaches this"""
    save_every: float | None = None
    """seconds between checkpoints"""
    timeout: float | None = None
    """the run ends when an environment or a process has hung for this many seconds"""
    env_restarts: int | None = None
    """environments that crash are recreated, at most this many times"""
    skip_updates: int | None = None
    """updates whose gradient is not finite are skipped, at most this many in the whole run"""
    eval_every: int | None = None
    """environment steps between evaluations during training, of which the best policy is kept; 0: no evaluations"""
    eval_games: int | None = None
    """episodes of each evaluation during training"""
    eval_episodes: int | None = None
    """episodes of the evaluation after training; 0: none"""
    eval_envs: int | None = None
    """environments that an evaluation plays at a time; 0: as many as training has"""
    eval_max_steps: int | None = None
    """evaluations cut an episode that has not ended after this many steps; 0: never"""
    device: str | None = None
    """device of the network; where the run's own is not here: cpu"""
    ranks: int = 0
    """processes that share the environments; 0: as many as the run had"""
    track: Annotated[Tracker | None, tyro.conf.EnumChoicesFromValues] = None
    """record the metrics with wandb, mlflow or trackio, too; default: with the one that has recorded the run"""
    trust: bool = False
    """run the code that the run's files name, although it was not begun here"""
    quiet: bool = False
    """print nothing"""

    def __call__(self) -> None:
        from surefoot.runs.directory import MAY_CHANGE
        from surefoot.runs.start import resume

        changes = {k: getattr(self, k) for k in MAY_CHANGE if getattr(self, k) is not None}
        how = beside(chosen(self.track))
        if not resume(self.run, self.quiet, self.ranks, self.trust, beside=how, **changes):
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Evaluate:
    """Play episodes with fresh seeds and report the score with its confidence interval."""

    run: tyro.conf.Positional[Path]
    """a run directory or policy file"""
    episodes: int = 100
    """number of episodes"""
    seed: int = 0
    """seed of the environments and the sampled actions"""
    greedy: bool = False
    """always take the most probable action"""
    sticky: float | None = None
    """probability at each frame that the previous action is repeated (Atari); default: the task's"""
    task: str | None = None
    """another task to play, with the same observations and actions; default: the policy's own"""
    trust: bool = False
    """run the code that the file names, although it was not written here"""
    ranks: int = 0
    """processes that share the episodes; 0: one per core for Atari and module:function with images, otherwise one"""
    eval_envs: int = 0
    """environments played at a time, all processes together; 0: as many as training had, at most 32"""
    eval_max_steps: int = 27_000
    """cut an episode that has not ended after this many steps, and say so; 0: never (nor Atari's)"""
    json: bool = False
    """print one JSON object instead of a table"""

    def __call__(self) -> None:
        from surefoot.commands.show_evaluation import on_terminal, print_evaluation
        from surefoot.runs.evaluation_workers import evaluate_run

        env = find(self.task).env if self.task else None
        how = self.episodes, self.seed, self.greedy, self.sticky, env, self.ranks, self.eval_envs, self.eval_max_steps
        with on_terminal(self.episodes, self.json) as progress:
            result = evaluate_run(self.run, *how, progress, self.trust)
        print_evaluation(result, self.json)


@dataclass(frozen=True)
class Video:
    """Record an episode as a video, with action probabilities and value beside the frames."""

    run: tyro.conf.Positional[Path]
    """a run directory or policy file"""
    out: Path | None = None
    """file to write, .mp4 or .gif; default: game.mp4 in the run directory"""
    seed: int = 0
    """seed of the environment and the sampled actions"""
    greedy: bool = False
    """always take the most probable action"""
    every: int = 0
    """steps from one frame of the video to the next; 0: 1 for mp4, 4 for gif"""
    max_steps: int = 0
    """stop after this many steps; 0: at the end of the episode"""
    task: str | None = None
    """another task to play, with the same observations and actions; default: the policy's own"""
    trust: bool = False
    """run the code that the file names, although it was not written here"""

    def __call__(self) -> None:
        from surefoot.runs.video import video

        env = find(self.task).env if self.task else None
        how = self.seed, self.greedy, self.every, self.max_steps, env, self.trust
        print(video(self.run, self.out, *how), file=out())


@dataclass(frozen=True)
class Summary:
    """List the layers of TASK's network: output shapes, parameters, and layers with more outputs than inputs."""

    config: Annotated[Config, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        from surefoot.commands.summary import table

        print(table(self.config), file=out())


@dataclass(frozen=True)
class Bench:
    """Measure environment steps per second of TASK on this machine, and those of its environment alone."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    seconds: float = 5.0
    """duration of each measurement"""
    ranks: int = 0
    """processes that share the environments; 0: a measurement for each of 1, 2, ... up to the number of cores"""
    json: bool = False
    """print one JSON object instead of a table"""

    def __call__(self) -> None:
        from surefoot.commands.benchmark import print_bench

        print_bench(self.config, self.seconds, self.ranks, self.json)


@dataclass(frozen=True)
class Completion:
    """Print the script with which bash, zsh or fish completes commands and options."""

    shell: Annotated[Shell, tyro.conf.Positional, tyro.conf.EnumChoicesFromValues]
    """bash, zsh or fish"""

    def __call__(self) -> None:
        print(script(self.shell, COMMANDS, TAKES_TASK))


Command = Train | Resume | Evaluate | Video | Tool | Summary | Bench | LessonCommand | Completion
COMMANDS: dict[str, type[Command]] = {c.__name__.lower(): c for c in get_args(Command)}
TAKES = {"plot": " RUN...", "runs": " DIR", "completion": " SHELL", "doctor": " TASK", "picture": " NAME"}
TAKES |= {"exercise": " NAME", "lesson": "", "notebook": " FILE", "ladder": ""}
QUIET = {"--quiet", "--json", "-h", "--help"}
TAKES_TASK: dict[str, Callable[[Config], Command]] = {"train": Train, "summary": Summary, "bench": Bench, "tune": Tune}


def usage() -> str:
    """The text of `surefoot --help`."""
    lines = ["usage: surefoot COMMAND ...", "", "Trains policies with policy gradients, from REINFORCE to PPO.", ""]
    for name, command in COMMANDS.items():
        what = name + (" TASK" if name in TAKES_TASK else TAKES.get(name, " RUN"))
        lines.append(f"  {what:<16} {command.__doc__}")
    lines += [
        "",
        f"TASK is a preset ({', '.join(PRESETS)})",
        "or any Gymnasium id, an Atari game such as ALE/Breakout-v5, or module:function, which makes an environment.",
        "`surefoot COMMAND --help` lists the options of a command; `surefoot train TASK --help` all settings of a run.",
    ]
    return "\n".join(lines)


def parse(args: Sequence[str]) -> Command:
    """The command with its options from the arguments; raises UserError."""
    if not args or args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, 1) if args else []
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise UserError(f"there is no command '{args[0] if args else ''}': {hint}")
    name, rest, default = args[0], list(args[1:]), dict[str, Any]()
    if name in TAKES_TASK:
        if not rest:
            raise UserError(f"{name} needs a task: one of {', '.join(PRESETS)}, or a Gymnasium id")
        task: Any = "pong" if rest[0] in ("-h", "--help") else rest.pop(0)
        if task.endswith(".json"):
            from surefoot.connect.tune import read_preset

            task = read_preset(Path(task))
        kwargs, wrappers = (following(rest, f"--env.{field}") for field in ("kwargs", "wrappers"))
        config = find(task, [text for text in kwargs if "=" in text], wrappers, expected(rest), **timeout_in(rest))
        default, rest = {"default": TAKES_TASK[name](config)}, with_choices(rest, config)
    for i in [i for i, word in enumerate(rest) if word == "--ray" and (rest[i + 1 : i + 2] or ["-"])[0][0:1] == "-"]:
        rest[i] = "--ray=local"
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(out()):
            command: Command = tyro.cli(
                COMMANDS[name],
                prog=f"surefoot {name}" + (" TASK" if name in TAKES_TASK else ""),
                args=rest,
                config=(tyro.conf.CascadeSubcommandArgs,),
                registry=numbers,
                **default,
            )
            return command
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(sentence(complaint.getvalue(), COMMANDS[name], default.get("default"), rest)) from None


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a user's mistake, 1 for a Fault, 130 after a signal.

    `args`: None for those of the program, which then is over: no thread of an environment keeps it.
    """
    threads, whole, words = threading.enumerate(), args is None, sys.argv[1:] if args is None else args
    if whole:
        supervised(words)
    code = run_command(words, whole)
    if whole:
        end(threads, code)
    return code


@guarded()
def run_command(args: Sequence[str], whole: bool) -> int:
    """`main`, but for the program's end."""
    standard_streams()
    with contextlib.suppress(OSError):  # where the present directory is gone
        sys.path += {os.getcwd()} - {*sys.path}  # for a user's module, as with `python -m surefoot`
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)  # ends the process as Ctrl-C does
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks a training run to save; ignored until there is one
    try:
        if not args or args[0] in ("-h", "--help"):
            print(usage(), flush=True)
        elif args[0] == "--version":
            print(f"surefoot {surefoot.__version__}", flush=True)
        else:
            with ExitStack() as stack:
                if args[0] in WITH_ENVIRONMENTS:
                    if whole:
                        hear_exit()
                    stack.enter_context(environments_on_stderr(for_good=whole))
                    where: Any = () if args[0] in ("train", "resume") else (EVERY, sys.stderr, "surefoot: ")
                    stack.enter_context(signs_of_life(Progress(bool(QUIET & {*args}), *where)))
                    stack.enter_context(doing(f"{' '.join(args[:2])}: getting ready"))
                parse(args)()
                print(end="", file=out(), flush=True)
    except BaseException as error:
        return exit_code(error, args)
    return 0
