"""A run from beginning to end: its directory, training, the closing evaluation, the report card."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from surefoot.config import Config
from surefoot.envs import Env
from surefoot.envs.atari import Pong
from surefoot.errors import UserError
from surefoot.evaluation import Evaluation, evaluate, load_policy
from surefoot.launch import choose_ranks, die_with_launcher, launch, world
from surefoot.loop import train as train_loop
from surefoot.metrics import read
from surefoot.policy import Policy
from surefoot.ranks import Ranks, join
from surefoot.report import Progress, Reporter, call, card, curve
from surefoot.state import State, build, checkpoints, initial, replace_file, restore


@dataclass(frozen=True)
class Run:
    """A run that has ended: where it is, and how good it was."""

    path: Path
    config: Config
    evaluation: Evaluation | None
    steps: int
    seconds: float


def new_dir(task: str) -> Path:
    """runs/TASK-DATE-TIME."""
    if world():
        raise UserError("name a --run-dir: ranks started by torchrun must agree on it")
    return Path("runs") / f"{task.replace('/', '-').replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"


def machine() -> dict[str, Any]:
    """What a run's bits depend on besides its Config."""
    names = ("surefoot", "torch", "numpy", "gymnasium", "ale-py")
    return {
        "git": revision(),
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def revision() -> str | None:
    """The commit of the source tree this package runs from, `+` where it was changed since; None outside of one."""
    where = Path(__file__).parent
    try:
        call = ["git", "describe", "--always", "--dirty=+", "--abbrev=40"]
        return subprocess.run(call, cwd=where, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def read_config(run_dir: Path) -> Config:
    """The Config of a run directory."""
    try:
        return Config.from_json(json.loads((run_dir / "config.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{run_dir}' is not a run directory: its config.json cannot be read ({error})") from error


@contextmanager
def polite_stop(reporter: Reporter) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets the iteration finish and saves; the second ends the program at once."""

    def handle(*_: object) -> None:
        if reporter.stop:
            raise KeyboardInterrupt
        reporter.stop = True

    try:
        old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: its owner handles signals
        yield
        return
    try:
        yield
    finally:
        for s, previous in old.items():
            signal.signal(s, previous)


def start(
    cfg: Config,
    run_dir: Path,
    source: Path | None = None,
    quiet: bool = False,
    ranks: int = 0,
    started: float = 0.0,
    resuming: bool = False,
) -> Run:
    """Train `cfg` in `run_dir` on `ranks` local processes (0: as many as cores allow), or as the rank that this one is.

    `source`: a run or policy file to start from; `started`: when the clock began (perf_counter); `resuming`: the end
    of the run that is there may move. Raises UserError for a user's mistake, SystemExit where a rank has failed and
    said why, or where a signal came when no rank could stop politely.
    """
    count = choose_ranks(world() or ranks, cfg.games)
    if checkpoints(run_dir) and not resuming and read_config(run_dir) != cfg:
        raise UserError(f"'{run_dir}' holds a run with another Config: choose another --run-dir, or resume that one")
    check_fit(cfg, source)
    started = started or perf_counter()
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        write_config(cfg, run_dir)
    try:
        if count == 1 or world():
            code, state = 0, run(cfg, run_dir, source, quiet, started)
            if not first:
                return Run(run_dir, cfg, None, state.steps, state.seconds)
        else:
            order = json.dumps([str(run_dir), str(source) if source else None, quiet, started])
            code = launch([sys.executable, "-m", "surefoot.runs", order], count)
    except KeyboardInterrupt:
        code = 130
    if code:
        if checkpoints(run_dir):
            print(f"what was saved goes on with: {call('resume', run_dir)}", file=sys.stderr)
        raise SystemExit(code)
    return read_run(run_dir)


def check_fit(cfg: Config, source: Path | None) -> None:
    """Refuse, before anything is begun, an environment, network, device or source that cannot be."""
    game = cfg.env.make()
    load_source(build(cfg, game.observation_space, game.action_space), cfg, source)
    game.close()


def load_source(policy: Policy, cfg: Config, source: Path | None) -> None:
    """Give a policy the weights of another run's, where there is one to start from."""
    if source is None:
        return
    theirs, _, facts = load_policy(source)
    try:
        policy.load_state_dict(theirs.state_dict())
    except RuntimeError as error:
        task = facts["task"]
        raise UserError(f"the policy in '{source}' is for the task '{task}' and does not fit '{cfg.task}'") from error


def read_run(run_dir: Path) -> Run:
    """What a run's files say of it."""
    rows = read(run_dir)
    last = rows[-1] if rows else {"step": 0, "seconds": 0.0}
    file = run_dir / "evaluation.json"
    result = None
    if file.exists():
        facts = json.loads(file.read_text())
        result = Evaluation(**{f.name: facts[f.name] for f in fields(Evaluation)})
    return Run(run_dir, read_config(run_dir), result, int(last["step"]), float(last["seconds"]))


def run(cfg: Config, run_dir: Path, source: Path | None, quiet: bool, started: float) -> State:
    """Be one rank of a run: train from its newest checkpoint where it has one, evaluate, write the report card."""
    torch.set_num_threads(1)  # one thread a rank; and the bits depend on it
    ranks = join()
    state = prepare(cfg, run_dir, ranks, source)
    if ranks.rank == 0:
        for name in ("evaluation.json", "report.md", "game.gif"):  # of an earlier policy
            (run_dir / name).unlink(missing_ok=True)
    reporter = Reporter(cfg, run_dir, ranks, state, started, quiet)
    if not quiet and ranks.rank == 0:
        goal = f"{cfg.total_steps:,} decisions" if cfg.total_steps else f"{cfg.total_iterations:,} iterations"
        who = f"{cfg.games} games on {ranks.count} rank{'s' * (ranks.count > 1)}"
        print(f"{cfg.task}: {who}, {goal}, seed {cfg.seed}, into {run_dir}", flush=True)
    try:
        with polite_stop(reporter):
            train_loop(cfg, state, ranks, reporter)
            reporter.save(state)
    finally:
        reporter.close()
    if not ranks.agree(reporter.stop):
        finish(cfg, run_dir, state, ranks, quiet)
    elif ranks.rank == 0 and not quiet:
        print(f"stopped and saved after {state.steps:,} decisions; go on with: {call('resume', run_dir)}", flush=True)
    return state


def prepare(cfg: Config, run_dir: Path, ranks: Ranks, source: Path | None) -> State:
    """A new run's state, or the state of the run that is there; the same on every rank."""
    if checkpoints(run_dir):
        state = restore(cfg, run_dir, ranks)
    else:
        state = initial(cfg, ranks)
        load_source(state.policy, cfg, source)
    mark = torch.tensor([float(state.flat.detach().double().sum()), state.steps, state.rate], dtype=torch.float64)
    everyone = ranks.gather(mark[:, None])
    if not bool((everyone == everyone[:, :1]).all()):
        raise UserError(f"the ranks do not begin at the same point: all must see the same run directory '{run_dir}'")
    return state


def write_config(cfg: Config, run_dir: Path) -> None:
    """Write config.json; raises UserError where the directory cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"config": cfg.to_json(), "machine": machine(), "command": sys.argv}, indent=1)
        replace_file(run_dir / "config.json", text.encode())
    except OSError as error:
        raise UserError(
            f"the run directory '{run_dir}' cannot be written ({error.strerror}): choose another --run-dir"
        ) from error


def finish(cfg: Config, run_dir: Path, state: State, ranks: Ranks, quiet: bool) -> None:
    """Evaluate on all ranks; then rank 0 draws, films, and writes the report card."""
    from surefoot.videos import video

    progress, result, pictures = Progress(quiet or ranks.rank > 0), None, ["curve.png"]
    if cfg.eval_episodes:
        result = evaluate_shared(state.policy, cfg.env, cfg.eval_episodes, cfg.seed, False, ranks, progress)
    if ranks.rank:
        return
    curve(run_dir, run_dir / "curve.png")
    if result is not None:
        replace_file(run_dir / "evaluation.json", json.dumps(result.to_json()).encode())
        progress.show("filming a game", True)
        try:
            pictures.append(video(run_dir, run_dir / "game.gif", cfg.seed, max_steps=4_000).name)
        except UserError as error:  # some environments have no picture; the run is good all the same
            progress.show(f"no film: {error}", True)
    text = card(run_dir, cfg, state, result, pictures)
    if not quiet:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text.replace("![", "- picture: [")))


def evaluate_shared(
    policy: Policy, env: Env, episodes: int, seed: int, greedy: bool, ranks: Ranks, progress: Progress
) -> Evaluation:
    """Evaluate with every rank playing its share of the episodes; the result is whole on rank 0."""
    mine = range(ranks.rank, episodes, ranks.count)

    def show(done: int) -> None:
        progress.show(f"evaluating: {done * ranks.count} of {episodes} games", done == len(mine))

    part = evaluate(policy, env, mine, seed, greedy, progress=show)
    parts = [json.loads(data) for data in ranks.collect_bytes(json.dumps([part.scores, part.lengths]).encode())]
    scores, lengths = ([parts[e % ranks.count][k][e // ranks.count] for e in range(episodes) if parts] for k in (0, 1))
    return replace(part, scores=scores, lengths=lengths)


def resume(run_dir: Path, quiet: bool = False, ranks: int = 0, **changes: Any) -> Run:
    """Go on with a run; `changes` may move its end: total_steps, total_iterations, max_seconds, stop_at."""
    cfg = read_config(run_dir)
    if not checkpoints(run_dir):
        raise UserError(f"'{run_dir}' has no checkpoint to resume from")
    allowed = ("total_steps", "total_iterations", "max_seconds", "stop_at")
    if not set(changes) <= set(allowed):
        raise UserError(
            f"{', '.join(set(changes) - set(allowed))} cannot change on resume: only {', '.join(allowed)} can"
        )
    return start(replace(cfg, **changes), run_dir, quiet=quiet, ranks=ranks, resuming=True)


def evaluate_run(
    source: Path, episodes: int = 100, seed: int = 0, greedy: bool = False, sticky: float = 0.0, env: Env | None = None
) -> Evaluation:
    """Evaluate the policy of a run directory or policy file, on its own environment or another that looks the same."""
    if episodes < 1 or not 0 <= sticky < 1 or not 0 <= seed < 2**63:
        raise UserError(f"episodes {episodes}, sticky {sticky}, seed {seed}: allowed are from 1, in [0, 1), from 0")
    torch.set_num_threads(1)
    policy, own, facts = load_policy(source)
    if env is not None and type(env) is type(own):
        mine, other = own.make(), env.make()
        if (mine.observation_space, mine.action_space) != (other.observation_space, other.action_space):
            raise UserError(
                f"the policy in '{source}' is for the task '{facts['task']}': it sees or does other things here"
            )
    elif env is not None:
        raise UserError(f"the policy in '{source}' is for the task '{facts['task']}', not for {env}")
    env = env or own
    if sticky:
        if not isinstance(env, Pong):
            raise UserError(f"sticky actions are an Atari console's: '{facts['task']}' has none")
        env = replace(env, sticky=sticky)
    return evaluate(policy, env, range(episodes), seed, greedy)


def print_evaluation(result: Evaluation, as_json: bool) -> None:
    """Print an evaluation as one JSON object or as a table."""
    facts = result.to_json()
    if as_json:
        print(json.dumps(facts))
        return
    print(f"{facts['episodes']} full episodes, actions {'greedy' if result.greedy else 'sampled'}, seed {result.seed}")
    print(f"  mean    {facts['mean']:.2f}   (bootstrap 95 % interval {facts['low']:.2f} to {facts['high']:.2f})")
    print(
        f"  median  {facts['median']:.2f}   (from {facts['min']:g} to {facts['max']:g}; deviation {facts['std']:.1f})"
    )
    print(f"  length  {facts['length_mean']:,.0f} decisions; {result.seconds:.0f} s")


if __name__ == "__main__":  # one rank of a run, as `start` launches it
    die_with_launcher()
    torch.set_num_threads(1)
    where, origin, silent, began = json.loads(sys.argv[1])
    try:
        run(read_config(Path(where)), Path(where), Path(origin) if origin else None, silent, began)
    except UserError as mistake:
        print(f"surefoot: {mistake}", file=sys.stderr)
        sys.exit(2)
