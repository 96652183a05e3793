"""The commands that connect runs with other tools, as in `cli`: dataclasses of their options."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from surefoot.config import Config
from surefoot.errors import UserError, needs_extra
from surefoot.output import out
from surefoot.paths import is_address
from surefoot.presets import find


@dataclass(frozen=True)
class Export:
    """Write a policy for other programs as an ONNX graph, or its episodes as a dataset of Minari's."""

    run: tyro.conf.Positional[Path]
    """a run directory or policy file"""
    onnx: Path | None = None
    """file to write, .onnx: a graph from the environment's observation to its action"""
    minari: str | None = None
    """id of the dataset to make, such as cartpole/surefoot-v0, where Minari keeps its own (MINARI_DATASETS_PATH)"""
    episodes: int = 100
    """number of the dataset's episodes, the ones that `surefoot evaluate` plays with this seed"""
    seed: int = 0
    """seed of these episodes and their sampled actions"""
    greedy: bool = False
    """always take the most probable action in them"""
    eval_max_steps: int = 27_000
    """cut one that has not ended after this many steps; 0: never"""
    task: str | None = None
    """another task with the same observations and actions, whose spaces are taken; default: the policy's own"""
    trust: bool = False
    """run the code that the file names, although it was not written here"""

    def __call__(self) -> None:
        if self.onnx is None and self.minari is None:
            raise UserError("name what to write: --onnx FILE or --minari DATASET")
        env = find(self.task).env if self.task else None
        if self.onnx is not None:
            with needs_extra("onnx"):
                import onnxruntime  # noqa: F401
                import onnxscript  # noqa: F401

                from surefoot.connect.export import export

            file, largest = export(self.run, self.onnx, env, self.trust)
            print(f"{file}, which differs from PyTorch by at most {largest:.1e}", file=out())
        if self.minari is not None:
            with needs_extra("minari"):
                from surefoot.connect.minari import export_minari

                how = self.episodes, self.seed, self.greedy, env, self.trust, self.eval_max_steps
                made = export_minari(self.run, self.minari, *how)
            print(f"{made.id}: {made.total_episodes} episodes, {made.total_steps:,} steps", file=out())


@dataclass(frozen=True)
class Plot:
    """Draw learning curves over steps and over time, with bands over the seeds of equal runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, or folders that hold them"""
    by: tuple[str, ...] = ()
    """settings whose values make the groups, such as objective.clip-range; default: all in which the runs differ"""
    metric: str = "return_mean"
    """key of metrics.jsonl"""
    out: Path = Path("curves.png")
    """file to write, .png, .svg or .pdf"""

    def __call__(self) -> None:
        from surefoot.connect.plots import plot

        print(plot(self.runs, self.out, self.by, self.metric), file=out())


@dataclass(frozen=True)
class Runs:
    """List the runs below DIR: task, seed, steps, score, time, state; or compare the settings of two."""

    dir: tyro.conf.Positional[Path] = Path("runs")
    """a folder of runs"""
    diff: tuple[Path, Path] | None = None
    """two run directories: the settings in which they differ"""
    json: bool = False
    """print JSON instead of a table"""

    def __call__(self) -> None:
        from surefoot.connect.listing import columns, difference, list_runs, table

        if self.diff:
            rows = difference(*self.diff)
            text = columns([("setting", *map(str, self.diff)), *rows]) if rows else "they have the same settings"
            print(json.dumps({name: both for name, *both in rows}) if self.json else text, file=out())
            return
        runs = list_runs(self.dir)
        rows_of = [dataclasses.asdict(run) | {"path": str(run.path)} for run in runs]
        print(json.dumps(rows_of) if self.json else table(runs, self.dir), file=out())


@dataclass(frozen=True)
class Push:
    """Publish a run's policy on the Hugging Face Hub, with a model card, its curve and a film."""

    run: tyro.conf.Positional[Path]
    """a run directory"""
    repo: tyro.conf.Positional[str]
    """USER/NAME"""
    private: bool = False
    """for yourself alone, where it is a new one"""
    trust: bool = False
    """run the code that the run's files name, although it was not begun here"""

    def __call__(self) -> None:
        with needs_extra("hub"):
            from surefoot.connect.hub import push

        print(push(self.run, self.repo, self.private, self.trust), file=out())


@dataclass(frozen=True)
class Pull:
    """Download a policy from the Hugging Face Hub, or a run from its address; nothing in it is run."""

    repo: tyro.conf.Positional[str]
    """USER/NAME, or an address"""
    into: Path | None = None
    """the folder to make; default: NAME"""
    revision: str | None = None
    """branch, tag or commit"""

    def __call__(self) -> None:
        if is_address(self.repo):
            from surefoot.runs.mirror import bring as pull
        else:
            with needs_extra("hub"):
                from surefoot.connect.hub import pull

        print(pull(self.repo, self.into, self.revision), file=out())


@dataclass(frozen=True)
class Doctor:
    """Say what this machine and installation can do, how long `pong` will take; with TASK what is wrong with it."""

    task: tyro.conf.Positional[str | None] = None
    """an environment to examine: spaces, seeds, replay, determinism, speed, and what surefoot would choose"""
    seconds: float = 2.0
    """duration of the measurement"""

    def __call__(self) -> None:
        from surefoot.commands.doctor import doctor

        for name, text in doctor(self.task, self.seconds):
            print(f"{name:<12} {text}", file=out(), flush=True)


@dataclass(frozen=True)
class Tune:
    """Search settings for TASK with Optuna, and train what was found beside the default on fresh seeds."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    trials: int = 30
    """number of trials, each a run of --total-steps; bad ones are pruned"""
    processes: int = 1
    """trials at a time"""
    ray: str = ""
    """the trials run on the Ray cluster at this address (HOST:PORT, or auto); without one Ray is started here"""
    run_dir: Path | None = None
    """directory of the search, which goes on there if it was stopped; default: runs/tune-TASK"""
    seeds: int = 3
    """runs of the best and of the default, with seeds that no trial has seen"""
    quiet: bool = False
    """print only where the results are"""

    def __call__(self) -> None:
        with needs_extra("tune"):
            import optuna  # noqa: F401
        from surefoot.connect.tune import PRESET, tune
        from surefoot.connect.tune_ray import search_on

        how = self.trials, self.processes, self.run_dir, self.seeds, self.quiet, search_on(self.ray)
        print(tune(self.config, *how) / PRESET, file=out())


Tool = Export | Plot | Runs | Push | Pull | Doctor | Tune
