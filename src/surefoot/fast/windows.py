"""Images as the windows that convolutions see, each of them once: in games nearly all are alike.

What a convolution makes of a window is a function of it. So patches are numbered, alike ones alike; then the first
convolution's windows, each a row of patches' numbers; then the second's, each a row of the first's; and so on. A
convolution is then a product over the windows that differ, and its gradient a sum over all that are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from surefoot.models.layers import Patches, PixelConv
from surefoot.models.policy import MICROBATCH, Policy

Numbers = NDArray[np.intp]
Shape = tuple[tuple[int, ...], tuple[int, ...]]  # of a convolution's kernel, and its steps
WORTH = 0.4  # of all windows: where more than so many differ, convolving images is faster
SAMPLES = 9  # images that tell what is usually where
MIX = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)  # MurmurHash3's, for the last step of 64 bits
ROUND = 128  # windows come in multiples of it, the last ones for nothing: oneDNN writes code anew for every number
CHUNK = 1 << 17  # numbers that fit a cache
MOST = 1 << 25  # numbers of a table before it is known what differs


@dataclass(frozen=True)
class Windows:
    """What a network's next layer sees in B images."""

    rows: Tensor
    """[U, C] patches that differ; or what the layers so far have made of windows that differ"""
    tables: tuple[Numbers, ...]
    """[U', K] for each convolution to come: which rows its windows are made of; last [B, height, width]: the images"""

    def __len__(self) -> int:
        """How many images."""
        return len(self.tables[-1])

    def __getitem__(self, which: slice | Numbers) -> Windows:
        """Some of the images, with the windows that are in them."""
        some, tables = self.tables[-1][which], list[Numbers]()
        for below in (*self.tables[-2::-1], self.rows.numpy()):
            there = np.zeros(len(below), np.bool_)
            there[some] = True
            tables.append((there.cumsum() - 1)[some])
            indices = np.flatnonzero(there)
            some = below[np.resize(indices, -(-len(indices) // ROUND) * ROUND)]
        return Windows(torch.from_numpy(some), (*reversed(tables),))

    def convolve(self, layers: nn.Sequential, dtype: torch.dtype) -> tuple[Tensor, nn.Sequential]:
        """The images after as many of the first layers as there are tables for, and the layers that are left.

        [B, C, height, width], channels-last. `dtype`: what convolutions compute in.
        """
        rows, tables, done = self.rows, self.tables, 0
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                if len(tables) == 1:
                    break
                weight, bias = (
                    layer.fold(dtype) if isinstance(layer, PixelConv) else (layer.weight.to(dtype), layer.bias)
                )
                windows = spread(rows.to(dtype), tables[0]).flatten(1)
                rows, tables = F.linear(windows, weight.permute(0, 2, 3, 1).flatten(1), bias), tables[1:]
            elif isinstance(layer, nn.ReLU):
                rows = layer(rows)
            else:
                break
            done += 1
        return spread(rows, tables[0]).permute(0, 3, 1, 2), nn.Sequential(*list(layers)[done:])


class _Spread(torch.autograd.Function):
    """rows[table]; what comes back is summed in single precision at least, as some rows are in thousands of places."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Numbers) -> Tensor:
        ctx.count, ctx.at = len(rows), torch.from_numpy(table).flatten()
        return rows.index_select(0, ctx.at).view(*table.shape, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        parts, exact = grad.reshape(len(ctx.at), -1), torch.promote_types(grad.dtype, torch.float32)
        total = grad.new_zeros(ctx.count, parts.shape[1], dtype=exact)
        size = max(1, CHUNK // parts.shape[1])
        for at, part in zip(torch.split(ctx.at, size), torch.split(parts, size), strict=True):
            total.index_add_(0, at, part.to(exact))
        return total.to(grad.dtype), None


spread: Callable[[Tensor, Numbers], Tensor] = _Spread.apply


def windows_of(policy: Policy, *parts: Tensor) -> Windows | None:
    """Preprocessed images [..., rows, columns, C] as a policy's convolutions see them; None where it gains nothing."""
    if not isinstance(policy.preprocess, Patches) or not parts[0].is_cpu:
        return None
    images, convolutions = [x.flatten(0, -4) for x in parts], list[Shape]()
    for layer in policy.body:
        if isinstance(layer, nn.Conv2d) and (layer.padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1):
            convolutions.append((layer.kernel_size, layer.stride))
        elif not isinstance(layer, nn.ReLU):
            break
    small = policy.microbatch(images[0]) >= MICROBATCH // 4  # windows of large images are many times their size
    return distinct_windows(images, convolutions) if convolutions and small else None


def distinct_windows(parts: Sequence[Tensor], convolutions: Sequence[Shape]) -> Windows | None:
    """Those of images [B, height, width, C], cut into patches, for convolutions of such shapes.

    For as many of these as it is worth it; None: for none.
    """
    height, width, channels = parts[0].shape[1:]
    word = np.dtype(f"u{np.gcd(channels * parts[0].element_size(), 8)}")
    words = [part.contiguous().numpy().view(word) for part in parts]
    usual = np.sort(words[0][:: max(1, len(words[0]) // SAMPLES)][:SAMPLES], 0)
    usual = usual[len(usual) // 2, None]  # what is there in most images, if it is in most; it goes first, as image 0
    several = np.dtype(f"u{np.gcd(words[0].shape[-1], 8)}")  # of comparisons, looked at as one number
    differ = [((x != usual).view(several) != 0).any(-1) for x in words]
    rare = np.concatenate((np.ones((1, height, width), np.bool_), *differ))
    rows = [usual.reshape(height * width, -1), *(x[where] for x, where in zip(words, differ, strict=True))]
    table, number = _numbered(np.concatenate(rows), rare)
    patches, tables = torch.from_numpy(table.view(parts[0].numpy().dtype)), list[Numbers]()
    for kernel, (down, right) in convolutions:
        seen, near = (sliding_window_view(x, kernel, (1, 2))[:, ::down, ::right] for x in (number, rare))
        rare = reduce(np.logical_or, (near[..., i, j] for i, j in np.ndindex(kernel)))
        if np.count_nonzero(rare) * math.prod(kernel) > MOST:
            break
        table, numbers = _numbered(seen[rare].reshape(-1, math.prod(kernel)), rare)
        if len(table) > WORTH * numbers.size:
            break
        tables.append(table)
        number = numbers
    return Windows(patches, (*tables, number[1:])) if tables else None


def _numbered(rows: NDArray[Any], rare: NDArray[np.bool_]) -> tuple[NDArray[Any], Numbers]:
    """The rows that differ, and which is at each place: `rows` are those at `rare` places; at others it is image 0's.

    Rows are alike if 64 bits mixed from them are. Those that are alike meet in a slot, and the last one there is for
    all of them; only those that meet others are sorted, which takes several times as long.
    """
    count = len(rows)
    key, every = np.zeros(count, np.uint64), np.arange(count)
    for column in rows.T:
        key ^= column.astype(np.uint64)
        for factor in MIX:  # where a word differs, about every second bit does afterwards
            key ^= key >> np.uint64(33)
            key *= factor
    bits = count.bit_length() + 1
    slot, last = (key >> np.uint64(64 - bits)).view(np.intp), np.empty(1 << bits, np.intp)
    last[slot] = every
    one = last[slot]
    others = np.flatnonzero(key[one] != key)
    _, group = np.unique(key[others], return_inverse=True)
    last[group] = others
    one[others] = last[group]
    first = np.flatnonzero(one == every)
    last[first] = np.arange(len(first))
    row_number = last[one]
    number = np.repeat(row_number[None, : rare[0].size], len(rare), 0).reshape(rare.shape)
    number[rare] = row_number
    return rows[first], number
