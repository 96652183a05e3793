"""How a run scales with its ranks: emulated for 1 to 32, and predicted by a model.

    python bench/scaling.py bench/records/DATE_scaling
    sudo python bench/scaling.py bench/records/DATE_scaling-100 --link 100 --latency 1

Emulated: processes that wait for rollouts and gradients instead of computing them, as long as a rank of `pong` took on
a quiet machine (RECORD: 16 environments, 128 steps, 12 updates), and exchange gradients of `pong`'s size by gloo over
loopback, or with --link over links of so many Mbit/s and milliseconds (links.py). Weak scaling: each has one rank's
work.
Model: T(N) = E[slowest of N rollouts] + K (t + (N - 1) a + 2 (N - 1) / N B b), with K updates of t seconds an
iteration, B bytes of gradient, latency a and seconds per byte b fitted to 1 to 8 processes. With --link also with
both as a link was measured: a is then three messages, two of the sum's ring and one of a number that all tell all.
Predictions for 16 and 32 are in model.json before these are run. Every step is a file, and is left out where that is
there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from links import measure, network
from surefoot.parallel.launch import die_with_launcher, exit_now, launch
from surefoot.parallel.ranks import Alone, join

RECORD = Path(__file__).parent / "records" / "2026-11-22_race" / "pong-s72.jsonl"
ROWS = [json.loads(line) for line in RECORD.read_text().splitlines()][2:]
ROLLOUTS = [row["env_s"] + row["act_s"] for row in ROWS]  # seconds
UPDATES = 12  # an iteration
UPDATE = statistics.median(row["learn_s"] for row in ROWS) / UPDATES  # seconds, its exchange in shared memory included
FITTED, PREDICTED = (1, 2, 4, 8), (16, 32)
LINK = {"latency_s": 50e-6, "seconds_per_byte": 8 / 10e9}  # 10 Gbit/s


def parameters() -> int:
    """How many numbers the gradient of `pong` has."""
    from surefoot.algorithm.state import initial
    from surefoot.presets import find

    return len(initial(replace(find("pong"), num_envs=1, minibatch_size=0), Alone()).flat)


def emulate(folder: Path, size: int, iterations: int) -> None:
    """One of the processes; the first writes what an iteration took."""
    del os.environ["LOCAL_WORLD_SIZE"]  # as if each were on a machine of its own
    ranks, seconds = join(), list[float]()
    ranks.barrier()  # all are there
    before = time.process_time()
    draw, gradient = np.random.default_rng(ranks.rank), torch.zeros(size)
    for _ in range(iterations):
        ranks.barrier()
        began = time.perf_counter()
        time.sleep(float(draw.choice(ROLLOUTS)))
        for _ in range(UPDATES):
            time.sleep(UPDATE)
            ranks.reduce_gradient(gradient, 0.0)
        ranks.barrier()
        seconds.append(time.perf_counter() - began)
    used = ranks.all_gather(torch.tensor(time.process_time() - before, dtype=torch.float64)).sum()
    if ranks.rank == 0:
        found = {"iteration_s": seconds, "sent_bytes": ranks.sent // iterations, "load": os.getloadavg()}
        found |= {"cores": float(used) / sum(seconds)}
        (folder / f"emulated-{ranks.count}.json").write_text(json.dumps(found, indent=1))


def measured(folder: Path, count: int) -> float:
    """Median seconds of an iteration."""
    return statistics.median(json.loads((folder / f"emulated-{count}.json").read_text())["iteration_s"])


def predict(size: int, count: int, latency_s: float, seconds_per_byte: float) -> float:
    """T(N)."""
    slowest = np.random.default_rng(0).choice(ROLLOUTS, (10_000, count)).max(1).mean()
    exchange = (count - 1) * latency_s + 2 * (count - 1) / count * 4 * size * seconds_per_byte
    return float(slowest) + UPDATES * (UPDATE + exchange)


def fit(folder: Path, size: int, link: dict[str, float]) -> dict[str, object]:
    """The costs of an exchange by least squares, none below 0; predictions with them, with others, for 10 Gbit/s."""
    left = np.array([(measured(folder, n) - predict(size, n, 0.0, 0.0)) / UPDATES for n in FITTED])
    terms = np.array([(n - 1, 2 * (n - 1) / n * 4 * size) for n in FITTED])
    costs = np.linalg.lstsq(terms / terms.max(0), left, rcond=None)[0] / terms.max(0)
    if costs.min() < 0:
        keep, costs = int(costs.argmax()), np.zeros(2)
        costs[keep] = max(0.0, terms[:, keep] @ left / (terms[:, keep] @ terms[:, keep]))
    here = {"latency_s": float(costs[0]), "seconds_per_byte": float(costs[1])}
    named: list[tuple[str, dict[str, float]]] = [
        ("fitted", here),
        *([("link", link)] if link else []),
        ("10 Gbit/s", LINK),
    ]
    model: dict[str, object] = {"written": time.strftime("%Y-%m-%d %H:%M:%S"), "parameters": size}
    for name, costs_of in named:
        seconds = {n: predict(size, n, **costs_of) for n in FITTED + PREDICTED}
        model[name] = costs_of | {"iteration_s": seconds, "efficiency": {n: seconds[1] / t for n, t in seconds.items()}}
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--link", type=float, help="Mbit/s of each rank's link, in a network namespace of its own")
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds of a message on it")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--rank", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        die_with_launcher()
        emulate(args.out, *args.rank)
        exit_now(0)
    args.out.mkdir(parents=True, exist_ok=True)
    size, written = parameters(), args.out / "model.json"
    rate, latency, link = 1e6 * (args.link or 0), args.latency / 1e3, dict[str, float]()
    for count in FITTED + PREDICTED:
        if count == PREDICTED[0] and not written.exists():
            if rate:
                link = measure(rate, latency)
                link["latency_s"] *= 3
            written.write_text(json.dumps(fit(args.out, size, link), indent=1))
        if not (args.out / f"emulated-{count}.json").exists():
            with network(count, rate, latency) if rate else nullcontext([]) as within:
                launch(
                    [*within, sys.executable, __file__, str(args.out), "--rank", str(size), str(args.iterations)],
                    count,
                    1,
                    1e6,
                )
    model = json.loads(written.read_text())
    names = [name for name in ("loopback", "fitted", "link") if name in model]
    print(f"| processes | cores that they took | measured, s | {' | error | '.join(names)} | error |")
    print("|---|---|---|" + "---|---|" * len(names))
    for count in FITTED + PREDICTED:
        seconds, wanted = measured(args.out, count), [model[name]["iteration_s"][str(count)] for name in names]
        cores = json.loads((args.out / f"emulated-{count}.json").read_text()).get("cores", math.nan)
        cells = " | ".join(f"{want:.3f} | {want / seconds - 1:+.1%}" for want in wanted)
        print(f"| {count} | {cores:.2f} | {seconds:.3f} | {cells} |")
    print("\n| processes | predicted on 10 Gbit/s, s | efficiency |\n|---|---|---|")
    for count, seconds in model["10 Gbit/s"]["iteration_s"].items():
        print(f"| {count} | {seconds:.3f} | {model['10 Gbit/s']['efficiency'][count]:.1%} |")


if __name__ == "__main__":
    main()
