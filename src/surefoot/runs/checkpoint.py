"""Checkpoints: the complete state between two iterations, written whole or not at all, loaded without pickle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from surefoot.algorithm.state import State
from surefoot.config import Config
from surefoot.envs.interface import Episode
from surefoot.errors import UserError, note
from surefoot.parallel.ranks import Ranks
from surefoot.runs.directory import FORMAT, checkpoints, read_state, require_format
from surefoot.runs.files import Folder, below, digest, seal, unseal, write_folder
from surefoot.runs.policy_file import policy_bytes
from surefoot.runs.trust import own_seal

KEEP = 3
FILES = ("policy.safetensors", "optimizer.safetensors", "envs.safetensors")
COUNTERS = ("learning_rate", "steps", "iteration", "seconds", "episodes", "skipped", "return_moments", "advantage_std")


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
        "policy.safetensors": policy_bytes(state.ema_policy(), cfg, state.steps, state.return_moments),
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


def drop_old(folder: Folder, found: list[Path]) -> None:
    """Remove all but the newest KEEP and the best; each is renamed first, so that no half checkpoint is seen."""
    best = max(found, key=lambda checkpoint: (_score(checkpoint), checkpoint))
    for old in found[:-KEEP]:
        if old != best:
            folder.rename(old.name, f".{old.name}.writing")
            folder.remove(f".{old.name}.writing")


def _score(checkpoint: Path) -> float:
    """Mean score of the last 100 episodes before a checkpoint; -inf if there were fewer."""
    try:
        facts = read_state(checkpoint)
        return -math.inf if facts["score"] is None else float(facts["score"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"'{checkpoint / name}' is damaged: {error}") from error
    return facts, files


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
        state.policy.load_state_dict(load_tensors(files["policy.safetensors"]))
        moments = load_tensors(files["optimizer.safetensors"])
        state.ema_params.copy_(state.flat.detach())
        ranks.all_reduce_min(0)  # all ranks have copied the parameters, which may be shared memory
        state.flat.data.copy_(moments.pop("flat"))
        for name, moment in moments.items():
            state.optimizer.moments[name].copy_(moment)
        saved = load_arrays(files["envs.safetensors"])
        carry = [float(saved.pop(f"{n}/carry")[0]) for n in state.envs.indices]
        lost = state.envs.restore(saved)
        kept = [0.0 if n in lost else c for n, c in zip(state.envs.indices, carry, strict=True)]
        state.running_return = torch.tensor(kept, dtype=torch.float64)
        for name in COUNTERS:
            setattr(state, name, facts[name])
        state.ranks = facts["ranks"]
        state.recent_episodes.extend(Episode(*e) for e in facts["window"])
    except (ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise UserError(f"'{checkpoint}' is of another program or environment: {error}") from error
    state.snapshot_envs()
    return [n for part in ranks.all_gather_bytes(json.dumps(lost).encode()) for n in json.loads(part)]
