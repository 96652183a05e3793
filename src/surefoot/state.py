"""Everything a run is, in one object; saved whole or not at all, loaded without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from surefoot.config import Config
from surefoot.envs import Episode, Games
from surefoot.errors import UserError
from surefoot.noise import Purpose, integer
from surefoot.policy import Policy, flatten, has_matrix_units
from surefoot.ranks import Ranks

FORMAT = 1
KEEP = 3


@dataclass
class State:
    """A run between two iterations."""

    policy: Policy
    flat: nn.Parameter
    """all of the policy's parameters in one row; they are views of it"""
    optimizer: torch.optim.Adam
    games: Games
    rate: float
    """the learning rate as adapted so far"""
    steps: int = 0
    """decisions made, all games together"""
    iteration: int = 0
    """rollouts learned from"""
    seconds: float = 0.0
    """time spent training"""
    episodes: int = 0
    """episodes finished"""
    window: deque[Episode] = field(default_factory=lambda: deque(maxlen=100))
    """the last 100 finished episodes"""

    @property
    def gradient(self) -> torch.Tensor:
        """The flat gradient; the parameters' gradients are views of it."""
        assert self.flat.grad is not None
        return self.flat.grad

    def progress(self, cfg: Config) -> float:
        """How much of the run is done, 0 to 1."""
        by_steps = self.steps / cfg.total_steps if cfg.total_steps else 0.0
        by_iterations = self.iteration / cfg.total_iterations if cfg.total_iterations else 0.0
        return max(by_steps, by_iterations)

    def horizon(self, cfg: Config) -> int:
        """Decisions per game in the next rollout: the present stage's."""
        return cfg.horizon[min(len(cfg.horizon) - 1, int(self.progress(cfg) * len(cfg.horizon)))]

    def mean_score(self) -> float:
        """Mean raw score of the last 100 finished episodes; NaN before the first."""
        return sum(e.score for e in self.window) / len(self.window) if self.window else float("nan")


def build(cfg: Config, observation: spaces.Box, action: spaces.Discrete) -> Policy:
    """The Config's policy with its first weights, on its device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(cfg.seed, Purpose.WEIGHTS))
        policy = cfg.network.build(observation, action)
    policy.bf16 = cfg.bf16 and has_matrix_units()
    try:
        return policy.to(cfg.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{cfg.device}' cannot be used: {str(error).splitlines()[0]}") from error


def initial(cfg: Config, ranks: Ranks) -> State:
    """A run before its first decision."""
    columns = ranks.columns(cfg.games)
    games = Games(cfg.env, cfg.seed, range(columns.start, columns.stop))
    policy = build(cfg, games.observation_space, games.action_space)
    flat = flatten(policy)
    optimizer = torch.optim.Adam([flat], lr=cfg.rate.learning_rate, eps=cfg.adam_eps, fused=True)
    games.reset_all()
    return State(policy, flat, optimizer, games, cfg.rate.learning_rate)


def write(path: Path, data: bytes) -> None:
    """Write a file and see it on the disk."""
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.writing")
    write(beside, data)
    beside.replace(path)


def sync(folder: Path) -> None:
    """See a folder's entries on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(state: State, run_dir: Path, ranks: Ranks) -> None:
    """Write checkpoints/STEPS, whole or not at all, then drop the oldest beyond KEEP. Every rank calls it."""
    envs = ranks.collect_bytes(save_arrays(state.games.snapshot()))
    if ranks.rank:
        return
    moments = state.optimizer.state.get(state.flat, {})
    files = {
        "policy.safetensors": save_tensors({k: v.contiguous() for k, v in state.policy.state_dict().items()}),
        "optimizer.safetensors": save_tensors({k: v.clone() for k, v in moments.items()}),
        "envs.safetensors": save_arrays({k: v for part in envs for k, v in load_arrays(part).items()}),
    }
    facts = {
        "format": FORMAT,
        "rate": state.rate,
        "steps": state.steps,
        "iteration": state.iteration,
        "seconds": state.seconds,
        "episodes": state.episodes,
        "window": list(state.window),
        "ranks": ranks.count,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files["state.json"] = json.dumps(facts).encode()
    folder = run_dir / "checkpoints"
    target, beside = folder / f"{state.steps:09d}", folder / ".writing"
    if target.exists():
        return
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, data in files.items():
        write(beside / name, data)
    sync(beside)
    beside.rename(target)
    sync(folder)
    for old in checkpoints(run_dir)[:-KEEP]:
        shutil.rmtree(old)


def checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = (p for p in (run_dir / "checkpoints").glob("*") if p.name.isdigit() and p.is_dir())
    return sorted(found, key=lambda p: int(p.name))


def restore(cfg: Config, run_dir: Path, ranks: Ranks) -> State:
    """The newest checkpoint's state; raises UserError where there is none or a file of it is damaged."""
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"'{run_dir}' has no checkpoint to resume from")
    folder = found[-1]
    older = f"; to go on from '{found[-2]}', remove it" if len(found) > 1 else ""
    try:
        facts: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
        if facts["format"] > FORMAT:
            raise UserError(f"'{folder}' has format {facts['format']}; this surefoot knows {FORMAT}: update it")
        files = {name: (folder / name).read_bytes() for name in facts["sha256"]}
        for name, digest in facts["sha256"].items():
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise UserError(f"'{folder / name}' is damaged: its SHA-256 is not the one in state.json{older}")
        state = initial(cfg, ranks)
        state.policy.load_state_dict(load_tensors(files["policy.safetensors"]))
        moments = load_tensors(files["optimizer.safetensors"])
        if moments:
            state.optimizer.state[state.flat] = dict(moments)
        lost = state.games.restore(load_arrays(files["envs.safetensors"]))
        state.rate, state.steps, state.iteration = facts["rate"], facts["steps"], facts["iteration"]
        state.seconds, state.episodes = facts["seconds"], facts["episodes"]
        state.window.extend(Episode(*e) for e in facts["window"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise UserError(f"'{folder}' cannot be loaded: {error}{older}") from error
    everyone = [n for part in ranks.collect_bytes(json.dumps(lost).encode()) for n in json.loads(part)]
    if everyone:
        what = f"games {everyone} did not replay to where they were and begin new episodes: this run is not exact"
        print(what, file=sys.stderr, flush=True)
    return state
