"""The layers that policies are made of."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from surefoot.envs.spaces import MASK, Part

Array = NDArray[Any]


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
    `channels_last`: the images are [B, H, W, C].
    """

    def __init__(self, size: int, channels_last: bool = False) -> None:
        super().__init__()
        self.size, self.channels_last = size, channels_last

    def forward(self, obs: Tensor) -> Tensor:
        """Same dtype out as in; pixels that fill no whole square are dropped."""
        if obs.ndim == 5:  # a stack of pictures in colour: side by side as channels
            obs = (obs.permute(0, 1, 4, 2, 3) if self.channels_last else obs).flatten(1, 2)
        elif obs.ndim == 3:
            obs = obs[:, None]
        elif self.channels_last:
            obs = obs.permute(0, 3, 1, 2)
        n, channels, height, width = obs.shape
        k, rows, columns = self.size, height // self.size, width // self.size
        if obs.dtype == torch.uint8 and obs.is_contiguous() and obs.is_cpu and k % 4 == width % 4 == 0:
            # four pixels of a line stay together, moved as one word: a third of the time
            words = obs.numpy().reshape(n, -1).view(np.int32).take(_word_order(channels, height, width, k), 1)
            return torch.from_numpy(words.view(np.uint8).reshape(n, rows, columns, -1))
        squares = obs[:, :, : rows * k, : columns * k].reshape(n, channels, rows, k, columns, k)
        return squares.permute(0, 2, 4, 1, 3, 5).reshape(n, rows, columns, -1)

    def extra_repr(self) -> str:
        """Shown by `surefoot summary`."""
        return f"size={self.size}"


