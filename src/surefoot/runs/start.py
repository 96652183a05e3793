"""Start and resume runs: where a run is written, which run it continues, how many ranks it has. No torch."""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from surefoot.algorithm.given_objective import GivenObjective, require_lawful
from surefoot.config import Config
from surefoot.envs.gym import is_local
from surefoot.envs.registrations import registration
from surefoot.errors import DAMAGE, Fault, UserError, note
from surefoot.models.networks import MLP
from surefoot.output import Progress, doing, out, signs_of_life
from surefoot.parallel.guard import guarded
from surefoot.parallel.launch import choose_ranks, launch, rank_and_world, usable_cores, world
from surefoot.paths import absolute, shown
from surefoot.runs.directory import (
    MAY_CHANGE,
    checkpoints,
    described,
    discard,
    new_dir,
    read_evaluation,
    read_state,
    require_no_link,
    require_ours,
    require_same_config,
    resume_hint,
    unwritable,
)
from surefoot.runs.files import Folder, replace_file
from surefoot.runs.hooks import Hooks
from surefoot.runs.metrics import read
from surefoot.runs.mirror import TAKEN, Mirror, newest_at, place
from surefoot.runs.trust import permit

ALLOW = "resume it with --trust (trust=True)"


Beside = Callable[[Path], AbstractContextManager[None]]


def nothing(_: Path) -> AbstractContextManager[None]:
    """Nothing goes on beside a run."""
    return nullcontext()


def start(
    cfg: Config,
    run_dir: Path | str | Mirror | None = None,
    source: Path | None = None,
    quiet: bool = False,
    ranks: int = 0,
    started: float = 0.0,
    resuming: bool = False,
    hooks: Hooks | None = None,
    ray: str = "",
    beside: Beside = nothing,
) -> tuple[Path, bool]:
    """Train `cfg` in `run_dir` on `ranks` local processes, or as the rank that this one is.

    `run_dir`: None for a new one, a text for an address; `source`: a run or policy file to start from; `ranks`: 0 for
    as many as the run that is there had, or as cores allow; `started`: when the clock began (perf_counter); `resuming`:
    the end of the run that is there may move; `hooks`: called after every iteration; `ray`: the Ray cluster on which
    the ranks are, "local": one that is started here; `beside`: entered meanwhile. Returns the directory, and whether
    the run has come to its end. Raises UserError for a user's mistake, Fault for what it cannot go on with. A signal
    that has stopped the run is raised again when all is saved, and takes its ordinary course: KeyboardInterrupt for
    Ctrl-C, the end of the program for SIGTERM.
    """
    started = started or perf_counter()
    if ray and world():
        raise UserError("RANK and WORLD_SIZE say that this is one rank of a job, and --ray starts ranks: unset them")
    if ray and not ranks:
        raise UserError("name the number of --ranks: with --ray it is not the number of this machine's cores")
    if source:
        source = absolute(source)
    given, (run_dir, mirror) = run_dir, place(run_dir) if run_dir else (None, None)
    if run_dir:
        require_no_link(run_dir)
        require_ours(run_dir)
    objective: Any = cfg.objective if isinstance(cfg.objective, GivenObjective) else None
    if objective:
        require_lawful(objective)
    saved = checkpoints(run_dir) if run_dir else []
    alone = isinstance(cfg.network, MLP)  # one process updates an MLP faster than several that synchronise
    count = choose_ranks(world() or ranks or ranks_of(saved, cfg.num_envs) or int(alone), cfg.num_envs)
    known, hooks = None if is_local(cfg.env) else registration(cfg.env), hooks or Hooks()
    given_here = objective is not None and objective.address() is None
    if (known is None or hooks.names() is None or given_here) and (count > 1 or ray) and not world():
        what, cure = f"'{getattr(cfg.env, 'id', '')}' can be made", "name module:function"
        if known is not None:
            which = f"the objective {objective.name}" if given_here else "a function of stop or metrics"
            what, cure = f"{which} can be called", "take it from a module"
        if ranks > 1 or ray:
            raise UserError(f"{what} in this process alone: for more ranks {cure}")
        note(f"{what} in this process alone, so the run takes one rank; for more {cure}")
        count = 1
    if run_dir and not resuming and (saved or (run_dir / "config.json").exists()):
        require_same_config(cfg, run_dir)
    run_dir = run_dir or new_dir(cfg.task)
    progress = Progress(quiet or rank_and_world()[0] > 0)
    goal = f"{cfg.total_steps:,} steps" if cfg.total_steps else f"{cfg.total_iterations:,} iterations"
    who = f"{cfg.num_envs} environments on {count} rank{'s' * (count > 1)}"
    progress.show(f"{cfg.task}: {who}, {goal}, seed {cfg.seed}, into {shown(run_dir)}", True)
    try:
        with beside(run_dir), signs_of_life(progress), doing(f"{cfg.task}: getting ready"), mirror or nullcontext():
            if not ray and (count == 1 or world()):
                stopped = run_here(cfg, run_dir, source, quiet, started, hooks, mirror)
            else:
                paths, address = [os.path.abspath(path) for path in sys.path], objective and objective.address()
                at = (mirror.address, mirror.command) if mirror else None
                about = [quiet, 0 if ray else started, sys.argv, hooks.names(), address, known, paths]
                order = json.dumps(
                    [cfg.to_json(), str(run_dir), shown(run_dir), at, str(source) if source else None, *about]
                )
            if ray:
                stopped = run_on_ray(ray, count, cfg, mirror.address if mirror else run_dir, order)
            elif count > 1 and not world():
                command = [sys.executable, *(f"-W{filter}" for filter in sys.warnoptions), "-m", "surefoot.runs.worker"]
                how = count, cfg.num_envs // count, cfg.timeout
                stopped = launch([*command, order], *how, f"{cfg.task}: starting {count} ranks")
    except KeyboardInterrupt:
        if hint := resume_hint(run_dir):
            note(hint)
        raise
    except (OSError, Fault) as error:
        fault = unwritable(error, run_dir) if isinstance(error, OSError) else error
        hint = "" if TAKEN in str(fault) else resume_hint(run_dir)
        raise Fault("; ".join(filter(None, (str(fault), hint)))) from error
    finally:
        if given is None:
            discard(run_dir)
    if stopped:
        signal.raise_signal(stopped)
    return run_dir, not stopped


