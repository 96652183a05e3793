"""A policy as a file that loads without its run: safetensors, its environment and network as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from surefoot.config import Config
from surefoot.envs.gym import Gymnasium, is_local
from surefoot.envs.interface import EnvSpec, make
from surefoot.errors import UserError
from surefoot.models.policy import Policy

BEST = "best.safetensors"  # in a run directory: the best policy of the evaluations during training
FORMAT = 4  # of the file; 4: an MLP's layers are pairs


def policy_bytes(policy: Policy, cfg: Config, steps: int, returns: Sequence[float] = (0.0, 0.0, 0.0)) -> bytes:
    """A policy that loads without its run: safetensors, with environment and network as JSON in its header.

    Running statistics of observations are among its tensors, those of `returns` in the header.
    """
    plain = cfg.to_json()
    facts = {"format": FORMAT, "task": cfg.task, "env": plain["env"], "network": plain["network"], "steps": steps}
    facts["returns"] = list(returns)
    tensors = {k: v.detach().cpu().clone() for k, v in policy.state_dict().items()}
    return save_tensors(tensors, {"surefoot": json.dumps(facts)})


def load_policy(
    path: Path | str, device: str = "cpu", env: EnvSpec | None = None
) -> tuple[Policy, EnvSpec, dict[str, Any]]:
    """The policy of a run directory (with `eval_every` the best), checkpoint or file, its environment, its header.

    `env` stands in for an environment that only the program which trained could make.
    """
    path = Path(path)
    file = path / (BEST if (path / BEST).exists() else "policy.safetensors") if path.is_dir() else path
    if not file.exists():
        where = f"'{path}' holds no policy.safetensors" if path.is_dir() else f"there is no file '{path}'"
        raise UserError(f"{where}: name a run directory or a policy file")
    try:
        with safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {})["surefoot"])
            if facts["format"] != FORMAT:
                raise UserError(f"'{file}' has format {facts['format']}; this version of surefoot reads {FORMAT}")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        cfg = Config.from_json({"env": facts["env"], "network": facts["network"]})
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(f"'{file}' is not a surefoot policy ({type(error).__name__}: {error})") from error
    lost = isinstance(cfg.env, Gymnasium) and "#" in cfg.env.id and not is_local(cfg.env)
    own = env if env and lost else cfg.env
    game = make(own)
    policy = cfg.network.build(game.observation_space, game.action_space)
    game.close()
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"'{file}' does not fit its own network: {error}") from error
    return policy.to(device).eval(), own, facts
