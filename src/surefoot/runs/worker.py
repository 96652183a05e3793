"""One rank of a run from beginning to end: training, the closing evaluation, the report card."""

from __future__ import annotations

import functools
import json
import os
import platform
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from surefoot.algorithm.given_objective import GivenObjective
from surefoot.algorithm.running_stats import centers
from surefoot.algorithm.state import State, initial
from surefoot.algorithm.train import train as train_loop
from surefoot.config import Config
from surefoot.envs.registrations import register
from surefoot.envs.vector import replays
from surefoot.errors import OURS, UserError, needs_extra, note, said
from surefoot.models.policy import Policy, bf16_units
from surefoot.other_words import kebab
from surefoot.output import Progress, adopt_stdout, doing, signs_of_life
from surefoot.parallel.guard import callers_settings, guarded, is_supervised
from surefoot.parallel.heartbeat import VARIABLE, Heartbeat
from surefoot.parallel.launch import EXIT_STOPPED, die_with_launcher, exit_now, exit_with_error, stop_signals
from surefoot.parallel.ranks import Ranks, join
from surefoot.parallel.watch import watch_over
from surefoot.paths import absolute
from surefoot.runs.checkpoint import before_it_was_stopped, moved, restore
from surefoot.runs.directory import FORMAT, call, checkpoints, history, unwritable
from surefoot.runs.evaluation import evaluate_shared
from surefoot.runs.files import Folder, lock_run, replace_file, seal
from surefoot.runs.hooks import Hooks
from surefoot.runs.mirror import Mirror
from surefoot.runs.policy_file import BEST, NO_RETURNS, load_policy, read_policy
from surefoot.runs.report_card import card, curve
from surefoot.runs.reporter import Reporter
from surefoot.runs.trust import own_seal
from surefoot.versions import require_versions


