"""A run at an address: the run it would be in a directory, one command's at a time, whole after every interruption."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

import surefoot
from helpers import rows
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.connect.run import Run
from surefoot.errors import Fault, UserError
from surefoot.runs.checkpoint import read_checkpoint
from surefoot.runs.directory import checkpoints, newest
from surefoot.runs.mirror import CHECKPOINT, TAKEN, WRITER, Mirror, bring, newest_at, order
from surefoot.runs.reporter import Reporter

COMMAND = ["cartpole", "--network.hidden", "16", "--num-envs", "4", "--total-steps", "20480", "--eval-episodes", "0"]


@pytest.fixture(autouse=True)
def copies(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where working copies are made."""
    where = tmp_path_factory.mktemp("copies")
    monkeypatch.setattr(tempfile, "tempdir", str(where))
    return where


@pytest.fixture
def memory() -> Iterator[str]:
    """An address in this process's memory."""
    files = fsspec.filesystem("memory")
    yield "memory://bucket/run"
    files.store.clear()


def assert_same_run(a: Path, b: Path) -> None:
    """The same rows, and the newest checkpoint byte for byte, but for times; no file's environment is made."""
    assert rows(a) == rows(b)
    states = [read_checkpoint(checkpoints(where)[-1])[1] for where in (a, b)]
    assert states[0] == states[1]
    assert (a / "policy.safetensors").read_bytes() == (b / "policy.safetensors").read_bytes()


def at_step(number: int, action: Callable[[], Any]) -> type[Reporter]:
    """A reporter that does something when the iteration of this number has ended, and has saved."""

    class Acting(Reporter):
        def on_save(self, state, last=False):  # type: ignore[no-untyped-def]
            super().on_save(state, last)
            if self.mirror and not last:
                self.mirror.thread.join()
            if state.iteration == number and not last:
                action()

    return Acting


def test_it_is_the_run_in_a_directory(small: Config, tmp_path: Path, memory: str) -> None:
    """The same bits, each iteration saved; and what is there is the run, which a second command finds finished."""
    cfg = replace(small, save_every=1e-9, eval_episodes=2, eval_every=128, eval_games=1)
    surefoot.train(cfg, run_dir=tmp_path / "local", ranks=1, quiet=True)
    for address in (memory, (tmp_path / "a" / "b").as_uri()):
        run = surefoot.train(cfg, run_dir=address, ranks=1, quiet=True)
        assert_same_run(tmp_path / "local", run.path)
        pulled = bring(address, tmp_path / address[:4])
        assert_same_run(tmp_path / "local", pulled)
        names = {path.relative_to(pulled).as_posix() for path in pulled.rglob("*") if path.is_file()}
        theirs = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
        assert names == theirs - {".lock"}
        assert {"report.md", "evaluation.json", "best.safetensors", "curve.png"} < names
        assert f"surefoot pull {address}" in (pulled / "report.md").read_text()
        assert [len(checkpoints(where)) for where in (pulled, run.path)] == [len(checkpoints(tmp_path / "local"))] * 2
        before = Mirror(address).list()
        surefoot.train(cfg, run_dir=address, ranks=1, quiet=True)
        assert Mirror(address).list() == before
    longer = surefoot.resume(memory, total_steps=cfg.total_steps + 128, trust=True, quiet=True)
    assert longer.steps == cfg.total_steps + 128
    assert newest_at(memory) == cfg.total_steps + 128


