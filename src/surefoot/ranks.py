"""What N copies of the loop exchange: averages, gathers, agreement. Alone, nothing is exchanged and nothing started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from surefoot.launch import world


@dataclass(frozen=True)
class Ranks:
    """This process's place among the copies of the loop."""

    rank: int = 0
    count: int = 1

    def columns(self, games: int) -> slice:
        """This rank's share of the games."""
        share = games // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def average(self, gradient: Tensor, stats: Tensor) -> None:
        """Replace both, in place, by their means over the ranks; the figures ride at the end of one buffer."""
        if self.count == 1:
            return
        buffer = torch.cat((gradient, stats)).div_(self.count)
        dist.all_reduce(buffer)
        gradient.copy_(buffer[: len(gradient)])
        stats.copy_(buffer[len(gradient) :])

    def mean(self, numbers: Tensor) -> Tensor:
        """The ranks' mean of some numbers."""
        if self.count > 1:
            dist.all_reduce(numbers)
        return numbers / self.count

    def gather(self, columns: Tensor) -> Tensor:
        """[T, own games] of every rank, side by side: [T, games]."""
        if self.count == 1:
            return columns
        parts = [torch.empty_like(columns) for _ in range(self.count)]
        dist.all_gather(parts, columns.contiguous())
        return torch.cat(parts, 1)

    def own(self, everything: Tensor) -> Tensor:
        """This rank's columns of [T, games]."""
        return everything[:, self.columns(everything.shape[1])]

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        if self.count == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return int(tensor)

    def agree(self, decision: bool) -> bool:
        """Whether any rank has decided so."""
        return self.least(not decision) == 0

    def collect_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, on rank 0 (elsewhere an empty list)."""
        if self.count == 1:
            return [data]
        sizes = self.gather(torch.tensor([[len(data)]]))[0].tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in sizes] if self.rank == 0 else None
        dist.gather(padded, parts)
        return [bytes(p[:size].numpy()) for p, size in zip(parts or [], sizes, strict=False)]


def join(timeout: float = 300.0) -> Ranks:
    """This process's place, from torchrun's variables; joins the others where there are any.

    `timeout`: seconds after which a watchdog would have found out that one is silent; connections wait for longer.
    """
    count = max(1, world())
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=2 * timeout + 300))
    return Ranks(int(os.environ.get("RANK", "0")) if count > 1 else 0, count)
