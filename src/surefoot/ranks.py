"""What N copies of the loop exchange: averages, gathers, agreement. Alone, nothing is exchanged and nothing started."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
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
        """Replace both, in place, by their means over the ranks."""
        if self.count == 1:
            return
        turns = boards(self, len(gradient), gradient.dtype) if gradient.is_cpu else None
        if turns is None:
            dist.all_reduce(gradient.div_(self.count))
            dist.all_reduce(stats.div_(self.count))
            return
        board = next(turns)
        torch.div(gradient, self.count, out=board[self.rank])
        dist.all_reduce(stats.div_(self.count))  # which ends when all have written
        torch.sum(board, 0, out=gradient)

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


@functools.cache
def boards(ranks: Ranks, size: int, dtype: torch.dtype) -> Iterator[Tensor] | None:
    """Memory [ranks, size] that all ranks of one machine see; None where they are on several, or it cannot be had.

    Twice as fast as sockets. There are two that take turns: who writes on one again has met all others since, at the
    second one, and so they have read it. The memory has no name: it goes with the processes, however they end.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != str(ranks.count) or not hasattr(os, "memfd_create"):
        return None
    numbers, place, memory, seen = 2 * ranks.count * size, torch.tensor([os.getpid(), -1]), -1, None
    if ranks.rank == 0:
        with suppress(OSError):
            memory = os.memfd_create("surefoot")
            os.posix_fallocate(memory, 0, numbers * dtype.itemsize)
            place[1] = memory
    dist.broadcast(place, 0)
    with suppress(RuntimeError):
        path = "/proc/{}/fd/{}".format(*place.tolist())
        seen = torch.from_file(path, shared=True, size=numbers, dtype=dtype)
    everywhere = not ranks.agree(seen is None)
    if memory >= 0:
        os.close(memory)  # the mapping stays
    if seen is None or not everywhere:
        return None
    return itertools.cycle(seen.view(2, ranks.count, size))


def join(timeout: float = 300.0) -> Ranks:
    """This process's place, from torchrun's variables; joins the others where there are any.

    `timeout`: seconds after which a watchdog would have found out that one is silent; connections wait for longer.
    """
    count = max(1, world())
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=2 * timeout + 300))
    return Ranks(int(os.environ.get("RANK", "0")) if count > 1 else 0, count)
