"""What N copies of the loop exchange: averages, gathers, agreement. Alone, nothing is exchanged and nothing started."""

from __future__ import annotations

import functools
import itertools
import math
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from surefoot.arrays import Array
from surefoot.parallel.launch import rank_and_world, store_file

ROOM = 1 << 18  # bytes; what is larger goes by sockets, but gradients


@dataclass(frozen=True)
class Ranks:
    """This process's place among the copies of the loop."""

    rank: int = 0
    count: int = 1
    patience: float = math.inf
    """seconds after which one that has not come is given up"""

    def columns(self, num_envs: int) -> slice:
        """This rank's share of the games."""
        share = num_envs // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def alloc_shared(self, rows: int, row: Tensor) -> Tensor:
        """Zeros for a policy's numbers [rows and one for each rank's gradient, P], the same memory for all ranks.

        Where they have none in common there is one gradient: this rank's own.
        """
        size = (rows + self.count) * row.nbytes
        shared = map_shared(self, size) if self.count > 1 and row.is_cpu else None
        if shared is None:
            return row.new_zeros(rows + 1, len(row))
        return shared.view(row.dtype).view(rows + self.count, -1)

    def reduce_gradient(
        self, gradient: Array, number: float, everyones: Tensor | None = None, own: slice = slice(None)
    ) -> tuple[float, float]:
        """Replace the gradient, in place, by its sum over the ranks; returns the number's sum and the gradient's norm.

        `everyones` [ranks, P]: where all ranks' gradients are seen each sums its `own` part alone, and then steps it.
        Source: Rajbhandari et al. 2020.
        """
        if self.count == 1:
            return number, math.sqrt(gradient.dot(gradient))
        tensor = torch.as_tensor(gradient)
        if everyones is not None and len(everyones) > 1:
            number = float(self.all_gather(torch.tensor(number, dtype=torch.float64)).sum())  # all have written
            part = tensor[own]
            for rank, other in enumerate(everyones):
                if rank != self.rank:
                    part += other[own]
            return number, math.sqrt(self.all_gather(part.dot(part)).sum())  # all have read
        shared = memory(self, tensor.nbytes + 8) if tensor.is_cpu else None
        if shared is None:
            dist.all_reduce(tensor)
            number = float(self.all_gather(torch.tensor(number, dtype=torch.float64)).sum())
        else:
            array, size = tensor.numpy(), tensor.nbytes
            board = next(shared.boards)
            parts, numbers = board[:, :size].view(array.dtype), board[:, -8:].view(np.float64)
            parts[self.rank], numbers[self.rank] = array, number
            shared.barrier()  # all have written
            parts.sum(0, out=array)
            number = float(numbers.sum())
        return number, math.sqrt(gradient.dot(gradient))

    def all_gather(self, numbers: Array) -> Tensor:
        """Every rank's numbers, of the same shape on each: [ranks, ...]."""
        own = torch.as_tensor(numbers).contiguous()
        if self.count == 1:
            return own[None]
        shared = memory(self, ROOM) if own.is_cpu and own.nbytes <= ROOM else None
        if shared is None:
            parts = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(parts, own)
            return torch.stack(parts)
        array, board = own.numpy(), next(shared.boards)[:, : own.nbytes]
        board[self.rank] = array.reshape(-1).view(np.uint8)
        shared.barrier()
        return torch.from_numpy(board.copy().view(array.dtype).reshape(self.count, *array.shape))

    def all_reduce_mean(self, numbers: Array) -> Tensor:
        """The ranks' mean of some numbers."""
        return self.all_gather(numbers).sum(0) / self.count

    def gather(self, columns: Tensor) -> Tensor:
        """[T, own games] of every rank, side by side: [T, games]."""
        return torch.cat(self.all_gather(columns).unbind(), 1)

    def local_columns(self, everything: Tensor) -> Tensor:
        """This rank's columns of [T, games]."""
        return everything[:, self.columns(everything.shape[1])]

    def broadcast(self, numbers: Tensor) -> None:
        """Make them, in place, rank 0's."""
        numbers.copy_(self.all_gather(numbers)[0])

    def all_reduce_min(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return int(self.all_gather(torch.tensor(number)).min())

    def any(self, decision: bool) -> bool:
        """Whether any rank has decided so."""
        return self.all_reduce_min(not decision) == 0

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, on every rank."""
        sizes = self.all_gather(torch.tensor(len(data))).tolist()
        padded = torch.frombuffer(bytearray(data.ljust(max(1, *sizes), b"\0")), dtype=torch.uint8)
        return [bytes(part[:size].numpy()) for part, size in zip(self.all_gather(padded), sizes, strict=True)]


class Shared:
    """Memory that all ranks of one machine see: two boards [ranks, bytes] that take turns, and a place to meet.

    Who writes on a board again has met all others since, at the second one, and so they have read it.
    """

    LINE = 64  # bytes that the processors pass to each other at a time: each rank's counter has its own

    def __init__(self, ranks: Ranks, seen: Tensor) -> None:
        counters, boards = seen[: ranks.count * self.LINE], seen[ranks.count * self.LINE :]
        self.boards = itertools.cycle(boards.view(2, ranks.count, -1).numpy())
        cells, step = counters.numpy().data.cast("q"), self.LINE // 8
        self.counters, self.pids, self.times = cells[::step], cells[1::step], 0
        self.mine, self.others = ranks.rank, [i for i in range(ranks.count) if i != ranks.rank]
        self.pids[self.mine], self.patience = os.getpid(), ranks.patience

    def barrier(self) -> None:
        """Wait until all ranks are here: microseconds where they come together, which sockets take a hundred of.

        The counters rely on stores being seen in the order they were made, as on x86.
        """
        self.times += 1
        self.counters[self.mine] = self.times
        tries, began = 0, time.monotonic()
        for other in self.others:
            while self.counters[other] < self.times:
                tries += 1
                if tries > 20_000:  # some milliseconds: another is far behind
                    time.sleep(1e-4)
                    if tries % 5_000 == 0:
                        self.check_alive(other, time.monotonic() - began)
                elif tries > 200:
                    os.sched_yield()

    def check_alive(self, other: int, waited: float) -> None:
        """Raise RuntimeError where a rank that is waited for will not come any more."""
        try:
            os.kill(self.pids[other], 0)  # 0, all of us, where it has not written its own yet
        except ProcessLookupError:
            raise RuntimeError(f"rank {other} is gone") from None
        if waited > self.patience:
            raise RuntimeError(f"rank {other} has not come for {waited:.0f} seconds")


@functools.cache
def memory(ranks: Ranks, size: int) -> Shared | None:
    """What the ranks of one machine share for exchanges of so many bytes each; None where there is nothing `common`."""
    size = 2 * ranks.count * (-size // 8 * -8) + ranks.count * Shared.LINE  # whole numbers of 8 bytes
    seen = map_shared(ranks, size)
    return None if seen is None else Shared(ranks, seen)


def map_shared(ranks: Ranks, size: int) -> Tensor | None:
    """So many bytes, zeros, that all ranks of one machine see; None where they are on several, or it cannot be had.

    They have no name: they go with the processes, however these end.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != str(ranks.count) or not hasattr(os, "memfd_create"):
        return None
    if platform.machine() != "x86_64":
        return None
    place, file, seen = torch.tensor([os.getpid(), -1]), -1, None
    if ranks.rank == 0:
        with suppress(OSError):
            file = os.memfd_create("surefoot")
            os.posix_fallocate(file, 0, size)
            place[1] = file
    dist.broadcast(place, 0)
    with suppress(RuntimeError):
        path = "/proc/{}/fd/{}".format(*place.tolist())
        seen = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    all_see = torch.tensor(int(seen is not None))
    dist.all_reduce(all_see, dist.ReduceOp.MIN)
    if file >= 0:
        os.close(file)  # the mapping stays
    return seen if all_see else None


def join(timeout: float = 300.0) -> Ranks:
    """This process's place among the ranks that `launch` or torchrun started; connects them where there are several.

    Those that `launch` started find each other by a file, and gloo listens on the loopback interface alone.
    `timeout`: seconds after which a watchdog would have found out that one is silent; connections wait for longer.
    """
    (rank, count), patience = rank_and_world(), 2 * timeout + 300
    wait = timedelta(seconds=patience)
    if count > 1 and not dist.is_initialized():
        if path := store_file():
            store = dist.FileStore(path, count)  # type: ignore[attr-defined]
            store.set_timeout(wait)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=wait)
        else:
            dist.init_process_group("gloo", timeout=wait)  # at MASTER_ADDR and MASTER_PORT
    return Ranks(rank, max(1, count), patience)
