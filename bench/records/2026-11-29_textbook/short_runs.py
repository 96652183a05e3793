"""Digests of the weights after a few rollouts, to be compared between two checkouts: `python short_runs.py`.

Options have the names of either checkout.
"""

import hashlib
import tempfile
from dataclasses import fields
from pathlib import Path

import torch

import surefoot
from surefoot.config import Config

OLD = {"num_envs": "games", "minibatch_size": "minibatch"}
KNOWN = {f.name for f in fields(Config)}
RUNS = [
    ("cartpole", {"total_steps": 6144}, 1),
    ("cartpole", {"total_steps": 3072}, 2),
    ("HalfCheetah-v5", {"total_steps": 6144}, 1),
    ("HalfCheetah-v5", {"total_steps": 6144}, 2),
    ("Walker2d-v5", {"total_steps": 4096}, 1),
    ("LunarLander-v3", {"total_steps": 8192}, 1),
    ("pong", {"num_envs": 8, "minibatch_size": 256, "total_steps": 3072}, 1),
    ("pong-lesson", {"total_iterations": 2}, 1),
    ("ppo", {"total_iterations": 2}, 1),
    ("reinforce", {"total_iterations": 2}, 1),
]

if __name__ == "__main__":
    for task, options, ranks in RUNS:
        given = {(name if name in KNOWN else OLD[name]): value for name, value in options.items()}
        with tempfile.TemporaryDirectory() as folder:
            run = surefoot.train(task, run_dir=Path(folder, "a"), ranks=ranks, quiet=True, eval_episodes=0, **given)
            weights = sorted(surefoot.load_policy(run.path)[0].state_dict().items())
        flat = torch.cat([value.double().flatten() for _, value in weights])
        digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]
        print(f"{task:<16}{ranks} ranks  {digest}  norm {float(flat.norm()):.10g}", flush=True)
