"""Under torchrun a run is the run that `--ranks` makes, on one node or several, and goes on after a rank is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

TRAIN = ["-m", "surefoot", "train", "cartpole", "--eval-episodes", "0", "--quiet", "--save-every", "0.5"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def torchrun(run_dir: Path, steps: int, *options: str) -> subprocess.Popen[str]:
    call = [sys.executable, "-m", "torch.distributed.run", *options, *TRAIN, "--run-dir", str(run_dir)]
    call += ["--total-steps", str(steps)]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(agent: subprocess.Popen[str]) -> str:
    """Wait until an agent of torchrun has ended well; what it and its ranks have said."""
    said = agent.communicate(timeout=300)[0]
    assert agent.returncode == 0, said
    return said


def policy(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "policy.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = policy(a), policy(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def local(run_dir: Path, steps: int) -> Path:
    call = [sys.executable, *TRAIN, "--run-dir", str(run_dir), "--total-steps", str(steps), "--ranks", "2"]
    subprocess.run(call, check=True, timeout=300)
    return run_dir


def test_two_ranks_of_torchrun_are_two_local_ones_on_one_node_or_two(tmp_path: Path) -> None:
    want = local(tmp_path / "local", 1536)
    one = torchrun(tmp_path / "one", 1536, "--nproc-per-node", "2", "--master-port", str(free_port()))
    finish(one)
    assert same(want, tmp_path / "one")
    at = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    nodes = [torchrun(tmp_path / "two", 1536, *at, "--node-rank", str(rank)) for rank in (0, 1)]
    for node in nodes:
        finish(node)
    assert same(want, tmp_path / "two")


def ranks_of(agent: int) -> list[int]:
    """Process ids of an agent's ranks, rank 0 first."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(v.partition("=")[::2] for v in (folder / "environ").read_text().split("\0"))
        except (OSError, ValueError):
            continue
        if parent == agent and "RANK" in variables:
            found[int(variables["RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_nothing_but_time(rank: int, tmp_path: Path) -> None:
    want = local(tmp_path / "local", 20_480)
    run = tmp_path / "killed"
    agent = torchrun(run, 20_480, "--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(free_port()))
    deadline = time.monotonic() + 200
    while not list(run.glob("checkpoints/0*")):
        assert time.monotonic() < deadline
        assert agent.poll() is None
        time.sleep(0.05)
    os.kill(ranks_of(agent.pid)[rank], signal.SIGKILL)
    said = finish(agent)
    assert "Traceback" not in said
    assert "surefoot: another rank was lost" in said
    assert same(want, run)
