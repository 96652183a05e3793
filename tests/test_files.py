"""Nothing is written or read through a link inside a run directory, and nothing but plain files is opened there."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import surefoot
from surefoot.config import Config
from surefoot.errors import UserError
from surefoot.runs import files
from surefoot.runs import worker as runner
from surefoot.runs.directory import checkpoints
from surefoot.runs.files import Folder, below, locked, read_named, write_folder
from surefoot.runs.metrics import read

SOURCE = Path(surefoot.__file__).parent
WRITTEN = (
    "config.json",
    "metrics.jsonl",
    "policy.safetensors",
    "best.safetensors",
    "evaluation.json",
    "report.md",
    "curve.png",
    "game.gif",
)


def test_one_module_opens_the_files_of_a_run() -> None:
    opening = re.compile(r"\bopen\(|\.(write|read)_(text|bytes)\(|\bsafe_open\b|FileLock")
    for file in (*SOURCE.glob("runs/*.py"), *SOURCE.glob("commands/*.py")):
        if file.name != "files.py":
            text = file.read_text(encoding="utf-8").replace('open("/proc/cpuinfo"', "")  # the processor's name
            assert not opening.search(text), file.name


@pytest.fixture(scope="module")
def cfg(small: Config) -> Config:
    """A run that writes every kind of file: evaluations on the way, a closing one, a film."""
    from surefoot.envs.gym import Gymnasium

    cfg = replace(small, env=Gymnasium("CartPole-v1"), total_steps=128 * 3, num_epochs=1)
    return replace(cfg, eval_every=128, eval_games=1, eval_episodes=1, save_every=1e-6)


@pytest.fixture(scope="module")
def finished(cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("finished") / "run"
    surefoot.train(cfg, run_dir=where, ranks=1, quiet=True)
    return where


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that must stay as it is."""
    where = tmp_path / "outside"
    (where / "sub").mkdir(parents=True)
    (where / "victim").write_text("mine")
    yield where
    assert {p.relative_to(where).as_posix() for p in where.rglob("*")} == {"sub", "victim"}
    assert (where / "victim").read_text() == "mine"


