"""The memory of a recurrent policy: a GRU or an LSTM over the body's features, step by step or over whole sequences.

Sequences have no padding: PyTorch takes the first rows of all of them, the longest first, then the second rows of those
that have one, and so on (its PackedSequence). There is one row for each transition, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surefoot.models.policy import Policy

SPAN = 100  # steps: at the start the units' memories last from 1 to about so many


class Sequences(NamedTuple):
    """How rows [B, ...] are sequences: one lies after the other."""

    lengths: NDArray[np.intp]
    """[S] numbers of rows"""
    memory: Tensor
    """[S, M] what was remembered before the first row of each"""

    @staticmethod
    def of(begins: NDArray[np.bool_], memory: Tensor) -> Sequences:
        """Of rows of which some begin a sequence [B]; `memory` [S, M]."""
        return Sequences(np.diff(np.flatnonzero(np.append(begins, True))), memory)

    def split(self, most: int) -> Iterator[tuple[slice, Sequences]]:
        """In parts of at most `most` rows (or one sequence): which rows, and how they are sequences."""
        ends, i, start = self.lengths.cumsum(), 0, 0
        while i < len(ends):
            j = max(i + 1, int(ends.searchsorted(start + most, "right")))
            yield slice(start, int(ends[j - 1])), Sequences(self.lengths[i:j], self.memory[i:j])
            i, start = j, int(ends[j - 1])


class Recurrent(nn.Module):
    """Adds to features what the episode so far says: f + W h, h = unit(f, memory). W is 0 at first.

    So the policy begins as the one without a memory. A memory [B, M] is h; an LSTM's h and c, side by side.
    """

    def __init__(self, policy: Policy, lstm: bool, units: int) -> None:
        super().__init__()
        inputs = policy.actor.in_features * (1 if policy.shares else 2)
        self.cell = cell = nn.LSTMCell(inputs, units) if lstm else nn.GRUCell(inputs, units)
        self.width = 2 * units if lstm else units
        self.add = nn.Linear(units, inputs, bias=False)
        nn.init.zeros_(self.add.weight)
        for weight in (cell.weight_ih, cell.weight_hh):
            for gate in weight.detach().view(-1, units, weight.shape[1]):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(cell.bias_hh)
        nn.init.zeros_(cell.bias_ih)
        gates, keep = cell.bias_ih.detach().view(-1, units), torch.linspace(0, math.log(SPAN), units)
        gates[1] = keep  # sigmoid(log T) keeps T / (T + 1) of a memory: Tallec & Ollivier 2018
        if lstm:
            gates[0] = -keep

    def step(self, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Features and memories [B, M] of B environments, one step on."""
        x = self.rows(features)
        if isinstance(self.cell, nn.GRUCell):
            h = memory = self.cell(x, memory)
        else:
            h, c = self.cell(x, memory.chunk(2, 1))
            memory = torch.cat((h, c), 1)
        return self.joined(features, h), memory

    def over(self, features: Tensor, sequences: Sequences) -> Tensor:
        """Features of whole sequences."""
        lengths, device = sequences.lengths, features.device
        longest = np.argsort(-lengths, kind="stable")
        sizes = lengths[longest]
        step = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)  # of each row in its sequence
        rows = step + np.repeat((lengths.cumsum() - lengths)[longest], sizes)
        order = torch.from_numpy(rows[np.argsort(step, kind="stable")]).to(device)
        memory = sequences.memory.index_select(0, torch.from_numpy(longest).to(device))[None]
        unit: Any = torch.gru if isinstance(self.cell, nn.GRUCell) else torch.lstm
        start = memory if unit is torch.gru else memory.chunk(2, 2)
        weights = [*self.cell.parameters()]
        packed = self.rows(features).index_select(0, order), torch.from_numpy(np.bincount(step))
        h: Tensor = unit(*packed, start, weights, True, 1, 0.0, False, False)[0]  # no dropout, one direction
        return self.joined(features, torch.empty_like(h).index_copy(0, order, h))

    def rows(self, features: Tensor) -> Tensor:
        """Features [B, K]; those that are not shared are [2, B, K / 2]."""
        return features if features.ndim == 2 else features.transpose(0, 1).flatten(1)

    def joined(self, features: Tensor, h: Tensor) -> Tensor:
        """f + W h, in the features' own shape."""
        added: Tensor = self.add(h)
        return features + (added if features.ndim == 2 else added.view(h.shape[0], 2, -1).transpose(0, 1))
