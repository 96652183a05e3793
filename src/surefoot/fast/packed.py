"""A policy for images as it acts: a copy whose weights are rounded and laid out for few environments, once."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surefoot.fast.distributions import NumpyHead
from surefoot.models.actor import Actor
from surefoot.models.distributions import standard_normal
from surefoot.models.layers import Patches, PixelConv
from surefoot.models.policy import Policy, bf16_units


class PackedLayer(nn.Module):
    """A layer and its ReLU as one, with weights laid out for oneDNN once, not in every call."""

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
        """The layer's output."""
        if self.pixels:
            x = x.to(self.weight.dtype).permute(0, 3, 1, 2)
        output: Tensor = self.compute(x, self.weight, self.bias, *self.more)
        return output


def packed_policy(policy: Policy) -> Policy:
    """For images a copy of the policy to act with, its weights rounded and packed; other policies themselves."""
    if not isinstance(policy.preprocess, Patches):
        return policy
    packed = copy.deepcopy(policy, {id(p): p.detach() for p in policy.parameters()})  # no weights are copied here
    packed.bf16, dtype = False, torch.bfloat16 if policy.bf16 else policy.actor.weight.dtype
    here, known = policy.actor.weight.is_cpu, torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    packs = here and known and (dtype == torch.float32 or (policy.bf16 and bf16_units() != ""))
    for body in packed.bodies():
        for i, (layer, after) in enumerate(pairwise([*body, None])):
            if packs and isinstance(layer, nn.Conv2d | nn.Linear):
                relu = isinstance(after, nn.ReLU)
                body[i] = PackedLayer(layer, dtype, relu)
                if relu:
                    body[i + 1] = nn.Identity()
            elif isinstance(layer, PixelConv):
                layer.folded = layer.fold(dtype)
        body.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return packed


class PackedActor(Actor):
    """`Actor` for images on a processor: the packed policy's body, its heads in NumPy, where calls are short."""

    def __init__(self, policy: Policy, noise: Tensor) -> None:
        assert policy.critic is not None
        super().__init__(packed_policy(policy), noise)
        heads = zip(policy.actor.parameters(), policy.critic.parameters(), strict=True)
        self.weight, self.bias = (torch.cat(both).detach().numpy() for both in heads)
        self.head = NumpyHead(policy)
        draws = noise if policy.log_std is None else standard_normal(noise).to(policy.actor.weight.dtype)
        self.noise = draws.numpy()

    def act(self, t: int, obs: NDArray[Any]) -> Any:
        """The actions of step t."""
        preprocessed = self.policy.preprocess(torch.from_numpy(obs))
        x, allowed = self.policy.split_mask(preprocessed)
        features = self.policy.features(x).to(self.policy.actor.weight.dtype).numpy()
        both = features @ self.weight.T + self.bias
        output, mask = both[:, :-1], None if allowed is None else allowed.numpy()
        action = self.head.sample(output, mask, self.noise[t])
        self.keep(t, preprocessed)
        self.steps[t] = action, self.head.params(output, mask), both[:, -1]
        return action.tolist() if action.ndim == 1 else action
