"""A policy as an ONNX file: from the environment's own observation to its own action, probabilities and value.

Normalisation of observations, one-hot choices, action masks and the bounds of actions are inside of the graph.

| name | what |
|---|---|
| `obs`, or `obs.KEY` for each part of a Dict or Tuple | [batch, ...] in the environment's dtype |
| `action_mask` | [batch, alternatives] int8, where the environment has it in its info |
| `action`, or `action.KEY` | [batch, ...] the most probable action, in the environment's units and dtype |
| `probabilities` | [batch, sum of alternatives] of all discrete choices, side by side |
| `mean`, `std` | [batch, numbers] of continuous actions before their bounds: half the range is 1 |
| `value` | [batch] |
| `memory`, `next_memory` | [batch, M] of a policy with a memory: zeros where an episode begins, then what came out |
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

import surefoot
from surefoot.envs.actions import box_scale, choices, leaves, numbers
from surefoot.envs.interface import EnvSpec
from surefoot.envs.spaces import MASK, Part, flat_mask, parts
from surefoot.errors import Fault, UserError
from surefoot.models.distributions import Mixed
from surefoot.models.layers import DictEncoder
from surefoot.models.policy import Policy
from surefoot.runs.files import replace_file
from surefoot.runs.policy_file import load_policy

CLOSE = 1e-4  # largest difference from PyTorch, of numbers of size 1
Space = spaces.Space[Any]


class Graph(nn.Module):
    """What an ONNX file computes: a policy between the environment's own observations and actions."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        assert policy.spaces is not None
        self.policy, (observation, self.action_space) = policy, policy.spaces
        self.layout = parts(observation)
        remembers = policy.memory is not None
        self.inputs = [input_name(observation, part) for part in self.layout] + ["memory"] * remembers
        self.boxes = [box_scale(leaf) if isinstance(leaf, spaces.Box) else None for leaf in leaves(self.action_space)]
        sizes, size = choices(self.action_space), numbers(self.action_space)
        self.outputs = [name for name, _ in named(self.action_space)]
        self.outputs += ["probabilities"] * bool(sizes) + ["mean", "std"] * bool(size) + ["value"]
        self.outputs += ["next_memory"] * remembers

    def forward(self, *obs: Tensor) -> tuple[Tensor, ...]:
        """One tensor for each of `inputs`; returns one for each of `outputs`."""
        policy = self.policy
        rows = {part.path: stored(part, x) for part, x in zip(self.layout, obs, strict=False)}
        if policy.masks:
            rows[MASK] = with_something_allowed(rows[MASK], choices(self.action_space))
        row: Any = rows if self.layout[0].path else rows[()]
        if policy.body and isinstance(policy.body[0], DictEncoder):
            features, allowed = policy.features(row), rows[MASK] > 0 if policy.masks else None
        else:
            x, allowed = policy.split_mask(policy.preprocess(row))
            features = policy.features(x)
        remembered = list[Tensor]()
        if policy.memory is not None:
            features, memory = policy.memory.step(features, obs[-1])
            remembered.append(memory)
        dist: Any
        dist, value = policy.heads(features, allowed)
        rest, mixed = list[Tensor](), isinstance(dist, Mixed)
        if choices(self.action_space):
            rest.append((dist.choices if mixed else dist).probabilities())
        if policy.log_std is not None:
            gaussian = dist.numbers if mixed else dist
            rest += [gaussian.mean, gaussian.log_std.exp()]
        return *self.own_actions(dist.greedy()), *rest, value, *remembered

    def own_actions(self, action: Tensor) -> Iterator[Tensor]:
        """The environment's actions, one tensor for each leaf of its space, from a policy's [B] or [B, D + A]."""
        rows = action[:, None] if action.ndim == 1 else action
        taken, count = 0, len(choices(self.action_space))
        for leaf, scale in zip(leaves(self.action_space), self.boxes, strict=True):
            if scale is None:
                size = len(choices(leaf))
                first = torch.as_tensor(np.asarray(getattr(leaf, "start", 0)).reshape(-1))
                action, taken = rows[:, taken : taken + size].long() + first, taken + size
            else:
                middle, half, low, high = map(torch.as_tensor, scale)
                x, count = rows[:, count : count + len(half)].double(), count + len(half)
                action = (middle + half * x).clamp(low, high)
                action = action if np.issubdtype(leaf.dtype, np.floating) else action.round()
            yield action.reshape(-1, *(leaf.shape or ())).to(torch_dtype(leaf))