@pytest.mark.usefixtures("signals_interrupt")
def test_a_run_that_is_stopped_goes_on_there(
    small: Config, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the trust that its first copy had is not the second's: what another environment's file names is asked for."""
    cfg = replace(small, save_every=1e-9)
    surefoot.train(cfg, run_dir=tmp_path / "local", ranks=1, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("surefoot.runs.worker.Reporter", at_step(3, lambda: signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(KeyboardInterrupt):
            surefoot.train(cfg, run_dir=memory, ranks=1, quiet=True)
    assert newest_at(memory) == 3 * 128
    with pytest.raises(UserError, match=r"'memory://bucket/run/config.json' asks to import worlds"):
        surefoot.resume(memory, quiet=True)
    assert_same_run(tmp_path / "local", surefoot.resume(memory, trust=True, quiet=True).path)


def test_the_last_command_has_the_run(
    small: Config, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, runs = replace(small, save_every=1e-9), list[Run]()
    surefoot.train(cfg, run_dir=tmp_path / "local", ranks=1, quiet=True)

    def second() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("surefoot.runs.worker.Reporter", Reporter)
            runs.append(surefoot.train(cfg, run_dir=memory, ranks=1, quiet=True))

    monkeypatch.setattr("surefoot.runs.worker.Reporter", at_step(2, second))
    with pytest.raises(Fault, match=f"^{TAKEN} '{memory}', and goes on from what was saved there$"):
        surefoot.train(cfg, run_dir=memory, ranks=1, quiet=True)
    assert_same_run(tmp_path / "local", runs[0].path)
    assert_same_run(tmp_path / "local", bring(memory, tmp_path / "pulled"))


def test_another_run_is_not_taken_over(small: Config, memory: str) -> None:
    surefoot.train(small, run_dir=memory, ranks=1, quiet=True)
    files = fsspec.filesystem("memory")
    mark = files.cat(f"/bucket/run/{WRITER}")
    with pytest.raises(UserError, match=f"'{memory}' holds a run with another Config"):
        surefoot.train(replace(small, seed=9), run_dir=memory, ranks=1, quiet=True)
    assert files.cat(f"/bucket/run/{WRITER}") == mark
    files.pipe("/bucket/other/metrics.jsonl", b"{}")
    with pytest.raises(UserError, match=r"'memory://bucket/other' holds metrics.jsonl, which no run of surefoot wrote"):
        surefoot.train(small, run_dir="memory://bucket/other", ranks=1, quiet=True)
    assert files.find("/bucket/other") == ["/bucket/other/metrics.jsonl"]


def test_a_torn_checkpoint_falls_back_to_the_one_before(
    small: Config, tmp_path: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that lacks `state.json`, which is brought last, is none; one whose file is half is set aside."""
    cfg, files = replace(small, save_every=1e-9), fsspec.filesystem("memory")
    whole = surefoot.train(cfg, run_dir=memory, ranks=1, quiet=True)
    last = f"/bucket/run/checkpoints/{checkpoints(whole.path)[-1].name}"
    for harm in ("state", "half"):
        if harm == "state":
            files.rm_file(f"{last}/state.json")
        else:
            files.pipe(f"{last}/optimizer.safetensors", files.cat(f"{last}/optimizer.safetensors")[:100])
        assert newest_at(memory) == newest(whole.path) - 128 * (harm == "state")
        again = surefoot.train(cfg, run_dir=memory, ranks=1, quiet=True)
        assert ("its checkpoint is set aside" in capsys.readouterr().err) == (harm == "half")
        assert_same_run(whole.path, again.path)
        assert_same_run(whole.path, bring(memory, tmp_path / harm))


def test_a_store_that_fails_costs_no_training(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone for a while: a note, and all is brought later. Gone at the end: the sentence says where the rest is."""
    there, away, cfg = tmp_path / "there", tmp_path / "away", replace(small, save_every=1e-9)
    address = there.as_uri()

    def go() -> None:
        there.rename(away)
        there.touch()

    def come() -> None:
        there.unlink()
        away.rename(there)

    class Failing(at_step(2, go)):  # type: ignore[misc]
        def on_iteration(self, state, *rest):  # type: ignore[no-untyped-def]
            super().on_iteration(state, *rest)
            if state.iteration == 4:
                come()

    with monkeypatch.context() as patch:
        patch.setattr("surefoot.runs.worker.Reporter", Failing)
        surefoot.train(cfg, run_dir=address, ranks=1, quiet=True)
    said = capsys.readouterr().err
    assert said.count("; it goes on and tries again") == 1
    assert f"surefoot: '{address}' " in said
    assert newest_at(address) == cfg.total_steps
    longer = replace(cfg, total_steps=12 * 128)
    shutil.rmtree(there)
    monkeypatch.setattr("surefoot.runs.worker.Reporter", at_step(2, go))
    with pytest.raises(Fault) as caught:
        surefoot.train(longer, run_dir=address, ranks=1, quiet=True)
    kept = Path(str(caught.value).split("what is not there is kept in '")[1].split("'")[0])
    assert kept.parent == copies
    assert newest(kept) == longer.total_steps
    come()
    assert newest_at(address) == 2 * 128
    monkeypatch.setattr("surefoot.runs.worker.Reporter", Reporter)
    assert surefoot.train(longer, run_dir=address, ranks=1, quiet=True).steps == longer.total_steps


class Slow(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A store that never answers once it hangs."""

    protocol, answers = "slow", threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("slow://")))

    def pipe_file(self, path: str, value: bytes, **how: Any) -> None:
        Slow.answers.wait()
        super().pipe_file(path, value, **how)


