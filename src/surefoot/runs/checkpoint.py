"""Checkpoints: the complete state between two iterations, written whole or not at all, loaded without pickle."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from surefoot.algorithm.rollout import noise_color
from surefoot.algorithm.schedules import AdaptiveRate, LinearRate, ScheduledRate, annealed
from surefoot.algorithm.state import State
from surefoot.config import Config
from surefoot.envs.interface import Episode
from surefoot.errors import DAMAGE, UserError, note, one_line
from surefoot.parallel.ranks import Ranks
from surefoot.runs.directory import FORMAT, checkpoints, read_state, require_format
from surefoot.runs.files import Folder, below, digest, seal, unseal, write_folder
from surefoot.runs.policy_file import policy_bytes
from surefoot.runs.trust import own_seal

KEEP = 3
FILES = ("policy.safetensors", "optimizer.safetensors", "envs.safetensors")
COUNTERS = (
    *("learning_rate", "kl_coef", "steps", "iteration", "seconds"),
    *("episodes", "terminations", "ends_often", "skipped", "return_moments", "reward_shift", "advantage_std"),
)


def save(state: State, cfg: Config, run_dir: Path, ranks: Ranks) -> bytes:
    """Write checkpoints/STEPS, whole or not at all, then drop older ones: KEEP stay, and the best. Every rank calls it.

    Returns, on rank 0, the bytes of the policy file.
    Raises OSError, on rank 0 alone, where it cannot be written; what was there before is then as it was.
    """
    envs = ranks.all_gather_bytes(save_arrays(state.env_snapshot))
    if ranks.rank:
        return b""
    moments = {"flat": state.flat.detach(), **state.optimizer.moments}
    files = {
        "policy.safetensors": policy_bytes(state.ema_policy(), cfg, state.steps, state.returns),
        "optimizer.safetensors": save_tensors({k: v.clone() for k, v in moments.items()}),
        "envs.safetensors": save_arrays({k: v for part in envs for k, v in load_arrays(part).items()}),
    }
    counters = {name: getattr(state, name) for name in COUNTERS}
    facts = counters | {
        "format": FORMAT,
        "config": cfg.to_json(),
        "begun": own_seal(run_dir, cfg.env),
        "score": state.mean_score() if len(state.recent_episodes) == state.recent_episodes.maxlen else None,
        "window": list(state.recent_episodes),
        "ranks": ranks.count,
        "files": {name: [len(data), digest(data)] for name, data in files.items()},
    }
    with below(run_dir, "checkpoints", make=True) as folder:
        write_folder(folder, f"{state.steps:09d}", {"state.json": seal(facts), **files})
        drop_old(folder, checkpoints(run_dir))
    return files["policy.safetensors"]


def drop_old(folder: Folder, saved: list[Path]) -> None:
    """Remove all but the newest KEEP and the best; each is renamed first, so that no half checkpoint is seen."""
    best = max(saved, key=lambda checkpoint: (_score(checkpoint), checkpoint))
    for old in saved[:-KEEP]:
        if old != best:
            folder.rename(old.name, f".{old.name}.writing")
            folder.remove(f".{old.name}.writing")


def _score(checkpoint: Path) -> float:
    """Mean score of the last 100 episodes before a checkpoint; -inf if there were fewer."""
    try:
        facts = read_state(checkpoint)
        return -math.inf if facts["score"] is None else float(facts["score"])
    except DAMAGE:
        return -math.inf


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A checkpoint's state.json and its files; raises UserError for another format, ValueError for any damage."""
    name = "state.json"
    try:
        with below(checkpoint.parent.parent, "checkpoints", checkpoint.name) as folder:
            facts = unseal(folder.read(name))
            require_format(facts, checkpoint)
            files = {}
            for name in FILES:
                size, expected = facts["files"][name]
                files[name] = folder.read(name, size)
                if digest(files[name]) != expected:
                    raise ValueError("its SHA-256 is not the one in state.json")
    except DAMAGE as error:
        raise ValueError(f"'{checkpoint / name}' is damaged: {one_line(str(error))}") from error
    return facts, files


