"""What the ranks of a run exchange: one interface, and three classes of which `join` chooses one at the start."""

from __future__ import annotations

import itertools
import math
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from surefoot.parallel.heartbeat import WaitingClock
from surefoot.parallel.launch import rank_and_world, store_file
from surefoot.parallel.rendezvous import meet

SMALL = 1 << 18  # bytes; larger messages, gradients aside, go through gloo
LINE = 64  # bytes that processors pass to each other at a time: each rank's counter has its own

Array = Any
"""a PyTorch tensor or a NumPy array"""


class Ranks(ABC):
    """The processes that run the same loop, as one of them sees them.

    Except for `columns`, `local_columns`, `finish_rollout` and `is_cut` all ranks call the same methods in the same
    order, with messages of the same shape and type. All get the same bits. Raises RuntimeError where another rank has
    ended or does not come.
    """

    def __init__(self, rank: int = 0, count: int = 1, timeout: float = math.inf) -> None:
        self.rank, self.count = rank, count
        self.timeout = timeout
        """seconds to wait for another rank before giving it up"""
        self.sent = 0
        """bytes of the messages that this rank has given to the others so far, by sockets or in memory"""

    @abstractmethod
    def all_gather(self, numbers: Array) -> Tensor:
        """Every rank's numbers: [ranks, ...]."""

    @abstractmethod
    def reduce_gradient(
        self, gradient: Array, number: float, gradients: Tensor | None = None, part: slice = slice(None)
    ) -> tuple[float, float]:
        """Replace the gradient [P], in place, by its sum over the ranks; returns a number's sum, the sum's norm.

        `gradients` [ranks, P], from `alloc_shared`, of which `gradient` is this rank's row: where it holds all ranks'
        gradients only `part` of this rank's row is summed, since the rank updates no other parameters.
        Source: Rajbhandari et al. 2020 (ZeRO, stage 1).
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait until all ranks are here."""

    def finish_rollout(self, iteration: int, share: float) -> None:
        """Tell the others that this rank has played its rollout; once `share` of all ranks have, they cut theirs."""
        return

    def is_cut(self, iteration: int) -> bool:
        """Whether enough ranks have played their rollout for the others to cut theirs; asked by one rank alone."""
        return False

    def alloc_shared(self, rows: int, row: Tensor) -> Tensor:
        """Zeros for rows of parameters and one row for each rank's gradient [rows + ranks, P], shared by all ranks.

        Where ranks share no memory: this rank's own, with one gradient, [rows + 1, P].
        """
        return row.new_zeros(rows + 1, len(row))

    def columns(self, num_envs: int) -> slice:
        """This rank's environments, of all `num_envs`."""
        share = num_envs // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def local_columns(self, everything: Tensor) -> Tensor:
        """This rank's columns of [T, environments]."""
        return everything[:, self.columns(everything.shape[1])]

    def gather_columns(self, columns: Tensor) -> Tensor:
        """[T, this rank's environments] of every rank, side by side: [T, environments]."""
        return torch.cat(self.all_gather(columns).unbind(), 1)

    def all_reduce_mean(self, numbers: Array) -> Tensor:
        """The mean over the ranks."""
        return self.all_gather(numbers).sum(0) / self.count

    def all_reduce_min(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return int(self.all_gather(torch.tensor(number)).min())

    def any(self, condition: bool) -> bool:
        """Whether it is true on any rank."""
        return self.all_reduce_min(not condition) == 0

    def broadcast(self, numbers: Tensor) -> None:
        """Replace them, in place, by rank 0's."""
        numbers.copy_(self.all_gather(numbers)[0])

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, of any length."""
        sizes = self.all_gather(torch.tensor(len(data))).tolist()
        padded = torch.frombuffer(bytearray(data.ljust(max(1, *sizes), b"\0")), dtype=torch.uint8)
        return [bytes(part[:size].numpy()) for part, size in zip(self.all_gather(padded), sizes, strict=True)]


class Alone(Ranks):
    """One process: nothing is exchanged."""

    def __init__(self) -> None:
        super().__init__()

    def all_gather(self, numbers: Array) -> Tensor:
        return torch.as_tensor(numbers).contiguous()[None]

    def reduce_gradient(
        self, gradient: Array, number: float, gradients: Tensor | None = None, part: slice = slice(None)
    ) -> tuple[float, float]:
        return number, math.sqrt(gradient.dot(gradient))

    def barrier(self) -> None:
        pass

    def any(self, condition: bool) -> bool:
        return condition

    def all_reduce_min(self, number: int) -> int:
        return number

    def broadcast(self, numbers: Tensor) -> None:
        pass

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]


class Gloo(Ranks):
    """Ranks that exchange everything through torch.distributed's gloo, on one machine or several."""

    bf16 = False
    """gradients are sent as bfloat16"""

    def all_gather(self, numbers: Array) -> Tensor:
        mine = torch.as_tensor(numbers).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        self.sent += mine.nbytes
        dist.all_gather(parts, mine)
        return torch.stack(parts)

    def reduce_gradient(
        self, gradient: Array, number: float, gradients: Tensor | None = None, part: slice = slice(None)
    ) -> tuple[float, float]:
        tensor = torch.as_tensor(gradient)
        if self.bf16:
            self.sent += all_reduce_bf16(tensor, self.count)
        else:
            self.sent += tensor.nbytes
            dist.all_reduce(tensor)
        number = float(self.all_gather(torch.tensor(number, dtype=torch.float64)).sum())
        return number, math.sqrt(gradient.dot(gradient))

    def barrier(self) -> None:
        self.all_gather(torch.zeros(1))

    def finish_rollout(self, iteration: int, share: float) -> None:
        if self.store.add(f"finished/{iteration}", 1) == math.ceil(share * self.count - 1e-9):
            self.store.set(f"cut/{iteration}", b"")

    def is_cut(self, iteration: int) -> bool:
        return bool(self.store.check([f"cut/{iteration}"]))

    @property
    def store(self) -> Any:
        """Where the ranks have met: a file's or torchrun's, which answers without waiting for anybody."""
        return dist.distributed_c10d._get_default_store()


class SharedMemory(Gloo):
    """Ranks of one machine that map the same memory: an exchange takes microseconds, through gloo hundreds.

    Each rank has a counter of the barriers it has come to, and its process id. Messages are written on boards
    [ranks, bytes] of which there are two of each size, used in turn: whoever writes on a board again has passed the
    barrier of the other one since, to which every rank came after it had read this one.
    The counters rely on stores becoming visible in the order they are made, as on x86.
    """

    def __init__(self, rank: int, count: int, timeout: float, memory: Tensor) -> None:
        """`memory`: `count` lines of bytes, zeros, that all ranks map."""
        super().__init__(rank, count, timeout)
        cells, step = memory.numpy().data.cast("q"), LINE // 8
        self.counters, self.pids, self.barriers = cells[::step], cells[1::step], 0
        self.others = [other for other in range(count) if other != rank]
        self.pids[rank] = os.getpid()
        self.boards = dict[int, Iterator[np.ndarray[Any, Any]] | None]()

    def board(self, size: int) -> np.ndarray[Any, Any] | None:
        """The next board of so many bytes a rank; None where the machine has no memory for them."""
        if size not in self.boards:
            each = -size // 8 * -8  # whole numbers of 8 bytes
            memory = map_shared(self.rank, 2 * self.count * each)
            self.boards[size] = None if memory is None else itertools.cycle(memory.view(2, self.count, each).numpy())
        boards = self.boards[size]
        return None if boards is None else next(boards)

    def all_gather(self, numbers: Array) -> Tensor:
        mine = torch.as_tensor(numbers).contiguous()
        board = self.board(SMALL) if mine.is_cpu and mine.nbytes <= SMALL else None
        if board is None:
            return super().all_gather(mine)
        self.sent += mine.nbytes
        array, board = mine.numpy(), board[:, : mine.nbytes]
        board[self.rank] = array.reshape(-1).view(np.uint8)
        self.barrier()
        return torch.from_numpy(board.copy().view(array.dtype).reshape(self.count, *array.shape))

    def reduce_gradient(
        self, gradient: Array, number: float, gradients: Tensor | None = None, part: slice = slice(None)
    ) -> tuple[float, float]:
        tensor = torch.as_tensor(gradient)
        if gradients is not None and len(gradients) > 1:
            number = float(self.all_gather(torch.tensor(number, dtype=torch.float64)).sum())  # all have written
            mine = tensor[part]
            self.sent += tensor.nbytes
            for other in self.others:
                mine += gradients[other][part]
            return number, math.sqrt(self.all_gather(mine.dot(mine)).sum())  # all have read
        board = self.board(tensor.nbytes + 8) if tensor.is_cpu else None
        if board is None:
            return super().reduce_gradient(gradient, number)
        self.sent += tensor.nbytes + 8
        array = tensor.numpy()
        parts, numbers = board[:, : tensor.nbytes].view(array.dtype), board[:, -8:].view(np.float64)
        parts[self.rank], numbers[self.rank] = array, number
        self.barrier()
        parts.sum(0, out=array)
        return float(numbers.sum()), math.sqrt(gradient.dot(gradient))

    def alloc_shared(self, rows: int, row: Tensor) -> Tensor:
        memory = map_shared(self.rank, (rows + self.count) * row.nbytes) if row.is_cpu else None
        if memory is None:
            return super().alloc_shared(rows, row)
        return memory.view(row.dtype).view(rows + self.count, -1)

    def barrier(self) -> None:
        self.barriers += 1
        self.counters[self.rank] = self.barriers
        tries, clock = 0, None
        for other in self.others:
            while self.counters[other] < self.barriers:
                tries += 1
                if tries > 20_000:  # some milliseconds: another is far behind
                    time.sleep(1e-4)
                    if tries % 5_000 == 0:  # about a second
                        clock = clock or WaitingClock(3.0)
                        self.check_alive(other, clock.read())
                elif tries > 200:
                    os.sched_yield()

    def check_alive(self, other: int, waited: float) -> None:
        """Raise RuntimeError where another rank has ended, or has been waited for too long."""
        try:
            os.kill(self.pids[other], 0)  # 0, all of us, where it has not written its own yet
        except ProcessLookupError:
            raise RuntimeError(f"rank {other} is gone") from None
        if waited > self.timeout:
            raise RuntimeError(f"rank {other} has not come for {waited:.0f} seconds")


def all_reduce_bf16(numbers: Tensor, count: int) -> int:
    """Replace numbers [P], in place, by their sum over `count` ranks; returns the bytes given to the others.

    They travel as bfloat16, and each rank sums a part of them in single precision: a number is rounded when it is sent,
    and its sum once more. gloo's own sum in bfloat16 is rounded after every rank.
    """
    half = numbers.new_zeros(count, -(-len(numbers) // count), dtype=torch.bfloat16, device="cpu")
    half.view(-1)[: len(numbers)] = numbers
    parts = torch.empty_like(half)
    dist.all_to_all_single(parts, half)
    dist.all_gather(list(half), parts.float().sum(0).bfloat16())
    numbers.copy_(half.view(-1)[: len(numbers)])
    return half.nbytes


def map_shared(rank: int, size: int) -> Tensor | None:
    """So many bytes, zeros, that all ranks of one machine map; None, on all of them, where one cannot map them.

    The memory has no name: it goes with the processes, however these end.
    """
    place, file, memory = torch.tensor([os.getpid(), -1]), -1, None
    if rank == 0:
        with suppress(OSError):
            file = os.memfd_create("surefoot")
            os.posix_fallocate(file, 0, size)
            place[1] = file
    dist.broadcast(place, 0)
    with suppress(RuntimeError):
        path = "/proc/{}/fd/{}".format(*place.tolist())
        memory = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    all_have = torch.tensor(int(memory is not None))
    dist.all_reduce(all_have, dist.ReduceOp.MIN)
    if file >= 0:
        os.close(file)  # the mapping stays
    return memory if all_have else None


def join(timeout: float = 300.0, bf16: bool = False) -> Ranks:
    """This process among the ranks that `launch` or torchrun started; connects them where there are several.

    Those that `launch` started find each other by a file, and gloo listens on the loopback interface alone.
    `timeout`: seconds after which a watchdog would have found out that one is silent; torchrun's ranks wait for longer.
    `bf16`: gradients between ranks that share no memory are sent as bfloat16.
    """
    (rank, count), timeout = rank_and_world(), 2 * timeout + 300
    if count <= 1:
        return Alone()
    if not dist.is_initialized():
        if path := store_file():
            timeout = math.inf  # the launcher ends ranks that hang, and its clock stands while all are stopped
            wait = timedelta(days=365)
            store = dist.FileStore(path, count)  # type: ignore[attr-defined]
            store.set_timeout(wait)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=wait)
        else:
            meet(rank, count, timeout)
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(count)
    if one_machine and hasattr(os, "memfd_create") and platform.machine() == "x86_64":
        memory = map_shared(rank, count * LINE)
        if memory is not None:
            return SharedMemory(rank, count, timeout, memory)
    ranks = Gloo(rank, count, timeout)
    ranks.bf16 = bf16
    return ranks