def test_a_store_that_hangs_does_not_hang_the_run() -> None:
    fsspec.register_implementation("slow", Slow, clobber=True)
    mirror = Mirror("slow://bucket/hanging")
    Slow.answers.set()
    mirror.take()
    (mirror.folder / "config.json").write_text("{}")
    Slow.answers.clear()
    try:
        mirror.save()
        assert "has not answered for 0.3 seconds; what is not there is kept in" in str(mirror.finish(0.3))
    finally:
        Slow.answers.set()
    mirror.thread.join()
    assert mirror.finish(5.0) is None
    assert mirror.list() == {"config.json": 2}


def test_what_cannot_be_opened_or_written_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (tmp_path / "file").touch()
    for address, says in (
        ("s3://bucket/run", "cannot be opened (ImportError: Install s3fs to access S3)"),
        ("nowhere://bucket/run", "cannot be opened (ValueError: Protocol not known: nowhere)"),
        ((tmp_path / "file" / "run").as_uri(), "cannot be listed (NotADirectoryError"),
        ("file:///proc/run", "cannot be written (FileNotFoundError"),
    ):
        assert main(["train", *COMMAND, "--quiet", "--run-dir", address]) == 2
        said = capsys.readouterr().err
        assert f"surefoot: '{address}' {says}" in said
        assert said.count("\n") == 1
    assert main(["resume", "memory://nothing/here"]) == 2
    assert "'memory://nothing/here' is not a run directory" in capsys.readouterr().err
    assert main(["pull", "memory://nothing/here"]) == 2
    assert "there is no such run at 'memory://nothing/here'" in capsys.readouterr().err
    for wrong in (["train", "cartpole", "--seeds", "2", "--run-dir"], ["evaluate"], ["tune", "cartpole", "--run-dir"]):
        assert main([*wrong, "s3://bucket/run"]) == 2
        assert "is an address, and a path is needed here" in capsys.readouterr().err
    assert main(["train", *COMMAND, "--quiet", "--run-dir", "memory://a/b", "--ranks", "2"]) == 2
    assert "'memory://a/b' is another place for" in capsys.readouterr().err


def test_a_listing_names_no_other_files(memory: str, tmp_path: Path) -> None:
    """Nothing outside of the folder, no link, nothing larger than what is read, and no name that a run has not."""
    names = [
        *("../out.json", "..", "/etc/passwd", "checkpoints/../config.json", "checkpoints/12/../../config.json"),
        *("config.json/x", "checkpoints/12/state.json/x", "checkpoints/x/state.json", "checkpoints/１２/state.json"),
        *("tb/events.x/y", "tb/../events.x", "tb/events.\n", "policy.pkl", ".lock", WRITER, "config.json\n", "tb"),
    ]
    files = fsspec.filesystem("memory")
    for name in names:
        files.store[f"/bucket/run/{name}"] = files.store.get("x") or type(files).open(files, "/x", "wb")
    files.rm("/x")
    files.pipe("/bucket/run/config.json", b"{}")
    assert Mirror(memory).list() == {"config.json": 2}
    link = tmp_path / "there" / "config.json"
    link.parent.mkdir()
    (tmp_path / "secret").write_text("{}")
    link.symlink_to(tmp_path / "secret")
    assert Mirror(link.parent.as_uri()).list() == {}