def run(
    cfg: Config,
    run_dir: Path,
    source: Path | None,
    quiet: bool,
    started: float,
    hooks: Hooks | None = None,
    listen: Callable[[Reporter], None] = lambda _: None,
    mirror: Mirror | None = None,
) -> int:
    """Run one rank: train, from the newest checkpoint if there is one, evaluate, write the report card.

    `listen` is given what may be asked to stop or save where no signals come; `mirror`: of a run at an address, whose
    ranks share no directory. Returns 0 where the run has come to its end, otherwise the signal that has stopped it.
    """
    require_versions()
    ranks = join(cfg.timeout, cfg.bf16_compress)
    shared = os.environ.get(VARIABLE)
    heartbeat = Heartbeat.of(cfg.num_envs // ranks.count, shared)
    with ExitStack() as stack:
        stack.enter_context(signs_of_life(Progress(quiet or ranks.rank > 0)))
        stack.enter_context(callers_settings())
        stack.enter_context(threadpool_limits(1, "blas"))  # NumPy's
        hung = stack.enter_context(watch_over(heartbeat, cfg.timeout, ranks.rank)) if shared is None else []
        stack.enter_context(doing(lambda: f"{cfg.task}: {heartbeat.activity() or 'getting ready'}"))
        state = initial(cfg, ranks, heartbeat)
        stack.callback(state.envs.close)
        *moments, state.reward_shift = load_source(state.policy, cfg, source)
        state.return_moments = tuple(moments)
        state.ema_params.copy_(state.flat.detach())
        if ranks.rank == 0:
            if mirror:
                mirror.take()
            stack.enter_context(lock_run(run_dir))
        ranks.any(False)  # no rank reads the directory before rank 0 has locked it
        if mirror and ranks.rank:
            mirror.fetch()
        prepare(cfg, state, run_dir, ranks)
        reporter = Reporter(cfg, run_dir, ranks, state, started, quiet, hooks, None if ranks.rank else mirror)
        stack.callback(reporter.close)
        listen(reporter)
        stack.enter_context(doing(reporter.status))
        stack.callback(heartbeat.end)
        if ranks.any(reporter.should_stop(state)) and (run_dir / "report.md").exists():
            return 0  # it was finished before
        if ranks.rank == 0:
            write_config(cfg, run_dir)
            begun = () if state.steps else (BEST,)
            with Folder(run_dir) as folder:
                for name in ("evaluation.json", "report.md", "game.gif", *begun):  # of an earlier policy
                    folder.remove(name)
            if mirror:
                mirror.save()
        with graceful_shutdown(reporter, again=shared is not None or is_supervised()):
            train_loop(cfg, state, ranks, reporter)
            heartbeat.end()
            reporter.on_save(state, last=True)
        unsaved = reporter.mirror and reporter.mirror.finish(cfg.timeout)
        fault = unsaved or reporter.fault or next(iter(hung), None)
        failed = ranks.any(fault is not None)
        if fault:
            raise fault
        stopped = ranks.any(failed or reporter.stop)
        if not stopped:
            if mirror:
                share_best(run_dir, ranks)
            finish(cfg, run_dir, state, ranks, quiet)
            if reporter.mirror and (unsaved := reporter.mirror.finish(cfg.timeout)):
                raise unsaved
        elif not failed:
            done = f"stopped and saved after {state.steps:,} steps"
            reporter.say(f"{done}; go on with: {call('resume', run_dir)}")
    return (reporter.signal or signal.SIGTERM) if stopped else 0  # on another rank, perhaps


def load_source(policy: Policy, cfg: Config, source: Path | None) -> Any:
    """Load the parameters of `source`'s policy, if there is one; returns its State's `returns`."""
    if source is None:
        return NO_RETURNS
    _, facts, tensors = read_policy(source)  # the file's environment is not needed, and so not made
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        task, theirs, here = facts["task"], facts["memory"]["type"], type(cfg.memory).__name__
        if theirs != here:
            what = f"the policy in '{source}' has memory {theirs}, this run's {here}"
            raise UserError(
                f"{what}: train with memory:{kebab(theirs)} (memory={theirs}()), or without --from"
            ) from error
        raise UserError(f"the policy in '{source}' is for the task '{task}' and does not fit '{cfg.task}'") from error
    return facts["returns"] if centers(cfg) or not facts["returns"][3] else (*NO_RETURNS[:3], 0.0)


def prepare(cfg: Config, state: State, run_dir: Path, ranks: Ranks) -> None:
    """Restore the newest checkpoint, if there is one; make sure that all ranks begin with the same parameters."""
    saved = checkpoints(run_dir)
    require_equal(zlib.crc32(repr([checkpoint.name for checkpoint in saved]).encode()), run_dir, ranks)
    if saved:
        before, now = (history(run_dir) or [{}])[-1], machine()
        changed = [what for what in ("versions", "cpu", "bf16_units") if before.get(what) != now[what]]
        if changed and ranks.rank == 0:
            note(f"the run goes on with other {' and '.join(changed)}: the same up to rounding")
        lost = restore(state, run_dir, ranks)
        if lost and not cfg.from_reset:
            note(f"environments {lost} did not replay to where they were and begin new episodes: this run is not exact")
        if jump := moved(before_it_was_stopped(run_dir, state, cfg), cfg, state):
            note(jump)
        if state.ranks not in (0, ranks.count) and ranks.rank == 0:
            note(f"the run had {state.ranks} ranks and now has {ranks.count}: the same up to the order of sums")
    require_equal(float(state.flat.detach().cpu().double().sum()), run_dir, ranks)


def share_best(run_dir: Path, ranks: Ranks) -> None:
    """Have rank 0's best policy, or none, in every rank's directory."""
    with Folder(run_dir) as folder:
        best = ranks.all_gather_bytes(folder.read(BEST) if ranks.rank == 0 and folder.has(BEST) else b"")[0]
        if ranks.rank:
            folder.replace(BEST, best) if best else folder.remove(BEST)


def require_equal(number: float, run_dir: Path, ranks: Ranks) -> None:
    """Raise UserError where the ranks have different numbers: they do not read the same directory."""
    everyone = ranks.gather_columns(torch.tensor([[number]], dtype=torch.float64))
    if not bool((everyone == everyone[:, :1]).all()):
        raise UserError(f"the ranks do not begin at the same point: all must see the same run directory '{run_dir}'")


def write_config(cfg: Config, run_dir: Path) -> None:
    """Write config.json: the Config, and the commands and machines of this run so far."""
    before = history(run_dir) if checkpoints(run_dir) else []
    facts = {
        "format": FORMAT,
        "config": cfg.to_json(),
        "begun": own_seal(run_dir, cfg.env),
        "history": [*before, {"command": sys.argv, **machine()}],
    }
    replace_file(run_dir / "config.json", seal(facts))


@functools.cache  # of the code that has been imported, whatever becomes of its files
def machine() -> dict[str, Any]:
    """Versions and hardware: what a run's bits depend on besides its Config."""
    names = ("surefoot", "torch", "numpy", "gymnasium", "ale-py")
    return {
        "git": revision(),
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16_units": bf16_units(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def revision() -> str | None:
    """The commit of the source tree this package runs from, `+` where it was changed since; None outside of one."""
    where = Path(__file__).parent
    try:
        call = ["git", "describe", "--always", "--dirty=+", "--abbrev=40"]
        return subprocess.run(call, cwd=where, capture_output=True, check=True).stdout.decode("ascii").strip() or None
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


@contextmanager
def graceful_shutdown(reporter: Reporter, again: bool) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops and saves, the second ends the program at once; SIGUSR1 saves and goes on.

    `again`: more of them may be meant politely: whoever signals a whole process group reaches a rank directly and
    through its launcher, which has other means to end it.
    """

    def stop(number: int, _: object) -> None:
        if not reporter.stop:
            reporter.halt(number)
        elif not again:
            raise KeyboardInterrupt

    def save(*_: object) -> None:
        reporter.save_now = True

    wanted: dict[int, Any] = dict.fromkeys(stop_signals(), stop)
    if hasattr(signal, "SIGUSR1"):
        wanted[signal.SIGUSR1] = save
    try:
        old = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    except ValueError:  # not the main thread: its owner handles signals
        yield
        return
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def finish(cfg: Config, run_dir: Path, state: State, ranks: Ranks, quiet: bool) -> None:
    """Evaluate on all ranks; then rank 0 draws, films, and writes the report card."""
    from surefoot.runs.video import video

    progress, result, pictures = Progress(quiet or ranks.rank > 0), None, ["curve.png"]
    state.envs.close()  # of some simulators there is one at a time
    several = cfg.num_envs > 1  # otherwise it may be a machine, which is not moved without need
    with doing("playing an episode of training again"):
        alike = ranks.rank > 0 or not several or replays(cfg.env, state.env_snapshot, state.envs.indices[0])
    if not alike:
        what = "an episode of training, played again in a new environment with the same seed and actions, was another"
        note(f"{what}: resumed runs begin new episodes; where it carries something over, --env.remake may cure it")
    if cfg.eval_episodes:
        policy = load_policy(run_dir, cfg.device, cfg.env)[0] if (run_dir / BEST).exists() else state.ema_policy()
        episodes = range(cfg.eval_episodes)
        result = evaluate_shared(policy, cfg, episodes, state, ranks, progress.show)
    if ranks.rank:
        return
    if result is not None:
        replace_file(run_dir / "evaluation.json", json.dumps(result.to_json()).encode())
    try:
        with doing("drawing the curve"), needs_extra("plots"):
            curve(run_dir, run_dir / "curve.png")
    except UserError as error:
        pictures = []
        note(f"no curve: {error}")
    if result is not None:
        progress.show("filming an episode", True)
        try:
            with doing("filming an episode"):
                pictures.append(video(run_dir, run_dir / "game.gif", cfg.seed, max_steps=4_000, env=cfg.env).name)
        except OURS:
            raise
        except BaseException as error:  # a film is not worth a run
            note(f"no film: {said(error)}")
    text = card(run_dir, cfg, state, result, pictures)
    if not progress.quiet:
        from rich.console import Console
        from rich.markdown import Markdown

        with (console := Console(file=progress.stream)).capture() as picture:
            console.print(Markdown(text.replace("![", "- picture: [")))
        progress.write(picture.get(), "")


def obey(order: str, listen: Callable[[Reporter], None] = lambda _: None) -> int:
    """Run the rank of a run that `runs.start` has described; returns as `run` does. Raises UserError."""
    config, where, typed, at, origin, silent, began, sys.argv, named, objective_at, known, paths = json.loads(order)
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]  # as its launcher finds modules
    mirror, source = Mirror(*at) if at else None, Path(origin) if origin else None
    run_dir = mirror.folder if mirror else absolute(where, typed)
    try:
        with closing(mirror) if mirror else nullcontext(), guarded():
            register(known)
            cfg = Config.from_json(config)
            objective: Any = GivenObjective.at_address(*objective_at) if objective_at else cfg.objective
            how = run_dir, source, silent, began or perf_counter(), Hooks.named(named), listen, mirror
            return run(replace(cfg, objective=objective), *how)
    except OSError as error:
        raise unwritable(error, run_dir) from error


if __name__ == "__main__":  # one rank of a run, as `runs.start` launches it
    die_with_launcher()
    adopt_stdout()
    try:
        exit_now(EXIT_STOPPED if obey(sys.argv[1]) else 0)
    except UserError as error:
        exit_with_error(error)
