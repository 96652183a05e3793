"""How a run scales with its ranks: measured on one machine, emulated for more ranks, and predicted by a model.

    python bench/scaling.py bench/records/DATE_scaling

1. real: `pong` with 1 and 2 local ranks, and with 2 that exchange by sockets, as on two nodes: seconds per iteration.
2. emulated: 1 to 32 processes that wait for rollouts and gradients instead of computing them, as long as one rank took
   in 1, and exchange gradients of `pong`'s size by gloo over loopback. Weak scaling: each has one rank's work.
3. model: T(N) = E[slowest of N rollouts] + K (t + (N - 1) a + 2 (N - 1) / N B b), with K updates of t seconds in an
   iteration, B bytes of gradient, latency a and seconds per byte b fitted to 1 to 8 processes. Its predictions for 16
   and 32 are written to model.json before these are run.

Every step is a file in the record's folder, and is left out where that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from surefoot.parallel.launch import die_with_launcher, exit_now, launch
from surefoot.parallel.ranks import join

FITTED, PREDICTED = (1, 2, 4, 8), (16, 32)
LINK = {"latency_s": 50e-6, "seconds_per_byte": 8 / 10e9}  # 10 Gbit/s


def train(folder: Path, ranks: int, sockets: bool = False) -> list[dict[str, Any]]:
    """The iterations of a short run of `pong`, 32 environments a rank; the first is left out."""
    program = f"""
import os, sys, surefoot
{"os.environ.pop('LOCAL_WORLD_SIZE', None)" if sockets else ""}
surefoot.train("pong", run_dir=sys.argv[1], num_envs={32 * ranks}, minibatch_size={1024 * ranks}, total_iterations=8,
    total_steps=0, eval_episodes=0, quiet=True, save_every=1e6)
from surefoot.parallel.launch import exit_now
exit_now(0)
"""
    run = folder / f"run-{ranks}-{'sockets' if sockets else 'local'}"
    launch([sys.executable, "-c", program, str(run)], ranks, 32, 600.0)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]


def measure(folder: Path) -> dict[str, Any]:
    """Step 1. What a rank waits for others is in its learn_s."""
    rows = {"1": train(folder, 1), "2 local": train(folder, 2), "2 sockets": train(folder, 2, sockets=True)}
    parts = ("env_s", "act_s", "learn_s")
    seconds = {name: [round(sum(row[part] for part in parts), 3) for row in found] for name, found in rows.items()}
    updates = 12
    return {
        "iteration_s": seconds,
        "sent_bytes": {name: found[-1]["sent_bytes"] for name, found in rows.items()},
        "rollout_s": [row["env_s"] + row["act_s"] for row in rows["1"]],
        "updates": updates,
        "update_s": statistics.median(row["learn_s"] for row in rows["1"]) / updates,
        "parameters": sum(x.numel() for x in load_file(folder / "run-1-local" / "policy.safetensors").values()),
        "load": os.getloadavg(),
    }


def emulate(folder: Path, iterations: int = 8) -> None:
    """One process of step 2."""
    real = json.loads((folder / "real.json").read_text())
    del os.environ["LOCAL_WORLD_SIZE"]  # as if each were on a machine of its own
    ranks, seconds = join(), list[float]()
    draw, gradient = np.random.default_rng(ranks.rank), torch.zeros(real["parameters"])
    for _ in range(iterations):
        ranks.barrier()
        began = time.perf_counter()
        time.sleep(float(draw.choice(real["rollout_s"])))
        for _ in range(real["updates"]):
            time.sleep(real["update_s"])
            ranks.reduce_gradient(gradient, 0.0)
        ranks.barrier()
        seconds.append(time.perf_counter() - began)
    if ranks.rank == 0:
        found = {"iteration_s": seconds, "sent_bytes": ranks.sent // iterations, "load": os.getloadavg()}
        (folder / f"emulated-{ranks.count}.json").write_text(json.dumps(found, indent=1))


def slowest(real: dict[str, Any], count: int) -> float:
    """E[slowest rollout] of `count` ranks."""
    draws = np.random.default_rng(0).choice(real["rollout_s"], (10_000, count))
    return float(draws.max(1).mean())


def predict(real: dict[str, Any], count: int, latency_s: float, seconds_per_byte: float) -> float:
    """T(N) of the model."""
    exchange = (count - 1) * latency_s + 2 * (count - 1) / count * 4 * real["parameters"] * seconds_per_byte
    return slowest(real, count) + real["updates"] * (real["update_s"] + exchange)


def fit(folder: Path) -> dict[str, Any]:
    """Step 3: least squares, without negative costs."""
    real = json.loads((folder / "real.json").read_text())
    left = [
        (statistics.median(json.loads((folder / f"emulated-{n}.json").read_text())["iteration_s"])
         - predict(real, n, 0.0, 0.0)) / real["updates"]
        for n in FITTED
    ]  # fmt: skip
    terms = np.array([(n - 1, 2 * (n - 1) / n * 4 * real["parameters"]) for n in FITTED])
    scale = terms.max(0)
    costs = np.linalg.lstsq(terms / scale, np.array(left), rcond=None)[0] / scale
    if costs.min() < 0:
        keep = int(costs.argmax())
        costs = np.zeros(2)
        costs[keep] = max(0.0, terms[:, keep] @ left / (terms[:, keep] @ terms[:, keep]))
    here = {"latency_s": float(costs[0]), "seconds_per_byte": float(costs[1])}
    link = {str(n): predict(real, n, **LINK) for n in (1, *FITTED[1:], *PREDICTED)}
    return {
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "loopback": here,
        "iteration_s": {str(n): predict(real, n, **here) for n in FITTED + PREDICTED},
        "10 Gbit/s": LINK | {"iteration_s": link, "efficiency": {n: link["1"] / t for n, t in link.items()}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        die_with_launcher()
        emulate(args.out)
        exit_now(0)
    args.out.mkdir(parents=True, exist_ok=True)

    def step(name: str, do: Callable[[Path], dict[str, Any]]) -> None:
        if not (args.out / name).exists():
            (args.out / name).write_text(json.dumps(do(args.out), indent=1))

    def processes(count: int) -> None:
        if not (args.out / f"emulated-{count}.json").exists():
            launch([sys.executable, __file__, str(args.out), "--rank"], count, 1, 1e6)

    step("real.json", measure)
    for count in FITTED:
        processes(count)
    step("model.json", fit)
    for count in PREDICTED:
        processes(count)
    model = json.loads((args.out / "model.json").read_text())
    print("| processes | measured, s | model, s | error | load |\n|---|---|---|---|---|")
    for count in FITTED + PREDICTED:
        found = json.loads((args.out / f"emulated-{count}.json").read_text())
        seconds, want = statistics.median(found["iteration_s"]), model["iteration_s"][str(count)]
        print(f"| {count} | {seconds:.3f} | {want:.3f} | {want / seconds - 1:+.1%} | {found['load'][0]:.1f} |")


if __name__ == "__main__":
    main()