def test_files_larger_than_what_is_read_are_refused(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").pipe("/bucket/run/config.json", b"x" * 11)
    monkeypatch.setattr("surefoot.runs.mirror.LARGEST", 10)
    with pytest.raises(UserError, match=r"'memory://bucket/run/config.json' has 11 bytes, and at most 10 are read"):
        bring(memory, tmp_path / "pulled")


def test_the_order_in_which_files_are_brought() -> None:
    names = ["report.md", "checkpoints/10/state.json", "checkpoints/9/state.json", "checkpoints/9/envs.safetensors",
             "checkpoints/10/policy.safetensors", "metrics.jsonl", "config.json"]  # fmt: skip
    assert sorted(names, key=order) == [*names[:4:-1], names[3], names[2], names[4], names[1], names[0]]
    assert all(CHECKPOINT.fullmatch(name) for name in names[1:5])


def start(address: str, ranks: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "surefoot", "train", *COMMAND, "--save-every", "0.05", "--quiet"]
    return subprocess.Popen([*command, "--ranks", str(ranks), "--run-dir", address])


def wait_for(what: Callable[[], bool], *processes: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not what():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_goes_on_with_the_same_command(ranks: int, tmp_path: Path) -> None:
    address = (tmp_path / "there").as_uri()
    assert start(str(tmp_path / "local"), ranks).wait(180) == 0
    process = start(address, ranks)
    wait_for(lambda: newest_at(address) > 0, process)
    process.kill()
    process.wait(30)
    assert 0 < newest_at(address) < 20480
    assert start(address, ranks).wait(180) == 0
    assert_same_run(tmp_path / "local", bring(address, tmp_path / "pulled"))


@pytest.mark.long
def test_a_second_command_ends_the_first(tmp_path: Path) -> None:
    """With exit code 1 and its sentence; the second goes on, saves there when it is stopped, and says how to go on."""
    address = (tmp_path / "there").as_uri()
    endless = ["train", *COMMAND, "--total-steps", "1000000000", "--save-every", "0.05", "--run-dir", address]
    command = [sys.executable, "-m", "surefoot", *endless]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_for(lambda: newest_at(address) >= 0, first)
    with open(tmp_path / "out", "w") as out:
        second = subprocess.Popen(command, stdout=out)
    try:
        said = first.communicate(timeout=180)[1].decode()
        assert first.returncode == 1
        assert said.splitlines()[-1] == f"surefoot: {TAKEN} '{address}', and goes on from what was saved there"
        at = newest_at(address)
        wait_for(lambda: newest_at(address) > at, second)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 130
        assert newest_at(address) > at
        assert f"surefoot resume {address}" in (tmp_path / "out").read_text()
    finally:
        first.kill(), second.kill()


@pytest.mark.slow
def test_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Over S3's protocol: needs `pip install s3fs 'moto[server]'`."""
    pytest.importorskip("s3fs", reason="pip install s3fs")
    pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (names | {"AWS_ENDPOINT_URL": "http://127.0.0.1:5599"}).items():
        monkeypatch.setenv(name, value)
    command, there = [sys.executable, "-m", "moto.server", "-p", "5599"], "s3://bucket/runs/one"
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def made() -> bool:
        with suppress(Exception):
            fsspec.filesystem("s3").mkdir("bucket")
            return True
        return False

    try:
        wait_for(made, server)
        assert start(str(tmp_path / "local"), 2).wait(180) == 0
        process = start(there, 2)
        wait_for(lambda: newest_at(there) > 0, process)
        process.kill()
        process.wait(30)
        assert start(there, 2).wait(180) == 0
        assert_same_run(tmp_path / "local", bring(there, tmp_path / "pulled"))
        assert start("s3://no-bucket/run", 2).wait(180) == 2
        assert "'s3://no-bucket/run' cannot be written (FileNotFoundError: The" in capfd.readouterr().err
    finally:
        server.kill()
        server.wait()
