"""A run is the same run on any number of ranks; and ranks begin and end as one program."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import surefoot
from processes import launcher, listening
from surefoot.algorithm.state import initial
from surefoot.config import Config
from surefoot.errors import UserError
from surefoot.parallel.heartbeat import VARIABLE
from surefoot.parallel.launch import choose_ranks, launch, usable_cores
from surefoot.parallel.ranks import LINE, Alone, Gloo, SharedMemory
from surefoot.runs.checkpoint import read_checkpoint
from surefoot.runs.directory import checkpoints
from surefoot.runs.metrics import read
from twin import EVERYTHING, KINDS


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 1, 2 and 4 ranks have played and learned, in real processes, float64, with a fixed rate."""
    out = tmp_path_factory.mktemp("twins")
    script = str(Path(__file__).with_name("twin.py"))
    for count in (1, 2, 4):
        assert launch([sys.executable, script, str(out)], count, 8 // count, 300.0) == 0
    return out


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's list of sockets")
def test_ranks_of_one_machine_open_no_port_to_others(tmp_path: Path) -> None:
    """They find each other by a file that no other user can reach, and listen on the loopback interface alone."""
    program = """
from surefoot.parallel.launch import store_file
from surefoot.parallel.ranks import join
assert join().any(me == 1)
tell(store_file())
signal.pause()
"""
    with launcher(program, tmp_path) as (process, ear):
        ranks = ear.lines(2)
        store = Path(ranks[0][2])
        assert store.exists()
        assert (store.parent.stat().st_mode & 0o777, store.parent.stat().st_uid) == (0o700, os.getuid())
        for pid in (process.pid, *(pid for _, pid, _ in ranks)):
            assert set(listening(pid)) <= {"0100007F", f"{1 << 24:032X}"}  # 127.0.0.1 and ::1


@pytest.mark.long
def test_ranks_that_torchrun_starts_meet_at_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.delenv(VARIABLE, raising=False)
    program = "from surefoot.parallel.ranks import join; r = join(); print(r.rank, r.all_reduce_min(5 + r.rank))"
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, **place, "RANK": rank}, stdout=-1, text=True
        )
        for rank in "01"
    ]
    assert [process.communicate(timeout=60)[0] for process in ranks] == ["0 5\n", "1 5\n"]


@pytest.mark.long
def test_gradients_sent_as_bfloat16_are_summed_in_single_precision_alike_on_all_ranks(tmp_path: Path) -> None:
    program = """
import os, sys, torch
from surefoot.parallel.launch import die_with_launcher, exit_now
from surefoot.parallel.ranks import join
die_with_launcher()
del os.environ["LOCAL_WORLD_SIZE"]
ranks = join(bf16=True)
gradient = torch.randn(1001, generator=torch.Generator().manual_seed(ranks.rank))
ranks.reduce_gradient(gradient, 0.0)
torch.save((gradient, ranks.sent), sys.argv[1] + f"/{ranks.rank}")
exit_now(0)
"""
    assert launch([sys.executable, "-c", program, str(tmp_path)], 3, 1, 300.0) == 0
    sent = [torch.randn(1001, generator=torch.Generator().manual_seed(rank)).bfloat16().float() for rank in range(3)]
    want = torch.stack(sent).sum(0).bfloat16().float()
    for rank in range(3):
        gradient, size = torch.load(tmp_path / str(rank))
        assert torch.equal(gradient, want)
        assert size == 2 * 1002 + 8  # and the number beside it


@pytest.mark.long
def test_gradients_sent_as_bfloat16_halve_a_runs_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    sent = []
    for options in ([], ["--bf16-compress"]):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        run_dir = tmp_path / f"run{len(options)}"
        words = f"train cartpole --minibatch-size 256 --total-steps 512 --eval-episodes 0 --quiet --run-dir {run_dir}"
        call = [sys.executable, "-m", "surefoot", *words.split(), *options]
        ranks = [subprocess.Popen(call, env={**os.environ, **place, "RANK": rank}) for rank in "01"]
        assert [process.wait(120) for process in ranks] == [0, 0]
        sent.append([row["sent_bytes"] for row in read(run_dir)])
    assert len(sent[0]) == len(sent[1]) > 0
    assert all(0.5 <= half / whole < 0.6 for whole, half in zip(*sent, strict=True))


def test_a_rank_that_is_gone_or_late_is_not_waited_for() -> None:
    shared = SharedMemory(0, 2, 10.0, torch.zeros(2 * LINE, dtype=torch.uint8))
    shared.pids[1] = os.getpid()
    shared.check_alive(1, 9.0)
    with pytest.raises(RuntimeError, match="rank 1 has not come for 11 seconds"):
        shared.check_alive(1, 11.0)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    shared.pids[1] = process.pid
    with pytest.raises(RuntimeError, match="rank 1 is gone"):
        shared.barrier()


