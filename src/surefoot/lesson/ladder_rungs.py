"""The runs of a ladder: the rungs' Configs, on Pong or on Rally, with equal numbers of frames."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surefoot.algorithm.schedules import FixedRate
from surefoot.config import Config
from surefoot.envs.atari import Pong
from surefoot.envs.gym import Gymnasium
from surefoot.errors import UserError
from surefoot.models.networks import SmallCNN
from surefoot.presets import LADDER, TRPO
from surefoot.runs.files import Folder

NOISE = "gradient-noise.json"  # in the directory of each seed's first rung
PONG_FRAMES, QUICK_FRAMES = 10_240_000, 57_600  # the lesson's 500 rollouts; 80 rollouts


@dataclass(frozen=True)
class Job:
    """One rung with one seed."""

    rung: str
    cfg: Config
    run_dir: Path


def frames_per_step(cfg: Config) -> int:
    """Emulated frames, or steps of another environment, that one step of the policy takes."""
    if not isinstance(cfg.env, Pong):
        return 1
    return round(sum(cfg.env.frame_skip) / len(cfg.env.frame_skip)) * (2 if cfg.env.settle else 1)


def rungs(names: Sequence[str] = (), quick: bool = False) -> list[Config]:
    """The Configs of the rungs with these names, in the ladder's order; if there are none, all but TRPO, which stands
    beside the last. Raises UserError.

    `quick`: the same on Rally, with 16 games, a smaller network and a larger learning rate.
    """
    known = [cfg.task for cfg in (*LADDER, TRPO)]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no rung {unknown[0]}: choose from {', '.join(known)}")
    chosen = [cfg for cfg in (*LADDER, TRPO) if cfg.task in (names or known[:-1])]
    if not quick:
        return chosen
    fields: dict[str, Any] = {
        "env": Gymnasium("surefoot.lesson.rally:Rally"),
        "network": SmallCNN((8, 16), (4, 2), (2, 2), 64, background=0.0, scale=255.0),
        "num_envs": 16,
        "num_steps": (45,),
        "learning_rate": FixedRate(5e-3),
    }
    return [replace(cfg, **fields, task=f"{cfg.task}-quick") for cfg in chosen]


def jobs(names: Sequence[str], seeds: int, frames: int, run_dir: Path, quick: bool, episodes: int) -> list[Job]:
    """All runs, the first seed of every rung first. Raises UserError."""
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; allowed is at least 1")
    jobs = []
    for seed in range(1, seeds + 1):
        for cfg in rungs(names, quick):
            steps = frames // frames_per_step(cfg)
            if steps < 1:
                raise UserError(f"frames is {frames}; allowed is at least {frames_per_step(cfg)}")
            how: dict[str, Any] = {"total_steps": steps, "total_iterations": 0, "eval_episodes": episodes, "seed": seed}
            rung = cfg.task.removesuffix("-quick")
            jobs.append(Job(rung, replace(cfg, **how), run_dir / rung / f"seed-{seed}"))
    return jobs


def read_noise(run_dir: Path, step: int) -> dict[str, float]:
    """The noise of each rung that was measured at the policy after `step` steps of a run; empty if none was."""
    with Folder(run_dir) as folder:
        facts: dict[str, Any] = json.loads(folder.read(NOISE)) if folder.has(NOISE) else {"step": -1}
    if facts["step"] != step:
        return {}
    return {task: math.inf if x is None else float(x) for task, x in facts["noise"].items()}
