"""The module that plays and learns: a body, a policy head, and a critic head where there is one."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from surefoot.actions import Bernoulli, Categorical, Distribution


class Palette(nn.Module):
    """A float for each of 256 palette indices: exact colours from uint8 observations."""

    table: Tensor

    def __init__(self, table: NDArray[np.float64]) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(table).float())

    def forward(self, obs: Tensor) -> Tensor:
        """uint8 [B, channels, height, width] to float of the same shape, channels-last: fastest for convolutions."""
        x = obs.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return self.table.index_select(0, x.flatten().int()).view(x.shape).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Cut images into squares of `size` pixels: [B, C, H, W] to [B, H/size, W/size, C size size].

    A convolution with this stride then has stride 1 and many channels, which matrix units are fastest on.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, obs: Tensor) -> Tensor:
        """Same dtype out as in; pixels that fill no whole square are dropped."""
        n, channels, height, width = obs.shape
        k, rows, columns = self.size, height // self.size, width // self.size
        whole = obs[:, :, : rows * k, : columns * k]
        if obs.dtype == torch.uint8 and k % 4 == width % 4 == 0:  # four pixels of a line stay together: moved as one
            words = whole.view(torch.int32).view(n, channels, rows, k, columns, k // 4)
            return words.permute(0, 2, 4, 1, 3, 5).reshape(n, rows, columns, -1).view(torch.uint8)
        squares = whole.reshape(n, channels, rows, k, columns, k)
        return squares.permute(0, 2, 4, 1, 3, 5).reshape(n, rows, columns, -1)

    def extra_repr(self) -> str:
        """Shown by `surefoot summary`."""
        return f"size={self.size}"


class PixelConv(nn.Conv2d):
    """A convolution of (pixel - background) / scale over Patches.

    Both are folded into weights and bias, which is the same function and spares two passes over the pixels.
    """

    def __init__(self, channels: int, filters: int, kernel: int, background: float, scale: float) -> None:
        super().__init__(channels, filters, kernel)
        self.background, self.scale = background, scale
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias for pixels as they are."""
        assert self.bias is not None
        weight = (self.weight / self.scale).to(dtype)
        bias = self.bias - self.background * weight.sum((1, 2, 3), dtype=self.bias.dtype)  # of the rounded weights
        return weight, bias.to(dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, rows, columns, C] of any dtype to [B, filters, rows', columns']."""
        fast = torch.is_autocast_enabled("cpu")
        weight, bias = self.folded or self.fold(torch.bfloat16 if fast else self.weight.dtype)
        return F.conv2d(patches.to(weight.dtype).permute(0, 3, 1, 2), weight, bias)


class Vector(nn.Module):
    """Vectors as they are, at least in single precision."""

    def forward(self, obs: Tensor) -> Tensor:
        """Any shape in, the same shape out."""
        return obs if obs.dtype == torch.float64 else obs.float()


class Policy(nn.Module):
    """prepare -> body -> features -> (policy distribution, value).

    `prepare` has no parameters: learning applies it once to a rollout, not once in every pass.
    """

    def __init__(
        self,
        prepare: nn.Module,
        body: nn.Sequential,
        actor: nn.Linear,
        critic: nn.Linear | None,
        bernoulli: bool = False,
        critic_body: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        self.prepare, self.body, self.critic_body = prepare, body, critic_body
        self.actor, self.critic = actor, critic
        self.bernoulli = bernoulli
        self.bf16 = False
        """compute the body in bfloat16; the heads stay as exact as their weights"""

    def distribution(self, params: Tensor) -> Distribution:
        """The distribution with these parameters, as a rollout stores them."""
        return Bernoulli(params) if self.bernoulli else Categorical(params)

    def player(self) -> Policy:
        """The same policy to play with: where the body computes in bfloat16, a copy that was rounded once for all."""
        if not self.bf16:
            return self
        copied = copy.deepcopy(self).requires_grad_(False)
        copied.bf16 = False
        for layer in copied.body:
            if isinstance(layer, PixelConv):
                layer.folded = layer.fold(torch.bfloat16)
        copied.body.to(torch.bfloat16)
        return copied

    def forward(self, obs: Tensor, memory: None = None) -> tuple[Distribution, Tensor, None]:
        """`obs` [B, ...] to (distribution over B actions, value [B], memory); a policy without a critic has V = 0."""
        return self.judge(self.prepare(obs), memory)

    def judge(self, prepared: Tensor, memory: None = None) -> tuple[Distribution, Tensor, None]:
        """`forward` for observations that went through `prepare`."""
        x = prepared if prepared.dtype == torch.uint8 else prepared.to(self.actor.weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            features = self.body(x)
            own = features if self.critic_body is None else self.critic_body(x)
        features, own = features.to(self.actor.weight.dtype), own.to(self.actor.weight.dtype)
        out = self.actor(features)
        dist = self.distribution(out[:, 0] if self.bernoulli else out)
        value = out.new_zeros(len(out)) if self.critic is None else self.critic(own)[:, 0]
        return dist, value, memory


def orthogonal(policy: Policy) -> Policy:
    """Orthogonal weights, gain sqrt 2 in the body, 0.01 on the actions (nearly uniform), 1 on the value; biases 0.

    Source: Andrychowicz et al. 2021, section 3.2 (a small last policy layer matters most).
    """
    for layer in policy.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            gain = 0.01 if layer is policy.actor else 1.0 if layer is policy.critic else math.sqrt(2)
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return policy


def has_matrix_units() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AMX); elsewhere bfloat16 gains nothing."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16", False))


def matrices(policy: nn.Module) -> list[nn.Parameter]:
    """The weights between layers, without the heads': the first dimension counts a layer's outputs."""
    heads = [id(p) for name, head in policy.named_children() if name in ("actor", "critic") for p in head.parameters()]
    return [p for p in policy.parameters() if p.ndim > 1 and id(p) not in heads]


def flatten(policy: Policy) -> nn.Parameter:
    """Make every parameter and gradient a view of one flat tensor: one optimizer step, one norm, one exchange.

    The `matrices` come first.

    Returns the flat parameter, whose `.grad` is the flat gradient; zero it in place, never set it to None.
    """
    first = matrices(policy)
    ids = {id(p) for p in first}
    parameters = first + [p for p in policy.parameters() if id(p) not in ids]
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for p in parameters:
        end = start + p.numel()
        p.data, p.grad = flat.data[start:end].view_as(p), flat.grad[start:end].view_as(p)
        start = end
    return flat
