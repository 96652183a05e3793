"""From which size on a GPU pays: updates and actions of NatureCNN and ImpalaCNN, there and on the processor.

    python bench/gpu.py --out bench/records/DATE_gpu

Updates from minibatches of Pong of 256 to 16,384 steps, actions for 8 to 512 environments; the processor with all its
cores, in single precision and, where it has units for that, in bfloat16. Writes OUT/record.json: milliseconds, the
least of as many as --seconds allow and their median. About ten minutes on 16 cores; without a GPU
`--devices cpu --networks NatureCNN --sizes 256` tries it in one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from common import Row
from surefoot.algorithm.fast_paths import make_actor
from surefoot.algorithm.state import initial
from surefoot.config import Config
from surefoot.models.networks import ImpalaCNN, NatureCNN
from surefoot.models.policy import bf16_units
from surefoot.parallel.ranks import Alone
from surefoot.presets import find
from surefoot.runs.worker import machine, revision
from update import measure

NETWORKS = {"NatureCNN": NatureCNN(), "ImpalaCNN": ImpalaCNN()}
ENVS = 16  # that play the minibatches


def acting(cfg: Config, envs: int, seconds: float) -> list[float]:
    """Seconds in which a policy chose actions for so many environments."""
    state = initial(replace(cfg, num_envs=1, minibatch_size=0), Alone())
    shape = state.policy.spaces[0].shape  # type: ignore[index]
    obs = np.random.default_rng(0).integers(0, 256, (envs, *shape), np.uint8)
    actor = make_actor(state.policy, torch.full((1, envs, *state.policy.noise_shape), 0.5))
    times, end = list[float](), perf_counter() + seconds
    while (start := perf_counter()) < end or len(times) < 3:
        with torch.no_grad():
            actor.act(0, obs)
        times.append(perf_counter() - start)
    state.envs.close()
    return times


def figures(times: list[float]) -> Row:
    return {"least_ms": round(min(times) * 1e3, 3), "median_ms": round(statistics.median(times) * 1e3, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 1024, 4096, 16384], help="of a minibatch")
    parser.add_argument("--envs", nargs="+", type=int, default=[8, 32, 128, 512], help="that are acted in")
    parser.add_argument("--seconds", type=float, default=3.0, help="for one figure")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if "cuda" in args.devices and not torch.cuda.is_available():
        parser.error("there is no GPU here; --devices cpu does without")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record: Row = {"machine": machine(), "gpu": gpu, "git": revision(), "learn": [], "act": []}
    args.out.mkdir(parents=True, exist_ok=True)
    precisions = {device: (False, True) if device == "cpu" and bf16_units() else (False,) for device in args.devices}
    ways = [(device, bf16) for device, some in precisions.items() for bf16 in some]
    for network in args.networks:
        for what, sizes in (("learn", args.sizes), ("act", args.envs)):
            for size in sizes:
                for device, bf16 in ways:
                    cfg = replace(find("pong"), network=NETWORKS[network], device=device, bf16=bf16, num_envs=ENVS)
                    cfg = replace(cfg, num_steps=(size // ENVS,), minibatch_size=size) if what == "learn" else cfg
                    times = (measure if what == "learn" else acting)(cfg, *[size] * (what == "act"), args.seconds)
                    row = {"network": network, "size": size, "device": device, "bf16": bf16} | figures(times)
                    record[what].append(row)
                    print(what, json.dumps(row), flush=True)
                    (args.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