def with_something_allowed(mask: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A mask [B, sum of sizes], with everything allowed of a choice of which it allows nothing (`allow_something`)."""
    return torch.cat([part + (part == 0).all(-1, keepdim=True) for part in torch.split(mask, list(sizes), -1)], -1)


def stored(part: Part, x: Tensor) -> Tensor:
    """A part as a rollout would store it (`Part.fill`), but for bytes, which are floats."""
    if part.sizes or part.factor != 1.0:
        index = x.reshape(-1, int(np.prod(part.shape))) - torch.as_tensor(part.first)
        x = index.long() if part.sizes else (index.double() * part.factor).float()
    return x.reshape(-1, *part.shape) if part.sizes else x.reshape(-1, *part.shape).float()


def torch_dtype(space: Space) -> torch.dtype:
    """PyTorch's dtype of a space's numbers."""
    return torch.from_numpy(np.zeros(0, space.dtype)).dtype


def mask_apart(observation: Space) -> bool:
    """Whether the mask is no part of the environment's observation but of its info."""
    return isinstance(observation, spaces.Dict) and observation.keys() == {"observation", *MASK}


def input_name(observation: Space, part: Part) -> str:
    """The name of a part of the observation in the graph."""
    path = part.path[1:] if mask_apart(observation) and part.path != MASK else part.path
    return MASK[0] if mask_apart(observation) and part.path == MASK else ".".join(("obs", *map(str, path)))


def named(space: Space, name: str = "action") -> Iterator[tuple[str, Space]]:
    """The leaves of a space with their names in the graph."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, inner in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
            yield from named(inner, f"{name}.{key}")
    else:
        yield name, space


def feed(observation: Space, obs: Any) -> dict[str, Any]:
    """What an ONNX session takes for one of the environment's own observations (with its mask), a batch of one."""
    inputs = {}
    for part in parts(observation):
        value = obs
        for key in part.path:
            value = value[key]
        value = flat_mask(value, int(np.prod(part.shape))) if part.path == MASK else value
        inputs[input_name(observation, part)] = np.asarray(value, part.space.dtype)[None]
    return inputs


def export(run: Path | str, file: Path | str, env: EnvSpec | None = None, trust: bool = False) -> tuple[Path, float]:
    """Write the policy of a run or policy file as ONNX; returns the file and its largest difference from PyTorch.

    That is over 16 samples of the observation space, in onnxruntime; Fault where it is more than rounding.
    """
    import onnxruntime

    path = Path(file)
    if path.suffix != ".onnx":
        raise UserError(f"'{path}' must end in .onnx")
    policy, _, facts = load_policy(run, env=env, trust=trust)
    graph = Graph(policy.float()).eval()  # onnxruntime has no convolution of float64
    assert policy.spaces is not None
    observation, action = policy.spaces
    observation.seed(0)
    samples = [feed(observation, observation.sample()) for _ in range(16)]
    fed = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    if policy.memory is not None:
        fed["memory"] = np.random.default_rng(0).uniform(-1, 1, (16, policy.memory.width)).astype(np.float32)
    args = tuple(map(torch.from_numpy, fed.values()))
    model = to_onnx(graph, args)
    about = {"surefoot": surefoot.__version__, "task": facts["task"], "steps": str(facts["steps"])}
    about |= {"observation_space": str(observation), "action_space": str(action)}
    about["choices"] = json.dumps(choices(action))
    model.metadata_props.update(about)
    data = as_bytes(model)
    session = onnxruntime.InferenceSession(data)
    largest = 0.0
    with torch.no_grad():
        for name, ours, theirs in zip(graph.outputs, graph(*args), session.run(graph.outputs, fed), strict=True):
            gap = np.abs(ours.double().numpy() - theirs) / np.maximum(1, np.abs(theirs))
            if not name.startswith("action"):  # where two are equally probable, rounding decides
                largest = max(largest, float(gap.max()))
    if not largest <= CLOSE:
        raise Fault(f"the ONNX graph differs from PyTorch by {largest:.1e}: it was not written")
    try:
        replace_file(path, data)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from error
    return path, largest


def to_onnx(graph: Graph, args: tuple[Tensor, ...]) -> Any:
    """The graph as an onnx_ir Model, for any batch."""
    batch = torch.export.Dim("batch", min=1)
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.setLevel(logging.ERROR)  # it says for which operators of torchvision there is no torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter, about itself
        program: Any = torch.onnx.export(
            graph,
            args,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=(tuple({0: batch} for _ in args),),
            dynamo=True,
            verbose=False,
        )
    return program.model


def as_bytes(model: Any) -> bytes:
    """The file's bytes."""
    import onnx_ir

    return bytes(onnx_ir.to_proto(model).SerializeToString())
