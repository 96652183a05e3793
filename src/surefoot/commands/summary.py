"""The layers of a policy: shapes, parameters, and a word on layers whose output is larger than their input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surefoot.config import Config
from surefoot.envs.spaces import blank
from surefoot.models.policy import Policy


def layers(policy: Policy, obs: Tensor) -> list[tuple[str, tuple[int, ...], int, int]]:
    """(layer, shape of its output for one observation, numbers going in, parameters), in the order they compute."""
    found: list[tuple[str, tuple[int, ...], int, int]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        shape = list(out.shape)
        shape.remove(1)  # the one observation
        found.append((repr(module), tuple(shape), given[0].numel(), parameters))

    leaves = [m for m in policy.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(note) for m in leaves]
    with torch.no_grad():
        policy(obs)
    for hook in hooks:
        hook.remove()
    return found


def table(cfg: Config) -> str:
    """The network of a Config as a table."""
    game = cfg.env.make()
    policy = cfg.network.build(game.observation_space, game.action_space)
    obs = torch.from_numpy(blank(game.observation_space)[None])
    rows = [("layer", "output", "numbers", "parameters")]
    grown = []
    for name, shape, given, parameters in layers(policy, obs):
        size = int(torch.Size(shape).numel())
        if size > given:
            grown.append(f"{name}: {given:,} numbers in, {size:,} out")
        rows.append((name, " x ".join(map(str, shape)), f"{size:,}", f"{parameters:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    lines.insert(1, "-" * len(lines[0]))
    total = sum(p.numel() for p in policy.parameters())
    lines += ["", f"{total:,} parameters; input {' x '.join(map(str, obs.shape[1:]))} = {obs.numel():,} numbers"]
    if grown:
        lines += ["", "These layers put out more than goes in; larger strides or fewer channels would be faster:"]
        lines += [f"  {line}" for line in grown]
    else:
        lines.append("no layer puts out more numbers than go in")
    return "\n".join(lines)