def natural(value: Any) -> int:
    """A whole number from 0; raises ValueError."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{str(value)[:40]!r} is no whole number from 0")
    return value


def finite(value: Any) -> float:
    """A finite number; raises ValueError."""
    if type(value) not in (int, float) or not -math.inf < value < math.inf:
        raise ValueError(f"{str(value)[:40]!r} is no finite number")
    return float(value)


def read_counters(facts: dict[str, Any]) -> dict[str, Any]:
    """The COUNTERS of a state.json; raises KeyError or ValueError."""
    counters: dict[str, Any] = {name: natural(facts[name]) for name in ("steps", "iteration", "episodes", "skipped")}
    counters |= {name: finite(facts[name]) for name in ("learning_rate", "seconds", "advantage_std")}
    counters["terminations"] = natural(facts.get("terminations", 0))  # nothing hung on them before
    counters["ends_often"] = facts.get("ends_often", False) is True
    counters["kl_coef"] = finite(facts.get("kl_coef", 0.0))  # before there were penalties it was not written
    shift = facts.get("reward_shift", 0.0)  # as they were learned from before there was one
    counters["reward_shift"] = None if shift is None else finite(shift)
    count, mean, square = facts["return_moments"]
    return counters | {"return_moments": (finite(count), finite(mean), finite(square))}


def read_episode(entry: Any) -> Episode:
    """An episode of a state.json; raises TypeError or ValueError."""
    env, score, length, at = entry
    return Episode(natural(env), finite(score), natural(length), natural(at))


def restore(state: State, run_dir: Path, ranks: Ranks) -> list[int]:
    """Load the newest whole checkpoint into a new state; damaged ones are reported and set aside.

    Returns, on rank 0, the games that did not replay to where they were and begin new episodes. Raises UserError
    where no checkpoint is whole. Every rank calls it.
    """
    damage, aside = "", []
    for checkpoint in reversed(checkpoints(run_dir)):
        try:
            facts, files = read_checkpoint(checkpoint)
            whole = 1
        except ValueError as error:
            damage, whole = str(error), 0
        if ranks.all_reduce_min(whole):
            break
        aside.append(checkpoint)
    else:
        raise UserError(f"no checkpoint in '{run_dir}' is whole: {damage}")
    for bad in aside if ranks.rank == 0 else []:
        with below(run_dir, "checkpoints") as folder:
            folder.remove(f"{bad.name}.damaged")
            folder.rename(bad.name, f"{bad.name}.damaged")
        note(f"{damage}; its checkpoint is set aside, '{checkpoint}' is used")
    try:
        tensors, moments = load_tensors(files["policy.safetensors"]), load_tensors(files["optimizer.safetensors"])
        wrong = [name for name, x in {**tensors, **moments}.items() if not x.isfinite().all()]
        if wrong:
            raise ValueError(f"not all numbers of {wrong[0]!r} are finite")
        state.policy.load_state_dict(tensors)
        state.ema_params.copy_(state.flat.detach())
        ranks.all_reduce_min(0)  # all ranks have copied the parameters, which may be shared memory
        state.flat.data.copy_(moments.pop("flat"))
        for name, moment in moments.items():
            state.optimizer.moments[name].copy_(moment)
        saved = load_arrays(files["envs.safetensors"])
        carry = [float(saved.pop(f"{n}/carry")[0]) for n in state.envs.indices]
        if state.memory is not None:
            rows = [torch.from_numpy(saved.pop(f"{n}/memory")) for n in state.envs.indices]
            state.memory = torch.stack(rows).to(state.memory).view_as(state.memory)
        lost = state.envs.restore(saved)
        running_return = [0.0 if n in lost else c for n, c in zip(state.envs.indices, carry, strict=True)]
        state.running_return = torch.tensor(running_return, dtype=torch.float64)
        counters, state.ranks = read_counters(facts), natural(facts["ranks"])
        vars(state).update(counters)
        state.recent_episodes.extend(read_episode(entry) for entry in facts["window"])
    except (*DAMAGE, SafetensorError, RuntimeError) as error:
        raise UserError(f"'{checkpoint}' is of another program or environment: {error}") from error
    state.snapshot_envs()
    return [n for part in ranks.all_gather_bytes(json.dumps(lost).encode()) for n in json.loads(part)]


def before_it_was_stopped(run_dir: Path, state: State, cfg: Config) -> Config:
    """The Config with which the run came to this checkpoint."""
    with suppress(*DAMAGE, UserError):
        return Config.from_json(read_state(run_dir / "checkpoints" / f"{state.steps:09d}")["config"])
    return cfg


def moved(before: Config, cfg: Config, state: State) -> str:
    """What jumps where a run goes on towards another end than `before`, as a sentence; empty where nothing does."""
    old, new = state.progress(before), state.progress(cfg)
    values = []
    for c, progress in ((before, old), (cfg, new)):
        now, rate = annealed(c, state.iteration, progress), c.learning_rate
        each = [(f"{name}.{k}", v) for name in ("objective", "entropy") for k, v in vars(getattr(now, name)).items()]
        rates = {name: v for name, v in each if isinstance(v, float)} | {"noise_color": noise_color(c, state)}
        if isinstance(rate, LinearRate | ScheduledRate):
            rates["the learning rate"] = rate(0.0, 0.0, progress)
        elif isinstance(rate, AdaptiveRate):
            rates["learning_rate.desired_kl"] = rate.desired_kl * rate.end_factor ** min(1.0, progress)
        values.append(rates)
    jumps = [
        f"{name} {x:.3g} instead of {values[0][name]:.3g}" for name, x in values[1].items() if x != values[0][name]
    ]
    if not jumps:
        return ""
    return f"the run's end has moved, so {new:.0%} of it are done instead of {old:.0%}: from here {', '.join(jumps)}"
