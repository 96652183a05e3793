"""A policy as a file that loads without its run: safetensors, its environment and network as JSON in the header."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from surefoot.config import Config
from surefoot.envs.atari import Atari
from surefoot.envs.gym import Gymnasium, is_local
from surefoot.envs.interface import EnvSpec, make
from surefoot.errors import DAMAGE, UserError, note, one_line, said
from surefoot.models.memory import Unit
from surefoot.models.networks import MLP, ImpalaCNN, LessonCNN, Network, SmallCNN
from surefoot.models.policy import Policy
from surefoot.paths import absolute, shown
from surefoot.runs.directory import newest, seals
from surefoot.runs.files import Folder, digest, read_named
from surefoot.runs.trust import permit, runs_code
from surefoot.versions import require_versions

BEST = "best.safetensors"  # in a run directory: the best policy of the evaluations during training
NO_RETURNS = 0.0, 0.0, 0.0, None
FORMAT = 4  # of the file; 4: an MLP's layers are pairs
ALLOW = "allow it with --trust (trust=True), or name the environment yourself with --task (env=)"


def policy_bytes(policy: Policy, cfg: Config, steps: int, returns: Sequence[float | None] = NO_RETURNS) -> bytes:
    """A policy file's bytes.

    Running statistics of observations are among its tensors, those of `returns` and the rewards' shift in the header,
    which has a digest of the tensors as well.
    """
    plain = cfg.to_json()
    facts = {"format": FORMAT, "task": cfg.task, "env": plain["env"], "network": plain["network"], "steps": steps}
    facts |= {"memory": plain["memory"]} if plain["memory"]["type"] != "NoMemory" else {}
    facts |= {"returns": list(returns), "num_envs": cfg.num_envs}
    data = save_tensors({k: v.detach().cpu().clone() for k, v in policy.state_dict().items()})
    header, tensors = split(data)
    header["__metadata__"] = {"surefoot": json.dumps(facts | {"sha256": digest(tensors)})}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the tensors stay aligned
    return len(head).to_bytes(8, "little") + head + tensors


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors of a safetensors file; raises ValueError or TypeError where it is none."""
    end = 8 + int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8:end])), data[end:]


def read_policy(path: Path, trust: bool = False) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The policy file that a run directory, checkpoint or file stands for, its header and its tensors, checked."""
    path = absolute(path)
    file = path
    try:
        if path.is_dir():
            with Folder(path) as folder:
                names = folder.names()
                file = path / (BEST if BEST in names else "policy.safetensors")
                if file.name not in names:
                    raise UserError(
                        f"'{shown(path)}' holds no policy.safetensors: name a run directory or a policy file"
                    )
                data = folder.read(file.name)
        else:
            data = read_named(path)
        header, tensors = split(data)
        facts = json.loads(header["__metadata__"]["surefoot"])
        if facts["format"] != FORMAT:
            raise UserError(f"'{shown(file)}' has format {facts['format']}; this version of surefoot reads {FORMAT}")
        if facts.get("sha256", wanted := digest(tensors)) != wanted:  # files of earlier versions have none
            raise ValueError("its tensors have been changed since it was written")
        facts.setdefault("memory", {"type": "NoMemory"})
        returns = facts.get("returns", NO_RETURNS)
        count, mean, square = (float(x) for x in returns[:3])
        shift = returns[3] if len(returns) > 3 else 0.0 if count else None  # files of earlier versions have none
        if shift is not None and not math.isfinite(shift):
            raise ValueError(f"{shift!r} is no finite number")
        returns = count, mean, square, shift
        facts |= {"task": "" + facts["task"], "returns": returns}  # raises for other types
        if path.is_dir() and file.name != BEST and int(facts.get("steps", 0)) < (last := newest(path)):
            note(f"'{shown(file)}' is of step {facts['steps']:,}, and the newest checkpoint of step {last:,}")
        loaded = load_tensors(data)
        wrong = [name for name, x in loaded.items() if not x.isfinite().all()]
        if wrong and not trust:
            raise ValueError(f"not all numbers of {wrong[0]!r} are finite; --trust (trust=True) takes it as it is")
        return file, facts, loaded
    except FileNotFoundError:
        raise UserError(f"there is no file '{shown(path)}': name a run directory or a policy file") from None
    except (SafetensorError, *DAMAGE) as error:
        raise UserError(f"'{shown(file)}' is not a surefoot policy ({said(error)})") from error


def least_size(network: Network, shape: Sequence[int] = ()) -> int:
    """A lower bound for the number of a network's parameters; `shape`: of its observations, where that is known."""
    if isinstance(network, MLP):
        return 2 * sum(a * b for a, b in pairwise((math.prod(shape), *network.hidden)))
    bodies = 2 if network.separate_critic else 1
    if isinstance(network, LessonCNN):
        return 1296 * 256
    layers, hidden = [(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512  # NatureCNN's: filters, kernel, stride
    if isinstance(network, SmallCNN):
        layers, hidden = list(zip(network.filters, network.kernel, network.stride, strict=True)), network.hidden
    elif isinstance(network, ImpalaCNN):
        layers, hidden = [(16, 1, 2), (32, 1, 2), (32, 1, 2)], 256
    sides, filters, size = sorted(shape)[-2:], 1, 0
    for more, kernel, stride in layers:
        size += filters * more * kernel**2
        sides, filters = [max(1, (side - kernel) // stride + 1) for side in sides], more
    return bodies * (size + math.prod(sides) * filters * hidden)


def require_fitting(file: Path, network: Network, tensors: dict[str, Tensor], shape: Sequence[int] = ()) -> None:
    """Raise UserError, before anything is allocated, where a network has more parameters than its file."""
    if least_size(network, shape) > sum(x.numel() for x in tensors.values()):
        raise UserError(f"'{shown(file)}' does not fit its own network, which has more parameters than the file")


def load_policy(
    path: Path | str, device: str = "cpu", env: EnvSpec | None = None, trust: bool = False
) -> tuple[Policy, EnvSpec, dict[str, Any]]:
    """The policy of a run directory (with `eval_every` the best), checkpoint or file, its environment, its header.

    `env` stands in for an environment that only the program which trained could make, or that would run code which the
    file names. Without it, and without `trust`, such a file is refused, unless a run begun here wrote it.
    """
    require_versions()
    file, facts, tensors = read_policy(Path(path), trust)
    try:
        cfg = Config.from_json({key: facts[key] for key in ("env", "network", "memory")})
    except DAMAGE as error:
        raise UserError(f"'{shown(file)}' is not a surefoot policy ({said(error)})") from error
    lost = isinstance(cfg.env, Gymnasium) and "#" in cfg.env.id and not is_local(cfg.env)
    spec = env if env and (lost or (env != cfg.env and not trust and runs_code(cfg.env))) else cfg.env
    if env != spec:
        permit(spec, file, trust, seals(file.absolute().parent), ALLOW)
    require_fitting(file, cfg.network, tensors, (spec.size, spec.size) if isinstance(spec, Atari) else ())
    if isinstance(cfg.memory, Unit) and cfg.memory.units > sum(x.numel() for x in tensors.values()) ** 0.5:
        raise UserError(f"'{shown(file)}' does not fit its own memory, which has more parameters than the file")
    game = make(spec)
    require_fitting(file, cfg.network, tensors, game.observation_space.shape or ())
    policy = cfg.build(game.observation_space, game.action_space)
    policy.spaces = game.observation_space, game.action_space
    game.close()
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"'{shown(file)}' does not fit its own network: {one_line(str(error), 400)}") from error
    return policy.to(device).eval(), spec, facts
