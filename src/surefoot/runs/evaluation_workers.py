"""Evaluating a run or policy file, in this process or on several: how they are launched, and what each does."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from surefoot.config import Config
from surefoot.envs.atari import Atari, Pong
from surefoot.envs.gym import is_local
from surefoot.envs.interface import EnvSpec, make
from surefoot.errors import Fault, UserError
from surefoot.models.networks import MLP
from surefoot.output import doing
from surefoot.parallel.guard import callers_settings, guarded
from surefoot.parallel.launch import die_with_launcher, exit_now, exit_with_error, launch, usable_cores, workspace
from surefoot.paths import absolute, shown
from surefoot.runs.evaluation import Evaluation, evaluate, in_order, longest, with_stickiness
from surefoot.runs.files import Folder, read_named, replace_file
from surefoot.runs.policy_file import load_policy, policy_bytes


@guarded()
@callers_settings()
def evaluate_run(
    source: Path,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = False,
    sticky: float | None = None,
    env: EnvSpec | None = None,
    ranks: int = 0,
    eval_envs: int = 0,
    eval_max_steps: int = 0,
    progress: Callable[[int], None] | None = None,
    trust: bool = False,
) -> Evaluation:
    """Evaluate the policy of a run directory or policy file, on its own environment or on `env` with the same spaces.

    `sticky`: None for the environment's own; `ranks`: processes that share the episodes, 0 for one where the network is
    an MLP or perhaps only this process can make the environment, otherwise for all cores; `eval_envs`: environments at
    a time, all processes together, 0: as many as training had, at most 32; `eval_max_steps`: an episode that has not
    ended then is cut, 0: never; `env`, `trust`: as for `load_policy`.
    """
    if episodes < 1 or not 0 <= seed < 2**63 or ranks < 0:
        raise UserError(f"episodes {episodes}, seed {seed}, ranks {ranks}: allowed are from 1, from 0, from 0")
    if min(eval_envs, eval_max_steps) < 0:
        raise UserError(f"eval_envs {eval_envs}, eval_max_steps {eval_max_steps}: allowed are numbers from 0")
    if sticky is not None and not 0 <= sticky < 1:
        raise UserError(f"sticky is {sticky}; allowed is from 0 to below 1")
    source = absolute(source)
    policy, trained_in, facts = load_policy(source, env=env, trust=trust)
    if env is not None and type(env) is type(trained_in):
        if env != trained_in and spaces_of(trained_in) != spaces_of(env):
            theirs = f"the policy in '{shown(source)}' is for the task '{facts['task']}'"
            raise UserError(f"{theirs}: its observations or actions differ here")
    elif env is not None:
        raise UserError(f"the policy in '{shown(source)}' is for the task '{facts['task']}', not for {env}")
    env = env or trained_in
    if isinstance(env, Pong | Atari):
        env = env if sticky is None else replace(env, sticky=sticky)
    elif sticky:
        raise UserError(f"sticky actions are an Atari console's: '{facts['task']}' has none")
    if is_local(env) and ranks > 1:
        raise UserError(f"'{env.id}' can be made in this process alone: for more ranks name module:function")
    cfg = Config.from_json({key: facts[key] for key in ("task", "env", "network", "memory")})
    known = isinstance(env, Pong | Atari) or (":" in env.id and not is_local(env))  # other processes can make it
    many = known and not isinstance(cfg.network, MLP)  # an MLP is done before processes have started
    count = min(ranks or (usable_cores() if many else 1), episodes)
    parallel, most = eval_envs or min(32, environments(facts)), longest(env, eval_max_steps)
    if count == 1:
        return evaluate(policy, env, range(episodes), seed, greedy, parallel, progress, max_steps=most)
    start, cfg = perf_counter(), replace(cfg, env=env)
    how = episodes, seed, greedy, -(-parallel // count), most
    parts = evaluate_in_processes(policy_bytes(policy, cfg, 0), *how, count, progress)
    return with_stickiness(
        cfg.env, Evaluation(greedy=greedy, seed=seed, seconds=perf_counter() - start, **in_order(parts))
    )


def spaces_of(env: EnvSpec) -> tuple[Any, Any]:
    """The spaces of an environment, which is closed again: of some there is one at a time."""
    game = make(env)
    game.close()
    return game.observation_space, game.action_space


def environments(facts: dict[str, Any]) -> int:
    """How many environments a policy was trained in; 32 where its file does not say."""
    count = facts.get("num_envs")
    return count if isinstance(count, int) and count > 0 else 32


def evaluate_in_processes(
    policy: bytes,
    episodes: int,
    seed: int,
    greedy: bool,
    parallel: int,
    max_steps: int,
    count: int,
    progress: Callable[[int], None] | None,
) -> list[list[Any]]:
    """What each of `count` processes has played, of which k plays episodes k, k + count, ..., `parallel` at a time.

    Scores, lengths, and how many episodes were cut. `policy`: a policy file's bytes, since the run's own file may
    change meanwhile.
    """
    with workspace() as where:
        replace_file(where / "policy", policy)
        order = json.dumps([str(where), episodes, seed, greedy, parallel, max_steps, sys.path])
        try:
            told = lambda: f"evaluating: {(where / 'played').stat().st_size} of {episodes} episodes"  # noqa: E731
            with counting(where / "played", progress), doing(told):
                launch([sys.executable, "-m", "surefoot.runs.evaluation_workers", order], count, 1, math.inf)
        except UserError as error:
            if isinstance(error, Fault):
                raise
            raise UserError(f"{error}; ranks=1 evaluates in this process, which may be able to make it") from error
        return [json.loads(read_named(where / str(rank))) for rank in range(count)]


@contextmanager
def counting(played: Path, progress: Callable[[int], None] | None) -> Iterator[None]:
    """Report progress from a thread: the file `played` gets one byte for every finished episode."""
    replace_file(played, b"")
    over = threading.Event()

    def look() -> None:
        ended = False
        while progress and not ended:
            ended = over.wait(0.2)
            progress(played.stat().st_size)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def play(folder: Path, episodes: int, seed: int, greedy: bool, parallel: int, max_steps: int) -> None:
    """What one of the processes does."""
    torch.set_num_threads(1)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    policy, env, _ = load_policy(folder / "policy", trust=True)  # the launcher has asked already
    with Folder(folder) as here:
        played = here.descriptor("played", os.O_WRONLY | os.O_APPEND)

        def progress(_: int) -> None:
            os.write(played, b".")

        mine = range(rank, episodes, count)
        part = evaluate(policy, env, mine, seed, greedy, parallel, progress, max_steps=max_steps)
        here.replace(str(rank), json.dumps([part.scores, part.lengths, part.cut]).encode())


if __name__ == "__main__":
    die_with_launcher()
    where, *how, paths = json.loads(sys.argv[1])
    sys.path += [path for path in paths if path not in sys.path]  # this process can import what its launcher can
    try:
        play(Path(where), *how)
        exit_now(0)
    except UserError as mistake:
        exit_with_error(mistake)