def run_here(
    cfg: Config, run_dir: Path, source: Path | None, quiet: bool, started: float, hooks: Hooks, mirror: Mirror | None
) -> int:
    """One rank, in this process; returns the signal that has stopped it, or 0."""
    collecting = gc.isenabled()
    gc.disable()  # while PyTorch loads, which leaves no garbage: a tenth less time
    try:
        from surefoot.runs.worker import run
    finally:
        if collecting:
            gc.enable()
    with guarded():
        return run(cfg, run_dir, source, quiet, started, hooks, mirror=mirror)


def run_on_ray(address: str, count: int, cfg: Config, run_dir: Path | str, order: str) -> int:
    """Ranks on a Ray cluster; returns as `run_here` does."""
    from surefoot.parallel.ray import launch_on_ray
    from surefoot.runs.worker import obey

    return launch_on_ray(address, count, cfg.num_envs, cfg.timeout, run_dir, obey, newest_at, order)


def start_seeds(
    seeds: int,
    cfg: Config,
    run_dir: Path | str | None = None,
    source: Path | None = None,
    quiet: bool = False,
    ranks: int = 0,
    hooks: Hooks | None = None,
    ray: str = "",
    beside: Beside = nothing,
) -> tuple[Path, bool]:
    """Train `seeds` runs that differ in their seed alone, one after another, and write what they have in common.

    Each lies in `seed-S` of the directory and goes on where one is there; `seeds.json` holds every seed's score in the
    closing evaluation and its best mean of 100 training episodes, and their means. Returns as `start` does.
    """
    given, run_dir = run_dir, absolute(run_dir) if run_dir else new_dir(cfg.task)
    require_our_summary(run_dir)
    scores: dict[str, list[float]] = {"evaluation": [], "best_training": []}
    numbers, finished = range(cfg.seed, cfg.seed + seeds), False
    try:
        for seed in numbers:
            finished = False
            if (run_dir / f"seed-{seed}").is_symlink():
                raise UserError(
                    f"'{shown(run_dir)}/seed-{seed}' is a link, which is not followed: choose another --run-dir"
                )
            how = run_dir / f"seed-{seed}", source, quiet, ranks
            where, finished = start(replace(cfg, seed=seed), *how, hooks=hooks, ray=ray, beside=beside)
            if not finished:
                return run_dir, False
            full = [row["return_mean"] for row in read(where) if row["return_window"] == 100]
            full = [score for score in full if score is not None]
            scores["best_training"] += [max(full)] if full else []
            if evaluation := read_evaluation(where):
                scores["evaluation"].append(evaluation.mean)
    finally:
        if given is None:
            discard(run_dir)
        if not finished and run_dir.exists():
            note(f"all seeds go on with the same command and --run-dir {shlex.quote(shown(run_dir))}")
    facts: dict[str, Any] = {"task": cfg.task, "seeds": list(numbers), **scores}
    for name, values in scores.items():
        if values:
            low, mean, high = min(values), statistics.fmean(values), max(values)
            facts |= {f"{name}_mean": mean, f"{name}_deviation": statistics.pstdev(values)}
            if not quiet:
                what = f"{name.replace('_', ' ')}, {len(values)} seeds"
                print(f"{what}: mean {mean:.2f}, from {low:.2f} to {high:.2f}", file=out())
    replace_file(run_dir / "seeds.json", json.dumps(facts, indent=1).encode())
    return run_dir, True