@functools.cache
def _word_order(channels: int, height: int, width: int, size: int) -> NDArray[np.intp]:
    """For each word (four pixels) of an image's patches, its index in the image."""
    rows, columns = height // size, width // size
    words = np.arange(channels * height * width // 4).reshape(channels, height, width // 4)
    whole = words[:, : rows * size, : columns * size // 4].reshape(channels, rows, size, columns, size // 4)
    return whole.transpose(1, 3, 0, 2, 4).ravel()


class PixelConv(nn.Conv2d):
    """A convolution of (pixel - background) / scale over Patches.

    Both are folded into weights and bias, which is the same function and spares two passes over the pixels. Padding is
    black: it goes with a background of 0.
    """

    def __init__(
        self, channels: int, filters: int, kernel: int, background: float = 0.0, scale: float = 255.0, padding: int = 0
    ) -> None:
        super().__init__(channels, filters, kernel, padding=padding)
        self.background, self.scale = background, scale
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias that take pixels as they are."""
        assert self.bias is not None
        weight = (self.weight / self.scale).to(dtype)
        bias = self.bias - self.background * weight.sum((1, 2, 3), dtype=self.bias.dtype)  # of the rounded weights
        return weight, bias.to(dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, rows, columns, C] of any dtype to [B, filters, rows', columns']."""
        bf16 = torch.is_autocast_enabled("cpu")
        weight, bias = self.folded or self.fold(torch.bfloat16 if bf16 else self.weight.dtype)
        return F.conv2d(patches.to(weight.dtype).permute(0, 3, 1, 2), weight, bias, padding=self.padding)


class Residual(nn.Module):
    """x + last(relu(first(relu(x)))), both 3x3 convolutions. Source: He et al. 2016."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, height, width] to the same."""
        return torch.add(x, self.last(F.relu(self.first(F.relu(x)))))


class FlattenChannelsLast(nn.Module):
    """[B, C, H, W] to [B, H W C]: the order in which convolutions leave their output in memory, so nothing moves."""

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers, as rows."""
        return x.permute(0, 2, 3, 1).flatten(1)


class RunningNorm(nn.Module):
    """(x - mean) / std with a running mean and variance in double precision, clipped to LIMIT standard deviations.

    The statistics are fixed while a rollout is collected and learned from. They are part of the policy: saved with it,
    and fixed in evaluations. Before there are any, x is unchanged. Source: Schulman et al. 2016, appendix.
    """

    count: Tensor
    mean: Tensor
    square: Tensor
    factor: Tensor
    shift: Tensor
    LIMIT = 10.0

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))  # sum of (x - mean)^2
        self.register_buffer("factor", torch.ones(size), persistent=False)
        self.register_buffer("shift", torch.zeros(size), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """[B, size] to [B, size]."""
        return (x * self.factor + self.shift).clamp(-self.LIMIT, self.LIMIT)

    def assign(self, count: Tensor, mean: Tensor, square: Tensor) -> None:
        """Take these statistics."""
        self.count.copy_(count)
        self.mean.copy_(mean)
        self.square.copy_(square)
        self.refresh()

    def refresh(self) -> None:
        """Compute factor and shift from the statistics."""
        if self.count > 0:
            factor = (self.square / self.count + 1e-8).rsqrt()
            self.factor.copy_(factor)
            self.shift.copy_(-self.mean * factor)


def merge(known: Iterable[Array], counts: Sequence[int], parts: Array) -> tuple[Array, Array, Array]:
    """Moments of everything, from the known ones and those of every environment, `counts` samples each, in order.

    Moments are count [], mean and sum of (x - mean)^2, [K]; `parts` [N, 2, K]. Source: Chan et al. 1983.
    """
    count, mean, square = known
    for more, (part_mean, part_square) in zip(counts, parts, strict=True):
        if not more:
            continue
        total, gap = count + more, part_mean - mean
        mean = mean + gap * (more / total)
        square = square + part_square + gap * gap * (count * more / total)
        count = total
    return count, mean, square


def part_of(row: Any, part: Part) -> Tensor:
    """One part of Dict observations [B, bytes], in its own dtype and shape; `row` itself where there is only one.

    `row` may also be a dict of the parts by their paths, as in a graph for ONNX, which knows no views of bytes.
    """
    if not part.path or isinstance(row, dict):
        x: Tensor = row[part.path] if part.path else row
        return x
    dtype = torch.from_numpy(np.zeros(0, part.dtype)).dtype
    x = row[:, part.start : part.stop].clone(memory_format=torch.contiguous_format)  # a single row keeps its stride
    return x.view(dtype).view(len(row), *part.shape)


class VectorEncoder(nn.Module):
    """Observations as one row of floats: numbers as they are, or normalised by their running statistics; bytes from 0
    to 1 by the bounds that their space announces; choices one-hot; an action mask, unchanged, last.
    """

    def __init__(self, layout: Sequence[Part], running: bool = False) -> None:
        super().__init__()
        self.layout = [part for part in layout if part.dtype != np.float32]
        self.floats = [part for part in layout if part.dtype == np.float32]
        size = sum(int(np.prod(part.shape)) for part in self.floats)
        self.width = size + sum(self._width(part) for part in self.layout)
        self.moments = RunningNorm(size) if running and size else None

    @staticmethod
    def _width(part: Part) -> int:
        return sum(part.sizes) or int(np.prod(part.shape))

    @property
    def is_float_vector(self) -> bool:
        """Whether observations are one Box of floats and nothing else."""
        return bool(self.floats) and not self.layout and not self.floats[0].path

    def numbers(self, obs: Tensor) -> Tensor:
        """What running statistics are of, [B, K]."""
        return torch.cat([part_of(obs, part).flatten(1) for part in self.floats], 1)

    def forward(self, obs: Tensor) -> Tensor:
        """Observations [B, ...] to [B, width]."""
        rows = []
        if self.floats:
            x = obs.flatten(1) if self.is_float_vector else self.numbers(obs)
            rows.append(x if self.moments is None else self.moments(x))
        for part in self.layout:
            x = part_of(obs, part).flatten(1)
            if part.sizes:
                rows += [F.one_hot(x[:, d], size).float() for d, size in enumerate(part.sizes)]
            elif isinstance(part.space, spaces.MultiBinary) or part.path == MASK:
                rows.append(x.float())
            else:
                low, high = part.bounds()
                rows.append((x.float() - low) / ((high - low) or 1.0))
        return torch.cat([row.to(rows[0].dtype) for row in rows], 1) if len(rows) > 1 else rows[0]

    def extra_repr(self) -> str:
        """Shown by `surefoot summary`."""
        return f"width={self.width}"


class DictEncoder(nn.Module):
    """The parts of a Dict, each encoded, side by side: images by `image_encoders`, all else by one VectorEncoder."""

    def __init__(self, images: Sequence[Part], image_encoders: Sequence[nn.Module], rest: VectorEncoder) -> None:
        super().__init__()
        self.images, self.rest = images, rest
        self.image_encoders = nn.ModuleList(image_encoders)

    def forward(self, row: Tensor) -> Tensor:
        """Bytes [B, row] to floats [B, all widths]."""
        encoded = [encode(part_of(row, part)) for part, encode in zip(self.images, self.image_encoders, strict=True)]
        rest = [self.rest(row).to(encoded[0].dtype)] if self.rest.width else []  # a mask is not encoded
        return torch.cat([*encoded, *rest], 1)


class ActorCriticLinear(nn.Module):
    """Two fully connected layers side by side, the actor's and the critic's, computed at once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(2 * outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs], which both get, or [2, B, inputs] to [2, B, outputs]."""
        return torch.baddbmm(self.bias.view(2, 1, -1), x.expand(2, -1, -1), self.weight.mT)

    def extra_repr(self) -> str:
        """Shown by `surefoot summary`."""
        return f"2 x {self.weight.shape[2]} to {self.weight.shape[1]}"
