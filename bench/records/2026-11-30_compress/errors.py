"""How far a gradient's sum is from the exact one: in single precision, with gloo's bfloat16, and with ours."""

import sys
import time

import torch
import torch.distributed as dist

from surefoot.parallel.launch import die_with_launcher, exit_now, launch
from surefoot.parallel.ranks import all_reduce_bf16, join

PARAMETERS, REPEATS = 1_061_428, 10  # of `pong`


def normal(rank: int) -> torch.Tensor:
    """This rank's gradient: normal numbers."""
    return torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(rank))


def gloo_bf16(numbers: torch.Tensor, _: int) -> None:
    """gloo's own sum."""
    half = numbers.bfloat16()
    dist.all_reduce(half)
    numbers.copy_(half)


if __name__ == "__main__":
    if sys.argv[1:] != ["rank"]:
        for count in (2, 4, 8):
            launch([sys.executable, __file__, "rank"], count, 1, 1e6)
        sys.exit()
    die_with_launcher()
    ranks = join()
    exact = sum(normal(rank).double() for rank in range(ranks.count))
    for name, exchange in (
        ("float32", lambda x, _: dist.all_reduce(x)),
        ("gloo", gloo_bf16),
        ("ours", all_reduce_bf16),
    ):
        gradient = normal(ranks.rank)
        exchange(gradient, ranks.count)
        alike = len(set(ranks.all_gather(gradient.double().sum()).tolist())) == 1
        error = float((gradient - exact).norm() / exact.norm())
        dist.barrier()
        began = time.perf_counter()
        for _ in range(REPEATS):
            exchange(gradient, ranks.count)
        dist.barrier()
        took = 1e3 * (time.perf_counter() - began) / REPEATS
        if ranks.rank == 0:
            print(f"{ranks.count} ranks, {name}: error {error:.2e}, {took:.1f} ms, alike {alike}", flush=True)
    exit_now(0)
