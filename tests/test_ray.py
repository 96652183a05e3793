"""On a Ray cluster a run is the run that `--ranks` makes, goes on when a rank or node is lost, and ends as elsewhere.

Needs `pip install 'surefoot[ray]'`; with a cluster: `pytest -m slow tests/test_ray.py`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from safetensors.torch import load_file

import surefoot
import twin
from processes import listening
from surefoot.algorithm import rollout
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.errors import Fault, UserError
from surefoot.parallel import ray as on_ray
from surefoot.parallel.launch import launch
from surefoot.parallel.ray_rank import MARK, Mailbox, require_same_place, versions
from surefoot.runs.directory import newest
from surefoot.runs.metrics import read
from surefoot.runs.mirror import bring, newest_at


def test_what_cannot_run_on_ray_is_said_at_once(small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"ray": "local", "ranks": 2, "quiet": True}
    gymnasium.register("Here-v0", lambda: gymnasium.make("CartPole-v1"))
    with pytest.raises(UserError, match="'Here-v0' can be made in this process alone"):
        surefoot.train("Here-v0", **how)
    with pytest.raises(UserError, match="name the number of --ranks: with"):
        surefoot.train(small, ray="local", quiet=True)
    with pytest.raises(UserError, match=r"'s3:.bucket.run' is an address, and a path is needed here: only train and"):
        surefoot.train(small, run_dir=Path("s3://bucket/run"), **how)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the run directory .* cannot be written"):
        surefoot.train(small, run_dir=tmp_path / "file" / "run", **how)
    with pytest.raises(UserError, match=r"no Ray cluster is at '127\.0\.0\.1:9' .ConnectionRefusedError"):
        surefoot.train(small, run_dir=tmp_path / "run", **how | {"ray": "127.0.0.1:9"})
    with pytest.raises(
        UserError, match="'ray://there:10001' is for Ray's client: type the command on one of its nodes"
    ):
        surefoot.train(small, run_dir=tmp_path / "run", **how | {"ray": "ray://there:10001"})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed .*: pip install 'surefoot\[ray\]'"):
        surefoot.train(small, run_dir=tmp_path / "run", **how)
    assert not list((tmp_path / "run").iterdir())
    assert "RAY_AUTH_TOKEN" not in os.environ
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK and WORLD_SIZE say that this is one rank of a job"):
        surefoot.train(small, **how)


def test_a_node_that_is_not_as_the_callers_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text("mark")
    require_same_place(tmp_path, "mark", versions())
    with pytest.raises(UserError, match=r"node .* has torch \S+ instead of 1.0, numpy \S+ instead of 0: install the"):
        require_same_place(tmp_path, "mark", versions() | {"torch": "1.0", "numpy": "0"})
    for content in ("other", None):
        (tmp_path / MARK).write_text(content) if content else (tmp_path / MARK).unlink()
        with pytest.raises(UserError, match=r"does not see the run directory .* choose one that all nodes share"):
            require_same_place(tmp_path, "mark", versions())


def test_ranks_that_are_lost_again_and_again_without_a_checkpoint_are_given_up() -> None:
    box = Mailbox()
    assert [box.begin(2, at) for at in (-1, 10, 20, 20, 20)] == [0, 1, 2, 3, 4]
    box.lose("rank 1: RuntimeError: gone")
    assert box.take()[2] is None
    box.begin(2, 20)
    words, starts, error, over = box.take()
    assert (words[-1][2].count("rank 1: RuntimeError: gone"), starts, over) == (1, 6, None)
    assert error == (True, "ranks were lost 3 times without a checkpoint in between (rank 1: RuntimeError: gone)")
    box.end(0, 0)
    assert box.take()[3] is None
    box.end(1, signal.SIGTERM)
    assert box.take()[3] == signal.SIGTERM


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each."""
    pytest.importorskip("ray.train.torch", reason="pip install 'surefoot[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: on a busy machine these tests would take for ever
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_timeout_ms", "500")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.second = cluster.add_node(num_cpus=1)  # type: ignore[attr-defined]
        try:
            yield cluster
        finally:
            cluster.shutdown()


@slow
def test_two_ranks_on_two_nodes_are_one_rank_here(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, with a fixed rate: the same games, gradients within 1e-10."""

    def work(out: str, _: Any) -> int:
        rollout.MIN_SHARE = 0  # each rank learns from its own games
        twin.main("continuing", twin.CFG, Path(out))
        return 0

    monkeypatch.setattr(rollout, "MIN_SHARE", 0)
    work(str(tmp_path), None)
    how = 2, twin.CFG.num_envs, 300.0, tmp_path
    assert on_ray.launch_on_ray(cluster.address, *how, work, newest, str(tmp_path)) == 0
    alone = load_file(tmp_path / "continuing-1-0.safetensors")
    parts = [load_file(tmp_path / f"continuing-2-{rank}.safetensors") for rank in (0, 1)]
    assert {name.split("/")[0] for name in alone} == {"1", "2", "3"}
    for name, want in alone.items():
        if name.endswith(("gradient", "parameters")):
            assert (parts[0][name] - want).abs().max() < 1e-10
            assert torch.equal(parts[0][name], parts[1][name])
        elif name.endswith(("obs", "action", "reward", "terminated")):
            assert torch.equal(torch.cat([part[name] for part in parts], 1), want)


@slow
@pytest.mark.parametrize("work", [twin.one_is_cut, twin.rounded])
def test_ranks_are_cut_and_send_bfloat16_as_local_ones(
    cluster: Any, small: Config, tmp_path: Path, work: Callable[[str, Path], None]
) -> None:
    """By sockets, two ranks play and learn the same, bit for bit; and the options reach the ranks of a whole run."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    program = f"import sys, twin, pathlib; twin.die_with_launcher(); twin.{work.__name__}('sockets', "
    program += "pathlib.Path(sys.argv[1])); twin.exit_now(0)"
    assert launch([sys.executable, "-c", program, str(here)], 2, 4, 300.0) == 0

    def on_node(out: str, _: Any) -> int:
        work("sockets", Path(out))
        return 0

    assert on_ray.launch_on_ray(cluster.address, 2, 8, 300.0, there, on_node, newest, str(there)) == 0
    files = sorted(file.name for file in here.iterdir())
    assert len(files) == 2
    for name in files:
        one, other = load_file(here / name), load_file(there / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    cfg = replace(small, sync_fraction=0.5, bf16_compress=True, eval_episodes=0)
    run = surefoot.train(cfg, run_dir=tmp_path / "run", ranks=2, ray=cluster.address, quiet=True)
    assert (run.config.sync_fraction, run.config.bf16_compress) == (0.5, True)
    assert read(tmp_path / "run")[-1]["step"] >= cfg.total_steps


def same(a: Path, b: Path) -> bool:
    one, other = (load_file(where / "policy.safetensors") for where in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def holder(run_dir: Path) -> int:
    """The worker that holds a run, once it has saved a checkpoint; 0 before."""
    for folder in Path("/proc").glob("[0-9]*") if newest(run_dir) >= 0 else ():
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                files = [os.readlink(handle) for handle in (folder / "fd").iterdir()]
                if str(run_dir / ".lock") in files:
                    return int(folder.name)
    return 0


def wait_for(what: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_worker_costs_nothing_but_time(
    cluster: Any, small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bits of two local ranks, although rank 0 was ended by SIGKILL in the middle."""
    cfg = replace(small, total_steps=128 * 1000, save_every=0.5)
    surefoot.train(cfg, run_dir=tmp_path / "local", ranks=2, quiet=True)
    run = tmp_path / "run"
    killer = threading.Thread(target=lambda: os.kill(wait_for(lambda: holder(run)), signal.SIGKILL))
    killer.start()
    surefoot.train(cfg, run_dir=run, ranks=2, ray=cluster.address)
    killer.join()
    assert same(tmp_path / "local", run)
    said = capsys.readouterr()
    assert "surefoot: a rank was lost" in said.err
    assert "Traceback" not in said.err
    assert "% step" in said.out
    assert MARK not in os.listdir(run)


@slow
def test_a_run_goes_on_without_a_lost_node_and_grows_when_one_comes(cluster: Any, tmp_path: Path) -> None:
    """And SIGTERM for the command saves, says how to go on, and is its exit code."""
    run, err = tmp_path / "run", tmp_path / "err"
    program = """
import sys
from surefoot.commands.cli import main
from surefoot.parallel import ray
ray.GROW = 2.0
sys.exit(main())
"""
    options = ["worlds:Catch-v0", "--total-steps", "1e9", "--save-every", "0.5", "--ranks", "2", "--num-envs", "8"]
    command = [sys.executable, "-c", program, "train", *options, "--ray", cluster.address, "--run-dir", str(run)]
    with open(tmp_path / "out", "w") as out, open(err, "w") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
    try:
        wait_for(lambda: newest(run) > 0)
        cluster.remove_node(cluster.second, allow_graceful=False)
        wait_for(lambda: "goes on from its newest checkpoint, with 1 of them" in err.read_text())
        cluster.second = cluster.add_node(num_cpus=1)
        wait_for(lambda: "there are cores for more ranks: the run goes on" in err.read_text())
        at = newest(run)
        wait_for(lambda: newest(run) > at)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert "stopped and saved after" in (tmp_path / "out").read_text()
    assert "Traceback" not in err.read_text()
    rows = read(run)
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))  # nothing twice, nothing missing
    assert rows[-1]["step"] == newest(run)


@slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_run_at_an_address_outlives_a_rank(cluster: Any, small: Config, tmp_path: Path) -> None:
    """The ranks share nothing but the address: the bits of two local ranks although rank 0 was ended in the middle."""
    cfg = replace(small, total_steps=128 * 400, save_every=0.2, eval_every=128 * 150, eval_games=2, eval_episodes=2)
    surefoot.train(cfg, run_dir=tmp_path / "local", ranks=2, quiet=True)
    one = (tmp_path / "one").as_uri()

    def copy_in_use() -> int:
        """The worker that holds the copy of a run which has saved."""
        for folder in Path("/proc").glob("[0-9]*") if newest_at(one) >= 0 else ():
            with suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                    files = [os.readlink(handle) for handle in (folder / "fd").iterdir()]
                    if any("surefoot-run-" in name and name.endswith("/.lock") for name in files):
                        return int(folder.name)
        return 0

    killer = threading.Thread(target=lambda: os.kill(wait_for(copy_in_use, 400), signal.SIGKILL))
    killer.start()
    run = surefoot.train(cfg, run_dir=one, ranks=2, ray=cluster.address, quiet=True)
    killer.join()
    assert same(tmp_path / "local", run.path)
    assert run.evaluation
    assert run.evaluation.scores == surefoot.load(tmp_path / "local").evaluation.scores  # type: ignore[union-attr]
    assert [row["step"] for row in run.metrics] == [row["step"] for row in read(tmp_path / "local")]


@slow
def test_a_run_at_an_address_outlives_a_node(cluster: Any, tmp_path: Path) -> None:
    """It goes on with one rank, no iteration twice or missing."""
    two = (tmp_path / "two").as_uri()
    options = ["worlds:Catch-v0", "--total-steps", "1e9", "--save-every", "0.5", "--ranks", "2", "--num-envs", "8"]
    command = [sys.executable, "-m", "surefoot", "train", *options, "--ray", cluster.address, "--run-dir", two]
    with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
    try:
        wait_for(lambda: newest_at(two) > 0, 400)
        cluster.remove_node(cluster.second, allow_graceful=False)
        wait_for(lambda: "goes on from its newest checkpoint, with 1 of them" in (tmp_path / "err").read_text(), 400)
        at = newest_at(two)
        wait_for(lambda: newest_at(two) > at, 400)
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 130
    finally:
        process.kill()
        cluster.second = cluster.add_node(num_cpus=1)
    assert f"surefoot resume {two}" in (tmp_path / "out").read_text()
    assert "Traceback" not in (tmp_path / "err").read_text()
    rows = read(bring(two, tmp_path / "pulled"))
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))  # nothing twice, nothing missing
    assert rows[-1]["step"] == newest_at(two)


@slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_ray_that_is_started_here_listens_on_loopback_alone_and_leaves_with_its_caller(tmp_path: Path) -> None:
    pytest.importorskip("ray.train", reason="pip install 'surefoot[ray]'")
    run, mark = tmp_path / "run", f"SUREFOOT_TEST={tmp_path}"

    def ours() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                found += [int(folder.name)] if mark.encode() in (folder / "environ").read_bytes().split(b"\0") else []
        return found

    options = [
        "cartpole",
        "--ray",
        "--ranks",
        "2",
        "--total-steps",
        "1e9",
        "--save-every",
        "0.5",
        "--run-dir",
        str(run),
    ]
    command = [sys.executable, "-m", "surefoot", "train", *options]
    process = subprocess.Popen(command, env=os.environ | dict([mark.split("=")]), stdout=-3, stderr=-3)
    try:
        wait_for(lambda: newest(run) > 0)
        heard = set[str]()
        for pid in ours():
            with suppress(OSError):
                heard |= set(listening(pid))
        assert heard
        assert heard <= {"0100007F", f"{1 << 24:032X}", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, ::1
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        wait_for(lambda: not ours())
    finally:
        process.kill()


@slow
def test_a_fault_on_a_rank_and_a_cluster_that_is_too_small(cluster: Any, small: Config, tmp_path: Path) -> None:
    cfg, address = replace(small, env=Gymnasium("worlds:Faulty-raises-v0")), cluster.address
    errors = []
    for name, where in (("local", ""), ("ray", address)):
        with pytest.raises(Fault) as caught:
            surefoot.train(cfg, run_dir=tmp_path / name, ranks=2, ray=where, quiet=True)
        errors.append(re.sub(r"\d+|/.*/", "", str(caught.value)).replace(name, ""))
    assert errors[0] == errors[1]
    assert "the simulator exploded" in errors[0]
    with pytest.raises(UserError, match="ranks is 4; the Ray cluster has 2 cores"):
        surefoot.train(small, run_dir=tmp_path / "four", ranks=4, ray=address, quiet=True)


@slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_search_on_a_cluster_loses_no_trial_with_a_node(cluster: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="pip install 'surefoot[tune]'")
    from surefoot.connect.tune import read_preset, study_of

    where, lines = tmp_path / "search", (tmp_path / "lines").open("w+")
    search = [sys.executable, "-m", "surefoot", "tune"]
    options = ["--ray", cluster.address, "--processes", "2", "--seeds", "2", "--eval-episodes", "2", "--run-dir"]
    ends = ["--trials", "3", "--total-steps", "60000", "--save-every", "1", "--num-envs", "8"]
    command = [*search, "worlds:Catch-v0", *ends, *options, str(where)]
    process = subprocess.Popen(command, stdout=lines, stderr=lines)
    try:
        runs = where / "trial-0", where / "trial-1"
        held = {wait_for(lambda run=run: holder(run)) for run in runs}
        cluster.remove_node(cluster.second, allow_graceful=False)
        wait_for(lambda: sum(Path(f"/proc/{pid}").exists() for pid in held) == 1)
        wait_for(lambda: process.poll() is not None, 600)
    finally:
        process.kill()
        cluster.second = cluster.add_node(num_cpus=1)
    lines.seek(0)
    text = lines.read()
    assert process.returncode == 0, text
    assert "surefoot: a trial's process was lost: it goes on from its newest checkpoint" in text
    assert "Traceback" not in text
    trials = study_of(where).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    for trial in trials:
        rows = read(where / trial.user_attrs["run"])
        assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))  # nothing twice, nothing missing
        assert rows[-1]["step"] >= 60_000
    fresh = [surefoot.load(run) for run in sorted(where.glob("best-trial-*/seed-*"))]
    assert [run.config.seed for run in fresh] == [1_000_001, 1_000_002]
    assert replace(fresh[0].config, seed=0) == replace(read_preset(where / "preset.json"), seed=0)
    assert not [*where.glob(".ray*")]
    for task, count, code, says in (
        ("worlds:Faulty-raises-v0", "2", 1, "every trial has failed or was pruned"),
        ("worlds:Catch-v0", "4", 2, "processes is 4; the Ray cluster has 2 cores"),
    ):
        other = [*search, task, "--trials", "2", "--total-steps", "1000", *options, str(tmp_path / count)]
        done = subprocess.run([*other, "--processes", count], capture_output=True, text=True, timeout=120)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
