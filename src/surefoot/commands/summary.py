"""The layers of a policy: output shapes, parameters, and which layers have more outputs than inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surefoot.config import Config
from surefoot.envs.interface import make
from surefoot.envs.spaces import blank
from surefoot.models.policy import Policy


def layers(policy: Policy, obs: Tensor) -> list[tuple[str, tuple[int, ...], int, int]]:
    """(layer, output shape for one observation, number of inputs, parameters), in the order of computation."""
    rows: list[tuple[str, tuple[int, ...], int, int]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        shape = list((out[0] if isinstance(out, tuple) else out).shape)  # an LSTM's is h and c
        shape.remove(1)  # batch dimension
        rows.append((repr(module), tuple(shape), inputs[0].numel(), parameters))

    leaves = [m for m in policy.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(record) for m in leaves]
    with torch.no_grad():
        policy(obs)
    for hook in hooks:
        hook.remove()
    return rows


def table(cfg: Config) -> str:
    """The network of a Config as a table."""
    env = make(cfg.env)
    policy = cfg.build(env.observation_space, env.action_space)
    obs = torch.from_numpy(blank(env.observation_space)[None])
    env.close()
    rows = [("layer", "output shape", "outputs", "parameters")]
    grown = []
    for name, shape, inputs, parameters in layers(policy, obs):
        size = int(torch.Size(shape).numel())
        if size > inputs:
            grown.append(f"{name}: {inputs:,} inputs, {size:,} outputs")
        rows.append((name, " x ".join(map(str, shape)), f"{size:,}", f"{parameters:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    lines.insert(1, "-" * len(lines[0]))
    total = sum(p.numel() for p in policy.parameters())
    lines += ["", f"{total:,} parameters; input {' x '.join(map(str, obs.shape[1:]))} = {obs.numel():,} numbers"]
    if grown:
        lines += ["", "These layers have more outputs than inputs; larger strides or fewer channels would be faster:"]
        lines += [f"  {line}" for line in grown]
    else:
        lines.append("no layer has more outputs than inputs")
    return "\n".join(lines)
