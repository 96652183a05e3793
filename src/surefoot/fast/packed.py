"""How a policy for images plays: a copy of it whose weights are rounded and laid out for few games, once."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.models.policy import Patches, PixelConv, Policy, bf16_units


class PackedLayer(nn.Module):
    """A layer of a player and its ReLU as one, with weights laid out for oneDNN once, not in every call."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype, relu: bool) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        ops, self.pixels = torch.ops.mkldnn, isinstance(layer, PixelConv)
        weight, bias = layer.fold(dtype) if isinstance(layer, PixelConv) else (layer.weight, layer.bias)
        weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        if isinstance(layer, nn.Linear):
            self.weight, self.compute = ops._reorder_linear_weight(weight), ops._linear_pointwise
            self.more: tuple[Any, ...] = ()
        else:
            self.more = layer.padding, layer.stride, layer.dilation, layer.groups
            self.weight, self.compute = ops._reorder_convolution_weight(weight, *self.more), ops._convolution_pointwise
        self.more += ("relu" if relu else "none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of it."""
        if self.pixels:
            x = x.to(self.weight.dtype).permute(0, 3, 1, 2)
        made: Tensor = self.compute(x, self.weight, self.bias, *self.more)
        return made


def inference_policy(policy: Policy, arrays: bool = False) -> Policy:
    """The same policy to play with: for images a copy with weights rounded, and laid out for few games, once.

    `arrays`: on a processor its heads are computed with NumPy, and so is what depends on them: small calls.
    """
    if not isinstance(policy.preprocess, Patches):
        return policy
    copied = copy.deepcopy(policy, {id(p): p.detach() for p in policy.parameters()})  # no weights are copied here
    copied.bf16, dtype = False, torch.bfloat16 if policy.bf16 else policy.actor.weight.dtype
    here, known = policy.actor.weight.is_cpu, torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    packs = here and known and (dtype == torch.float32 or (policy.bf16 and bf16_units() != ""))
    for i, (layer, after) in enumerate(pairwise([*copied.body, None])):
        if packs and isinstance(layer, nn.Conv2d | nn.Linear):
            relu = isinstance(after, nn.ReLU)
            copied.body[i] = PackedLayer(layer, dtype, relu)
            if relu:
                copied.body[i + 1] = nn.Identity()
        elif isinstance(layer, PixelConv):
            layer.folded = layer.fold(dtype)
    copied.body.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arrays and here and copied.critic is not None:
        tops = zip(copied.actor.parameters(), copied.critic.parameters(), strict=True)
        copied.heads = tuple(torch.cat(both).numpy() for both in tops)
    return copied
