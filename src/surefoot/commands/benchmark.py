"""`surefoot bench`: environment steps per second of training, as a whole and by stage, with 1 to N ranks."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from surefoot.config import Config
from surefoot.envs.atari import Atari
from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import EnvSpec
from surefoot.errors import Fault, UserError
from surefoot.output import doing, out
from surefoot.parallel.launch import choose_ranks, die_with_launcher, exit_now, exit_with_error, launch, usable_cores
from surefoot.runs.files import read_named, replace_file

if TYPE_CHECKING:
    from surefoot.algorithm.rollout import Rollout
    from surefoot.algorithm.state import State

WARM_UP = 2  # iterations before the measurement: memory is allocated, PyTorch has chosen its kernels


@dataclass(frozen=True)
class Speed:
    """Environment steps per second of all ranks together; for a stage, as if the other stages took no time."""

    ranks: int
    bare: float
    """the environments alone, with random actions and no preprocessing"""
    emulate: float
    """environments with preprocessing and resets"""
    act: float
    """action selection"""
    learn: float
    """advantages and all epochs of updates"""
    loop: float
    """whole iterations"""


def bare(spec: EnvSpec, seconds: float) -> float:
    """Steps per second of one environment alone in this process; an emulator plays the frames of a step in one call."""
    made: Any = spec.make()
    if isinstance(spec, Gymnasium) and made.masks:
        import numpy as np

        from surefoot.commands.random_play import RandomPlayer

        player, rng, actions = RandomPlayer(made), np.random.default_rng(0), [None] * 512  # chosen when masks are known
        made.reset(1, player.obs)

        def step(action: Any) -> None:
            _, terminated, truncated = made.step(action or player.action(rng), player.obs)
            if terminated or truncated:
                made.reset(1, player.obs)
    elif isinstance(spec, Gymnasium):
        env, space = made.env, made.env.action_space
        space.seed(0)
        actions = [space.sample() for _ in range(512)]
        env.reset(seed=1)

        def step(action: Any) -> None:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
    else:
        import ale_py

        ale, actions = ale_py.ALEInterface(), random.Random(0).choices(made.buttons, k=512)
        ale.setInt("random_seed", 0)
        ale.setFloat("repeat_action_probability", 0.0)
        ale.setInt("frame_skip", spec.frame_skip[-1])
        ale.loadROM(str(ale_py.roms.get_rom_path(spec.game if isinstance(spec, Atari) else "pong")))

        def step(action: Any) -> None:
            ale.act(action)
            if ale.game_over():
                ale.reset_game()

    steps, start = 0, perf_counter()
    while (spent := perf_counter() - start) < seconds:
        try:
            for action in actions:
                step(action)
        except Exception as error:
            raise Fault(f"the environment {spec} failed: {type(error).__name__}: {error}") from error
        steps += len(actions)
    made.close()
    return steps / spent


def measure(cfg: Config, seconds: float) -> Speed:
    """One rank's measurement; the environments alone run on all ranks at once, before training and after it."""
    import torch
    from threadpoolctl import threadpool_limits

    from surefoot.algorithm.callback import Callback
    from surefoot.algorithm.state import initial
    from surefoot.algorithm.train import train
    from surefoot.parallel.heartbeat import VARIABLE, Heartbeat
    from surefoot.parallel.ranks import join

    class Stopwatch(Callback):
        """Measures each stage, and the whole, for `seconds` after the first iterations."""

        begun, ended, steps, first, env_s, act_s, learn_s = float("inf"), 0.0, 0, 0, 0.0, 0.0, 0.0

        def should_stop(self, state: State) -> bool:
            return perf_counter() - self.begun >= seconds and self.steps > 0

        def on_iteration(self, state: State, rollout: Rollout, returns: Any, metrics: Any, learn_s: float) -> None:
            self.ended = perf_counter()
            if state.iteration <= WARM_UP:
                self.begun, self.first = self.ended, state.steps
                return
            self.steps = state.steps - self.first
            self.env_s, self.act_s = self.env_s + rollout.env_s, self.act_s + rollout.act_s
            self.learn_s += learn_s

        def on_dropped_rollout(self, cause: BaseException | None) -> None:
            raise cause or Fault("another rank could not act")

    ranks = join(cfg.timeout, cfg.bf16_compress)
    torch.set_num_threads(1)
    threadpool_limits(1, "blas")
    ranks.barrier()  # all begin together
    before, watch = bare(cfg.env, seconds / 4), Stopwatch()  # never beside others: of some there is one at a time
    state = initial(cfg, ranks, Heartbeat.of(cfg.num_envs // ranks.count, os.environ.get(VARIABLE)))
    train(cfg, state, ranks, watch)
    state.envs.close()
    after = bare(cfg.env, seconds / 4)
    alone = float(ranks.all_reduce_mean(torch.tensor([before, after], dtype=torch.float64)).mean())
    spent = (watch.env_s, watch.act_s, watch.learn_s, watch.ended - watch.begun)
    rates = (alone * ranks.count, *(watch.steps / max(s, 1e-9) for s in spent))
    return Speed(ranks.count, *(round(rate, 1) for rate in rates))


def bench(cfg: Config, seconds: float = 5.0, ranks: int = 0) -> Iterator[Speed]:
    """Measure with `ranks`, or with each of 1, 2, ... ranks that divides the environments, up to the number of cores.

    Raises UserError for a user's mistake, Fault where a rank has failed.
    """
    if not 0 < seconds < float("inf"):
        raise UserError(f"seconds is {seconds}; allowed is above 0, finite")
    possible = [n for n in range(1, usable_cores() + 1) if cfg.num_envs % n == 0]
    return (launch_ranks(cfg, seconds, n) for n in ([choose_ranks(ranks, cfg.num_envs)] if ranks else possible))


def launch_ranks(cfg: Config, seconds: float, count: int) -> Speed:
    """Measure with `count` ranks, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "speed.json")
        order = json.dumps([cfg.to_json(), seconds, str(out)])
        with doing(f"measuring on {count} rank{'s' * (count > 1)}"):
            launch(
                [sys.executable, "-m", "surefoot.commands.benchmark", order], count, cfg.num_envs // count, cfg.timeout
            )
        return Speed(**json.loads(read_named(out)))


def print_bench(cfg: Config, seconds: float, ranks: int, as_json: bool) -> None:
    """Print each measurement when it is ready, or all as one JSON object."""
    speeds = bench(cfg, seconds, ranks)
    if as_json:
        rows = [asdict(speed) for speed in speeds]
        from surefoot.runs.worker import machine

        print(json.dumps({"task": cfg.task, "config": cfg.to_json(), "machine": machine(), "speeds": rows}), file=out())
        return
    rollout = f"{cfg.num_envs} environments x {cfg.num_steps[0]} steps"
    size = cfg.minibatch_size or "the whole rollout"
    updates = f"{cfg.num_epochs} epochs of {cfg.minibatches(cfg.num_steps[0])} minibatches of {size}"
    print(f"{cfg.task}: {rollout}, {updates}", file=out())
    print(f"{'ranks':>5}{'bare':>10}{'emulate':>10}{'act':>10}{'learn':>10}{'loop':>10}   of bare", file=out())
    for s in speeds:
        row = "".join(f"{rate:>10,.0f}" for rate in (s.bare, s.emulate, s.act, s.learn, s.loop))
        print(f"{s.ranks:>5}{row}{s.loop / s.bare:>10.1%}", file=out(), flush=True)
    print(
        "environment steps per second of all ranks; a stage as if the others took no time; bare: environments alone",
        file=out(),
    )


if __name__ == "__main__":  # one rank of a measurement
    die_with_launcher()
    config, duration, where = json.loads(sys.argv[1])
    try:
        speed = measure(Config.from_json(config), duration)
        if int(os.environ["RANK"]) == 0:
            replace_file(Path(where), json.dumps(asdict(speed)).encode())
        exit_now(0)
    except UserError as mistake:
        exit_with_error(mistake)