def test_a_barrier_does_not_count_time_in_which_it_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped for a day at its third look at the other rank: 3 of its 10 seconds."""
    shared = SharedMemory(0, 2, 10.0, torch.zeros(2 * LINE, dtype=torch.uint8))
    shared.pids[1], now, looks = os.getpid(), [0.0], []

    def look(other: int, waited: float) -> None:
        looks.append(waited)
        now[0] += 86_400 if len(looks) == 3 else 0
        SharedMemory.check_alive(shared, other, waited)

    monkeypatch.setattr("surefoot.parallel.ranks.time.monotonic", lambda: now[0])
    monkeypatch.setattr("surefoot.parallel.ranks.time.sleep", lambda _: now.__setitem__(0, now[0] + 1 / 5_000))
    monkeypatch.setattr(shared, "check_alive", look)
    with pytest.raises(RuntimeError, match="rank 1 has not come for 11 seconds"):
        shared.barrier()
    assert looks == pytest.approx([0, 1, 2, 5, 6, 7, 8, 9, 10, 11], abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_one_two_and_four_ranks_are_the_same_run(kind: str, twins: Path) -> None:
    """The same games, gradients within 1e-10, the same bits on all ranks."""
    runs = {n: [load_file(twins / f"{kind}-{n}-{rank}.safetensors") for rank in range(n)] for n in (1, 2, 4)}
    alone = runs[1][0]
    iterations = sorted({key.split("/")[0] for key in alone})
    assert len(iterations) == {"lesson": 6}.get(kind, 3)
    bits = (
        1e-9 if kind in ("within", "control", "whole", "memory of vectors") else 0
    )  # float sums decide continuous actions
    for count in (2, 4):
        parts = runs[count]
        for iteration in iterations:
            for name in ("obs", "action", "reward", "terminated"):
                key = f"{iteration}/{name}"
                found = torch.cat([part[key] for part in parts], 1)
                if kind in EVERYTHING:
                    assert all(torch.equal(part[key], parts[0][key]) for part in parts), key
                    found = parts[0][key]
                torch.testing.assert_close(found, alone[key], atol=bits, rtol=bits)
            key = f"{iteration}/moments"
            assert all(torch.equal(part[key], parts[0][key]) for part in parts), key
            torch.testing.assert_close(parts[0][key], alone[key], atol=bits, rtol=bits)
            for name in ("gradient", "parameters"):
                key = f"{iteration}/{name}"
                found = [part[key] for part in parts]
                if name == "gradient" and ("images" in kind or kind == "memory"):  # each rank has summed a part
                    found = [torch.cat(found)]
                assert all(torch.equal(some, found[0]) for some in found), key
                assert (found[0] - alone[key]).abs().max() < 1e-10, key
            scores = (sorted(run[f"{iteration}/scores"].tolist()) for run in (parts[0], alone))
            assert next(scores) == pytest.approx(next(scores), rel=max(bits, 1e-12))


@pytest.mark.long
def test_a_run_of_two_ranks_goes_on_with_one(small: Config, tmp_path: Path) -> None:
    """The same games and, up to the order of sums, the same policy; and two ranks that resume have the same bits."""
    whole, parts, other = (tmp_path / name for name in ("whole", "parts", "other"))
    half = replace(small, total_steps=small.total_steps // 2)
    surefoot.train(small, run_dir=whole, ranks=2, quiet=True)
    surefoot.train(half, run_dir=parts, ranks=2, quiet=True)
    shutil.copytree(parts, other)
    for where, ranks in ((parts, 0), (other, 1)):  # 0: as many as it had
        surefoot.resume(where, ranks=ranks, quiet=True, trust=where == other, total_steps=small.total_steps)
    a, b, c = (surefoot.load_policy(where)[0].state_dict() for where in (whole, parts, other))
    assert all(torch.equal(x, b[k]) for k, x in a.items())
    assert all(torch.allclose(x, c[k], atol=1e-4) for k, x in a.items())
    sent = [[row["sent_bytes"] for row in read(where)] for where in (whole, parts, other)]
    assert sent[0] == sent[1]
    assert min(sent[0]) > 0
    assert sent[2] == [*sent[0][: len(sent[0]) // 2], 0, 0, 0]
    episodes = [[row["episodes"] for row in read(where)] for where in (whole, parts, other)]
    assert episodes[0] == episodes[1] == episodes[2]


def test_ranks_that_do_not_begin_alike_are_refused(small: Config, tmp_path: Path) -> None:
    from surefoot.runs.worker import prepare

    class Strangers(Alone):
        def gather_columns(self, columns: torch.Tensor) -> torch.Tensor:
            return torch.cat((columns, columns + 1), 1)

    with pytest.raises(UserError, match="do not begin at the same point"):
        prepare(small, initial(small, Alone()), tmp_path, Strangers())


@pytest.mark.parametrize(("outer", "inner", "want"), [("max", "max", 8), ("400000", "max", 4), ("600000", "50000", 1)])
def test_no_more_cores_than_the_cgroups_allow(
    outer: str, inner: str, want: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert usable_cores(tmp_path) == 8
    for name, text in (
        ("proc/self/cgroup", "1:cpu:/old\n0::/user/job\n"),
        ("sys/fs/cgroup/user/cpu.max", f"{outer} 100000\n"),
        ("sys/fs/cgroup/user/job/cpu.max", f"{inner} 100000\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == want


def test_the_default_is_the_largest_divisor_within_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.parallel import launch as module

    for cores, games, want in ((1, 32, 1), (2, 32, 2), (5, 32, 4), (6, 9, 3), (64, 8, 8), (3, 7, 1)):
        monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        assert choose_ranks(0, games) == want
    assert choose_ranks(4, 32) == 4
    for asked in (3, 64, -1):
        with pytest.raises(UserError, match="divisors of the 32 environments"):
            choose_ranks(asked, 32)


def test_an_mlp_has_one_rank_unless_told_otherwise(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.parallel.launch.usable_cores", lambda: 2)
    surefoot.train(replace(small, total_steps=256), run_dir=tmp_path / "a", quiet=True)
    assert read_checkpoint(checkpoints(tmp_path / "a")[-1])[0]["ranks"] == 1


def test_the_cores_are_those_this_process_may_use() -> None:
    import os

    if not hasattr(os, "sched_setaffinity"):
        assert usable_cores() >= 1
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_ranks_columns_cover_the_games_once() -> None:
    for count in (1, 2, 4, 8):
        covered = [n for rank in range(count) for n in range(8)[Gloo(rank, count).columns(8)]]
        assert covered == list(range(8))