def require_our_summary(run_dir: Path) -> None:
    """Raise UserError where seeds.json is there and `start_seeds` has not written it."""
    with suppress(OSError), Folder(run_dir) as folder:
        if "seeds.json" not in folder.names():
            return
        with suppress(*DAMAGE):
            if {"task", "seeds"} <= set(json.loads(folder.read("seeds.json"))):
                return
        mine = f"'{shown(run_dir)}' holds seeds.json, which surefoot did not write"
        raise UserError(f"{mine}: choose another --run-dir")


def ranks_of(saved: list[Path], num_envs: int) -> int:
    """How many ranks wrote the newest readable checkpoint; 0 if there is none, or too few cores for so many."""
    for checkpoint in reversed(saved):
        with suppress(*DAMAGE):
            count = int(read_state(checkpoint)["ranks"])
            return count if 0 < count <= usable_cores() and num_envs % count == 0 else 0
    return 0


def is_usable(device: str) -> bool:
    """Whether PyTorch can compute on a device here."""
    if device == "cpu":
        return True
    import torch

    try:
        return torch.zeros(1, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError):
        return False


def resume(
    run: Path | str | Mirror,
    quiet: bool = False,
    ranks: int = 0,
    trust: bool = False,
    hooks: Hooks | None = None,
    objective: Any = None,
    beside: Beside = nothing,
    **changes: Any,
) -> bool:
    """Resume a run; returns whether it has come to its end.

    `changes` may move that (total_steps, total_iterations, max_seconds, stop_at), how the run is looked after
    (save_every, timeout, env_restarts, skip_updates, eval_every, eval_games, eval_episodes), and its device. `trust`:
    run what the run's files say, although it was begun elsewhere. `objective`: the run's, where it was given from
    Python.
    """
    run_dir, mirror = place(run)
    require_no_link(run_dir)
    cfg, file, begun = described(run_dir)
    if objective is not None:
        given = replace(cfg, objective=objective)
        if given.objective != cfg.objective:
            theirs = getattr(cfg.objective, "name", cfg.objective)
            raise UserError(f"the objective is {getattr(given.objective, 'name', objective)}; the run's is {theirs}")
        cfg = given
    permit(cfg.env, file, trust, [(run_dir, begun)], ALLOW)
    if not checkpoints(run_dir):
        raise UserError(f"'{shown(run_dir)}' has no checkpoint to resume from")
    wrong = set(changes) - set(MAY_CHANGE)
    if wrong:
        raise UserError(f"{', '.join(wrong)} cannot change on resume: only {', '.join(MAY_CHANGE)} can")
    if "device" not in changes and not is_usable(cfg.device):
        note(f"device {cfg.device!r} cannot be used here: the run goes on with cpu, the same up to rounding")
        changes["device"] = "cpu"
    cfg = replace(cfg, **changes)
    return start(cfg, mirror or run_dir, quiet=quiet, ranks=ranks, resuming=True, hooks=hooks, beside=beside)[1]
