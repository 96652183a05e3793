"""What several test files need: a first batch to learn from, comparisons of runs, a callback that only counts."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import surefoot
from surefoot.algorithm.callback import Callback
from surefoot.algorithm.rollout import Rollout, collect
from surefoot.algorithm.state import State, flat_parameters, initial
from surefoot.algorithm.update import Batch, minibatches
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium, describe
from surefoot.models.policy import Policy
from surefoot.parallel.ranks import Alone
from surefoot.runs.metrics import read
from surefoot.runs.reporter import Reporter

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY: dict[str, Any] = {
    "num_envs": 2,
    "num_steps": (8,),
    "minibatch_size": 8,
    "num_epochs": 1,
    "total_steps": 48,
    "eval_episodes": 1,
}
TIMES = {"seconds", "steps_per_second", "env_s", "act_s", "learn_s"}


def blocks() -> list[str]:
    """The indented blocks of README and documentation."""
    found = (re.findall(r"(?:^(?:    .*)?\n)+", page.read_text(encoding="utf-8"), re.MULTILINE) for page in PAGES)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for page in found for block in page]


def block_with(text: str) -> str:
    """The one of them that holds this text."""
    (block,) = [block for block in blocks() if text in block]
    return block


def first_batch(cfg: Config) -> tuple[State, Rollout, Batch]:
    """A new run in float64, its first rollout, and all of it as one batch with random advantages and returns."""
    state = initial(cfg, Alone())
    state.policy.double()
    vars(state).update(flat_parameters(state.policy, cfg, Alone()))
    rollout = collect(
        state.policy, state.envs, torch.rand(16, cfg.num_envs, generator=torch.Generator().manual_seed(0))
    )
    advantage, returns = (
        torch.randn(16, cfg.num_envs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in (1, 2)
    )
    whole = replace(cfg, minibatch_size=0)
    return state, rollout, next(minibatches(rollout, advantage, returns, whole, 0, 0, slice(0, cfg.num_envs), True))


def state_of(policy: Policy, cfg: Config, fast: bool = True) -> State:
    """A new run with this policy; `fast`: it learns by its NumPy twin where it has one."""
    state = initial(cfg, Alone())
    state.envs.close()
    state.policy = policy
    vars(state).update(flat_parameters(policy, cfg, Alone()))
    if not fast:
        state.mlp = None
    return state


class Until(Callback):
    """Stops training after so many steps, and does nothing else."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def should_stop(self, state: State) -> bool:
        return state.steps >= self.steps


def rows(run_dir: Path) -> list[dict[str, object]]:
    """The metrics of a run without times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read(run_dir)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The parameters of a run's policy."""
    return surefoot.load_policy(run_dir)[0].state_dict()


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs have the same metrics and the same policy, bit for bit."""
    assert rows(a) == rows(b)
    assert all(torch.equal(x, weights(b)[k]) for k, x in weights(a).items())


def interrupt_at(iteration: int) -> type[Reporter]:
    """A reporter that sends SIGTERM to its own process at the end of an iteration."""

    class Interrupted(Reporter):
        def on_iteration(self, state, *rest):  # type: ignore[no-untyped-def]
            super().on_iteration(state, *rest)
            if state.iteration == iteration:
                os.kill(os.getpid(), signal.SIGTERM)

    return Interrupted


def vector(id: str, mode: AutoresetMode | str = "SameStep", kind: Any = SyncVectorEnv) -> Gymnasium:
    """A VectorEnv of Gymnasium's that takes any number of environments."""

    def make(num_envs: int) -> Any:
        spec = gymnasium.spec(id)  # which processes of Python 3.14 do not inherit
        env = kind([lambda: gymnasium.make(spec)] * num_envs, autoreset_mode=mode)
        env.spec = spec
        return env

    return describe(make)
