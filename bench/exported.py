"""One observation through an exported ONNX graph and through `policy.act`, in turns: microseconds and their ratio.

    python bench/exported.py [--rounds 20] [--out RECORD]

Untrained policies, one thread, greedy, batch of one, the environment's own observation to its own action.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from time import process_time

import onnxruntime
import torch

import surefoot
from common import record
from surefoot.connect.export import feed

TASKS = ("cartpole", "HalfCheetah-v5", "pong")
CALLS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    warnings.simplefilter("ignore")
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            run = surefoot.train(task, run_dir=Path(folder, "run"), total_steps=1, eval_episodes=0, ranks=1, quiet=True)
            surefoot.export(run.directory, Path(folder, "policy.onnx"))
            session = onnxruntime.InferenceSession(Path(folder, "policy.onnx").read_bytes(), options)
            policy = run.policy
        assert policy.spaces is not None
        obs = policy.spaces[0].sample()
        row = feed(policy.spaces[0], obs)
        ways = {
            "torch": lambda p=policy, o=obs: p.act(o, greedy=True),
            "onnx": lambda s=session, r=row: s.run(["action"], r),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, call in ways.items():
                call()
                start = process_time()
                for _ in range(CALLS):
                    call()
                times[name].append((process_time() - start) / CALLS * 1e6)
        ratios = [onnx / torch for onnx, torch in zip(times["onnx"], times["torch"], strict=True)]
        found = {
            "task": task,
            "load": os.getloadavg()[0],
            **{f"{name}_us": round(statistics.median(values), 1) for name, values in times.items()},
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        print(json.dumps(found), flush=True)
        record(found, args.out, "onnx.jsonl")


if __name__ == "__main__":
    main()
