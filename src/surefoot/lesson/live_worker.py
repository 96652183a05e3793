"""A small training that a page watches: the real loop in a process of its own, one iteration of each seed in turn.

Lines of JSON. In: {"config": a Config, "seeds": [1, 2]}, then {"config": ...} or {"paused": true} at any time; it ends
when its input does. Out: a row of metrics for each iteration of each seed, or {"seed": 1, "failed": a sentence}.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from surefoot.algorithm.callback import Callback
from surefoot.algorithm.state import State, initial
from surefoot.algorithm.train import train
from surefoot.algorithm.update import METRIC_NAMES
from surefoot.config import Config
from surefoot.errors import Fault
from surefoot.parallel.ranks import Alone

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.algorithm.rollout import Rollout

RECENT = 20  # episodes whose mean is the score


class Once(Callback):
    """One iteration, and its row."""

    def __init__(self, seed: int) -> None:
        self.row: dict[str, Any] = {"seed": seed}

    def should_stop(self, state: State) -> bool:
        """After the first iteration."""
        return len(self.row) > 1

    def on_iteration(self, state: State, rollout: Rollout, returns: Tensor, metrics: Tensor, learn_s: float) -> None:
        """Keep the iteration's row."""
        scores = [episode.score for episode in state.recent_episodes][-RECENT:]
        self.row |= {"step": state.steps, "score": sum(scores) / len(scores) if scores else None}
        self.row |= {name: float(metrics[:, i].mean()) for i, name in enumerate(METRIC_NAMES)}


def listen(orders: queue.Queue[dict[str, Any]]) -> None:
    """Pass the orders on; the process ends with its input."""
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


def main() -> None:
    """Train as ordered."""
    torch.set_num_threads(1)
    first = json.loads(sys.stdin.readline())
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    cfg, paused = Config.from_json(first["config"]), False
    states = {seed: initial(replace(cfg, seed=seed), Alone()) for seed in first["seeds"]}
    while states:
        while paused or not orders.empty():
            order = orders.get()
            paused = order.get("paused", paused)
            cfg = Config.from_json(order["config"]) if "config" in order else cfg
        for seed, state in list(states.items()):
            once = Once(seed)
            try:
                train(replace(cfg, seed=seed), state, Alone(), once)
            except Fault as fault:
                once.row["failed"] = str(fault)
            print(json.dumps(once.row), flush=True)
            if "failed" in once.row or state.progress(cfg) >= 1:
                del states[seed]


if __name__ == "__main__":
    main()
