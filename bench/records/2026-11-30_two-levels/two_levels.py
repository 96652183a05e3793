"""A gradient's sum at one level (gloo among all ranks) against two (shared memory in a node, gloo between nodes).

python two_levels.py [yield]; the nodes are groups of processes of this machine. With `yield` a rank that waits for its
node's others sleeps for 50 µs at a time; without, it looks all the time, as `SharedMemory.barrier` does at first.
"""

import os
import statistics
import sys
import time

import torch
import torch.distributed as dist

from surefoot.parallel import ranks
from surefoot.parallel.launch import die_with_launcher, exit_now, launch

PARAMETERS, UPDATES, REPEATS = 1_061_428, 12, 6  # of `pong`


def shared(size: int, rank: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Memory that the ranks of a node map: `map_shared`, among them alone."""
    broadcast, all_reduce = dist.broadcast, dist.all_reduce
    dist.broadcast = lambda numbers, first: broadcast(numbers, group=group, group_src=first)
    dist.all_reduce = lambda numbers, how: all_reduce(numbers, how, group=group)
    memory = ranks.map_shared(rank, size)
    dist.broadcast, dist.all_reduce = broadcast, all_reduce
    return memory


def rank(per_node: int, patient: bool) -> None:
    """One of the processes; the first prints milliseconds of an exchange, in turns."""
    die_with_launcher()
    del os.environ["LOCAL_WORLD_SIZE"]
    everyone = ranks.join()
    count, (node, local) = everyone.count, divmod(everyone.rank, per_node)
    nodes = [dist.new_group(list(range(i, i + per_node))) for i in range(0, count, per_node)]
    across = [dist.new_group(list(range(i, count, per_node))) for i in range(per_node)][local]
    memory = ranks.SharedMemory(local, per_node, 1e9, shared(per_node * ranks.LINE, local, nodes[node]))
    table = shared((per_node + 1) * 4 * PARAMETERS, local, nodes[node]).view(torch.float32).view(per_node + 1, -1)
    size = -(-PARAMETERS // per_node)
    total = table[per_node, local * size : (local + 1) * size]

    def barrier() -> None:
        if not patient:
            memory.barrier()
            return
        memory.barriers += 1
        memory.counters[local] = memory.barriers
        while min(memory.counters) < memory.barriers:
            time.sleep(5e-5)

    def two(gradient: torch.Tensor) -> None:
        """Each rank sums a part over its node, then over the nodes."""
        table[local] = gradient
        barrier()
        torch.sum(table[:per_node, local * size : (local + 1) * size], 0, out=total)
        dist.all_reduce(total, group=across)
        barrier()
        gradient.copy_(table[per_node])

    gradient = torch.full((PARAMETERS,), float(everyone.rank))
    two(gradient)
    assert (gradient == sum(range(count))).all()
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(REPEATS):
        for name, exchange in (("one", dist.all_reduce), ("two", two)):
            gradient = torch.zeros(PARAMETERS)
            dist.barrier()
            began = time.perf_counter()
            for _ in range(UPDATES):
                time.sleep(0.05)
                exchange(gradient)
            dist.barrier()
            seconds[name].append((time.perf_counter() - began) / UPDATES - 0.05)
    if everyone.rank == 0:
        each = {name: " ".join(f"{1e3 * s:.1f}" for s in some) for name, some in seconds.items()}
        ratio = statistics.median(b / a for a, b in zip(seconds["one"], seconds["two"], strict=True))
        print(f"{count // per_node} nodes of {per_node}: one level {each['one']} ms, two {each['two']} ms, "
              f"ratio {ratio:.2f}, load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    exit_now(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(int(sys.argv[2]), sys.argv[3] == "True")
    else:
        for nodes, per_node in ((2, 2), (2, 4), (4, 2)):
            words = ["rank", str(per_node), str("yield" in sys.argv)]
            launch([sys.executable, __file__, *words], nodes * per_node, 1, 1e6)