def lay(path: Path, to: Path) -> None:
    """A link in the place of whatever is there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.symlink_to(to)


@pytest.mark.parametrize("target", ["victim", "sub", "missing"])
def test_links_where_a_run_writes_are_replaced_and_not_followed(
    target: str, cfg: Config, outside: Path, tmp_path: Path
) -> None:
    where = tmp_path / "new"
    where.mkdir()
    (where / ".lock").touch()  # as a run that was killed at once leaves it
    for name in WRITTEN:
        for link in (name, f".{name}.writing", f".writing-{name}"):
            (where / link).symlink_to(outside / target)
    (where / "config.json").unlink()  # otherwise there is a run, which cannot be read
    surefoot.train(cfg, run_dir=where, ranks=1, quiet=True)
    assert all((where / name).is_file() and not (where / name).is_symlink() for name in WRITTEN)
    assert len(read(where)) == 3
    assert list(where.glob("*.writing")) == []


@pytest.mark.parametrize("name", [".lock", "tb", "checkpoints"])
def test_links_that_a_run_cannot_replace_end_it_or_are_given_up(
    name: str, cfg: Config, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "new"
    where.mkdir()
    (where / name).symlink_to(outside / ("victim" if name == ".lock" else "sub"))
    if name == "tb":
        (where / ".lock").touch()
        surefoot.train(cfg, run_dir=where, ranks=1, quiet=True)
        assert "TensorBoard's files are given up: " in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=r"link, which is not followed"):
            surefoot.train(cfg, run_dir=where, ranks=1, quiet=True)


ENDS = {
    "checkpoints": r"checkpoints' cannot be written \(it is a link",
    "best.safetensors": r"best\.safetensors' is not a surefoot policy \(ValueError: it is no plain file",
    "config.json": r"config\.json cannot be used \(it is no plain file\)",
}
GOES_ON = {*WRITTEN, ".policy.safetensors.writing", ".lock", "tb", "checkpoint"} - ENDS.keys()


@pytest.mark.parametrize("names", [*([name] for name in ENDS), sorted(GOES_ON)], ids=[*ENDS, "others"])
def test_links_that_appear_while_a_run_trains_are_not_followed(
    names: list[str], cfg: Config, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, sabotaged = tmp_path / "run", list[int]()

    class Sabotaged(runner.Reporter):
        def on_iteration(self, state: Any, *rest: Any) -> None:
            super().on_iteration(state, *rest)
            sabotaged.append(state.iteration)
            for name in names:
                if name == "checkpoint":
                    (where / "checkpoints").mkdir(exist_ok=True)
                    lay(where / "checkpoints" / f".{state.steps:09d}.writing", outside / "sub")
                    lay(where / "checkpoints" / f"{state.steps:09d}", outside / "sub")
                elif name != "checkpoints" or state.iteration == 2:
                    lay(where / name, outside / ("sub" if name in ("tb", "checkpoints") else "victim"))

    monkeypatch.setattr(runner, "Reporter", Sabotaged)
    if names[0] in ENDS:
        with pytest.raises(UserError, match=ENDS[names[0]]):
            surefoot.train(cfg, run_dir=where, ranks=1, quiet=True)
    else:
        assert surefoot.train(cfg, run_dir=where, ranks=1, quiet=True).evaluation is not None
    assert sabotaged == [1, 2, 3]


def test_a_seed_behind_a_link_is_refused(cfg: Config, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "seed-1").symlink_to(outside / "sub")
    with pytest.raises(UserError, match="seed-1' is a link, which is not followed"):
        surefoot.train_seeds(cfg, 2, run_dir=tmp_path / "seeds", ranks=1, quiet=True)


FILES = ("config.json", "metrics.jsonl", "policy.safetensors", "best.safetensors", "evaluation.json", "state.json")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def speaker(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        at = os.getcwd()
        os.chdir(path.parent)  # its name may have 107 bytes
        try:
            sock.bind(path.name)
        finally:
            os.chdir(at)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(40 << 30)


@pytest.mark.parametrize("kind", [fifo, device, speaker, sparse, Path.mkdir], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_plain_file_is_refused_or_left_out_at_once(
    name: str, kind: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = (checkpoints(run)[-1] if name == "state.json" else run) / name
    file.unlink()
    kind(file)
    if name in ("policy.safetensors", "best.safetensors"):
        if name == "policy.safetensors":
            (run / "best.safetensors").unlink()
        with pytest.raises(UserError, match=rf"{name}' is not a surefoot policy \(ValueError: it (is no plain|has )"):
            surefoot.evaluate(run, episodes=1)
        if kind is not device and kind is not speaker:
            with pytest.raises(UserError, match=r"is not a surefoot policy|holds no policy"):
                surefoot.evaluate(file, episodes=1)
    elif name == "config.json":
        with pytest.raises(UserError, match=r"config\.json cannot be used \(it (is no plain|has )"):
            surefoot.resume(run, ranks=1, quiet=True)
    elif name == "evaluation.json":
        assert surefoot.load(run).evaluation is None
        assert "evaluation.json' is damaged and left out" in capsys.readouterr().err
    elif name == "state.json":
        surefoot.resume(run, ranks=1, quiet=True)
        assert "state.json' is damaged: it " in capsys.readouterr().err
    elif kind is sparse:
        with pytest.raises(UserError, match=r"metrics\.jsonl' cannot be used \(it has 42,949,672,960 bytes"):
            surefoot.resume(run, ranks=1, quiet=True)
    else:
        assert read(run) == []
        assert "metrics.jsonl' is left out: it is no plain file" in capsys.readouterr().err


def test_a_policy_that_a_user_names_may_be_a_link_to_a_plain_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run / "policy.safetensors")
    assert surefoot.load_policy(tmp_path / "link")[2]["steps"] == 128 * 3
    (tmp_path / "runs").symlink_to(run)
    assert surefoot.load_policy(tmp_path / "runs")[1] == surefoot.load_policy(run)[1]


@pytest.mark.parametrize("rest", ["link", "dangling", "file", "folder"])
def test_a_rest_of_a_killed_save_is_no_obstacle(rest: str, outside: Path, tmp_path: Path) -> None:
    with below(tmp_path, "checkpoints", make=True) as folder:
        for name in (".1.writing", ".7.writing", "1", ".a.writing"):
            path = folder.path / name
            if rest == "folder" and name != "1":
                (path / "inner").mkdir(parents=True)
                (path / "link").symlink_to(outside / "sub")
            elif rest == "file":
                path.write_text("left")
            elif rest != "folder":
                path.symlink_to(outside / ("sub" if rest == "link" else "nothing"))
        write_folder(folder, "1", {"a": b"new"})
        folder.replace("a", b"too")
        assert sorted(folder.names()) == ["1", "a"]
        with folder.inside("1") as inner:
            assert inner.read("a", 3) == b"new"
        write_folder(folder, "1", {"a": b"other"})  # it is there
        assert (folder.path / "1" / "a").read_bytes() == b"new"


def test_a_folder_that_is_held_cannot_be_exchanged(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "tb").mkdir(parents=True)
    with below(tmp_path / "a", "tb") as folder:
        (tmp_path / "a" / "tb").rename(tmp_path / "moved")
        (tmp_path / "a" / "tb").symlink_to(outside / "sub")
        folder.replace("x", b"1")
        write_folder(folder, "y", {"z": b"2"})
        folder.remove("y")
    assert [p.name for p in (tmp_path / "moved").iterdir()] == ["x"]


def test_where_names_cannot_be_looked_up_in_an_open_folder_links_are_found_as_well(
    cfg: Config, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr(files, "BY_HANDLE", False)
    monkeypatch.setattr(files, "NO_FOLLOW", 0)
    run = surefoot.train(cfg, run_dir=tmp_path / "run", ranks=1, quiet=True)
    assert run.evaluation is not None
    for link in ("file", "tb"):
        (tmp_path / "run" / link).unlink(missing_ok=True) if link == "file" else shutil.rmtree(tmp_path / "run" / link)
        (tmp_path / "run" / link).symlink_to(outside / ("victim" if link == "file" else "sub"))
    with Folder(tmp_path / "run") as folder:
        with pytest.raises(ValueError, match="no plain file"):
            folder.read("file")
        with pytest.raises(OSError):
            folder.inside("tb", make=True)
        folder.replace("file", b"own")
    assert surefoot.resume(run.path, ranks=1, quiet=True, total_steps=128 * 4).steps == 128 * 4


def test_a_lock_is_given_up_with_its_holder(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        with locked(folder, 0.0), pytest.raises(TimeoutError), locked(folder, 0.0):
            pass
        with locked(folder, 0.0):
            pass
        child = os.fork()
        if child == 0:
            locked(folder, 0.0).__enter__()
            os._exit(0)
        os.waitpid(child, 0)
        with locked(folder, 0.0):
            pass


def test_a_file_is_read_by_its_stated_size_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    with Folder(tmp_path) as folder:
        assert folder.read("a") == folder.read("a", 4) == read_named(tmp_path / "a") == b"1234"
        for size in (0, 3, 5, 1 << 40):
            with pytest.raises(ValueError, match=f"it has 4 bytes instead of {size}"):
                folder.read("a", size)
        with pytest.raises(ValueError, match="it is missing"):
            folder.read("b")
