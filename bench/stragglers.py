"""What it is worth that slow ranks cut their rollouts (`--sync-fraction 0.6`): emulated, and learning CartPole.

    python bench/stragglers.py bench/records/DATE_stragglers

Emulated: 2, 4 and 8 processes that wait for the steps of a rollout and for gradients instead of computing them, for the
seconds that ranks of `pong` took (bench/scaling.py), and exchange `pong`'s gradients by gloo over loopback. Once as
measured; once with the first rank half as fast, as on a machine that somebody else uses, which is an assumption.
Learning: CartPole on 4 ranks, whose environments wait before each step, for as long as their episode's speed says: 5 ms
times a log-normal number of sigma 0.7, an assumption. Three seeds with and without, in turns. Every step is a file, and
is left out where that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from scaling import ROLLOUTS, UPDATE, UPDATES, parameters
from surefoot.parallel.launch import die_with_launcher, exit_now, launch
from surefoot.parallel.ranks import join

STEPS, SHARE, ITERATIONS = 128, 0.6, 12


class Waiting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Waits before each step, for as long as the episode's seed says."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.wait = 5e-3 * float(np.random.default_rng(seed).lognormal(sigma=0.7))
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        time.sleep(self.wait)
        return super().step(action)


def make() -> Waiting:
    """CartPole that waits."""
    return Waiting(gymnasium.make("CartPole-v1"))


def emulate(out: Path, size: int, share: float, slower: float) -> None:
    """One of the processes; the first writes what an iteration took, and how many steps all have played in it."""
    del os.environ["LOCAL_WORLD_SIZE"]  # as if each were on a machine of its own
    ranks, seconds, steps = join(), list[float](), list[int]()
    draw, gradient = np.random.default_rng(ranks.rank), torch.zeros(size)
    for iteration in range(ITERATIONS):
        ranks.barrier()
        began, played = time.perf_counter(), 0
        wait = float(draw.choice(ROLLOUTS)) / STEPS * (slower if ranks.rank == 0 else 1)
        while played < STEPS and not (
            share < 1 and played % 4 == 0 and 4 * played >= STEPS and ranks.is_cut(iteration)
        ):
            time.sleep(wait)
            played += 1
        if played == STEPS:
            ranks.finish_rollout(iteration, share)
        for _ in range(UPDATES):
            time.sleep(UPDATE)
            ranks.reduce_gradient(gradient, 0.0)
        steps.append(int(ranks.all_gather(torch.tensor(played)).sum()))
        seconds.append(time.perf_counter() - began)
    if ranks.rank == 0:
        out.write_text(json.dumps({"iteration_s": seconds, "steps": steps, "load": os.getloadavg()}, indent=1))


def learn(run: Path, seed: int, share: float) -> None:
    """A run of CartPole on 4 ranks."""
    where = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    options = ["--sync-fraction", str(share), "--seed", str(seed), "--ranks", "4", "--num-envs", "8", "--total-steps"]
    options += ["60000", "--eval-episodes", "0", "--quiet", "--run-dir", str(run)]
    call = [sys.executable, "-m", "surefoot", "train", "stragglers:make", *options]
    subprocess.run(call, check=True, env=os.environ | {"PYTHONPATH": where})


def first_at(rows: list[dict[str, Any]], score: float) -> str:
    """Steps and seconds until the mean of the last 100 episodes was this."""
    row = next((r for r in rows if (r["return_mean"] or 0) >= score), None)
    return f"{row['step']:,} steps, {row['seconds']:.1f} s" if row else "never"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", nargs=3, type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        size, share, slower = args.rank
        die_with_launcher()
        emulate(args.out, int(size), share, slower)
        exit_now(0)
    args.out.mkdir(parents=True, exist_ok=True)
    size = parameters()
    print("| processes | first rank's speed | seconds an iteration: whole, cut | steps/s: whole, cut | ratio |")
    print("|---|---|---|---|---|")
    for count in (2, 4, 8):
        for slower in (1.0, 2.0):
            cells, rates = [], []
            for share in (1.0, SHARE if count > 2 else 0.5):
                file = args.out / f"emulated-{count}-{slower:g}-{'whole' if share == 1 else 'cut'}.json"
                if not file.exists():
                    rank = ["--rank", str(size), str(share), str(slower)]
                    launch([sys.executable, __file__, str(file), *rank], count, 1, 1e6)
                told = json.loads(file.read_text())
                cells.append(statistics.median(told["iteration_s"]))
                rates.append(16 * sum(told["steps"]) / sum(told["iteration_s"]))
            speed = f"{1 / slower:g} x"
            print(f"| {count} | {speed} | {cells[0]:.3f}, {cells[1]:.3f} | {rates[0]:,.0f}, {rates[1]:,.0f} "
                  f"| {rates[1] / rates[0]:.2f} |")  # fmt: skip
    print("\n| seed | rollouts | steps/s | mean of 100 episodes at the end | until 195 | until 475 |")
    print("|---|---|---|---|---|---|")
    for seed in (1, 2, 3):
        for share in (1.0, SHARE):
            run = args.out / f"run-{seed}-{'whole' if share == 1 else 'cut'}"
            file = run.with_suffix(".jsonl")
            if not file.exists():
                learn(run, seed, share)
                file.write_text((run / "metrics.jsonl").read_text())
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            last = rows[-1]
            print(f"| {seed} | {'whole' if share == 1 else 'cut'} | {last['step'] / last['seconds']:,.0f} | "
                  f"{last['return_mean']:.0f} | {first_at(rows, 195)} | {first_at(rows, 475)} |")  # fmt: skip


if __name__ == "__main__":
    main()
