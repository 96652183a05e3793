"""A run that cannot be lost: damaged files, full disks, faulty environments, hangs and signals at any time."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import surefoot
import worlds
from surefoot.algorithm import update as learning
from surefoot.algorithm.state import initial
from surefoot.commands import cli
from surefoot.commands.complaints import timeout_in
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.envs.gym_env import MAX_REPLAY
from surefoot.envs.interface import Episode
from surefoot.envs.vector import EnvVector
from surefoot.errors import Fault, UserError
from surefoot.models.networks import MLP
from surefoot.parallel import heartbeat as heartbeat
from surefoot.parallel import launch
from surefoot.parallel.ranks import Alone
from surefoot.presets import find
from surefoot.runs import directory, evaluation, files, metrics
from surefoot.runs import video as videos
from surefoot.runs import worker as runner
from surefoot.runs.checkpoint import read_checkpoint, save
from surefoot.runs.directory import checkpoints
from surefoot.runs.metrics import read

TIMES = {"seconds", "steps_per_second", "env_s", "act_s", "learn_s"}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read(run_dir)]


def assert_same_run(a: Path, b: Path) -> None:
    mine, theirs = (surefoot.load_policy(run)[0].state_dict() for run in (a, b))
    assert rows(a) == rows(b)
    assert all(torch.equal(x, theirs[k]) for k, x in mine.items())


def go(cfg: Config, where: Path, **changes: Any) -> None:
    surefoot.train(replace(cfg, **changes), run_dir=where, ranks=1, quiet=True)


# Damaged files: named, and the checkpoint before is used.


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def link(file: Path) -> None:
    elsewhere = file.parent.parent / f"elsewhere-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


@pytest.fixture(scope="module")
def whole(small: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others must be the same as."""
    where = tmp_path_factory.mktemp("whole") / "a"
    go(small, where)
    return where


@pytest.fixture(scope="module")
def often_saved(small: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("often-saved") / "a"
    go(small, where, save_every=1e-6, total_steps=128 * 4)
    return where


@pytest.fixture
def saved_twice(often_saved: Path, tmp_path: Path) -> Path:
    """A run with checkpoints, to be damaged."""
    return Path(shutil.copytree(often_saved, tmp_path / "a"))


@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink, link])
@pytest.mark.parametrize("name", ["policy", "optimizer", "envs", "state"])
def test_the_checkpoint_before_a_damaged_one_is_used(
    damage: Callable[[Path], None],
    name: str,
    often_saved: Path,
    saved_twice: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With as many ranks as the run had, one, although there are more cores."""
    newest = checkpoints(saved_twice)[-1]
    file = newest / (f"{name}.json" if name == "state" else f"{name}.safetensors")
    damage(file)
    monkeypatch.setattr(launch, "usable_cores", lambda: 4)
    surefoot.resume(saved_twice, trust=True, quiet=True)
    assert f"'{file}' is damaged" in capsys.readouterr().err
    assert newest.with_name(newest.name + ".damaged").exists()
    assert_same_run(often_saved, saved_twice)


def test_a_run_without_a_whole_checkpoint_is_said_and_left_as_it_was(saved_twice: Path) -> None:
    for checkpoint in checkpoints(saved_twice):
        flip(checkpoint / "policy.safetensors")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint .* is whole: .*policy\.safetensors' is damaged"):
            surefoot.resume(saved_twice, trust=True, ranks=1, quiet=True, total_steps=10_000)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-went-off",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Bomb()), (2**62).to_bytes(8, "little") + b"{}", b"\xff" * 100, (50 << 30).to_bytes(8, "little")],
    ids=["pickle", "huge header", "noise", "50 GB header"],
)
def test_nothing_that_is_loaded_is_carried_out(
    content: bytes, saved_twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where somebody made digest and size fit."""
    monkeypatch.chdir(tmp_path)
    (saved_twice / "policy.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a surefoot policy"):
        surefoot.load_policy(saved_twice)
    for name in ("policy.safetensors", "optimizer.safetensors", "envs.safetensors"):
        newest = checkpoints(saved_twice)[-1]
        before = (newest / "state.json").read_bytes(), (newest / name).read_bytes()
        facts = files.unseal(before[0])
        facts["files"][name] = [len(content), files.digest(content)]
        (newest / name).write_bytes(content)
        (newest / "state.json").write_bytes(files.seal(facts))
        with pytest.raises(UserError, match="of another program or environment"):
            surefoot.resume(saved_twice, trust=True, ranks=1, quiet=True, total_steps=10_000)
        (newest / "state.json").write_bytes(before[0])
        (newest / name).write_bytes(before[1])
    assert not (tmp_path / "it-went-off").exists()


def test_checkpoints_behind_a_link_are_neither_written_nor_read(
    small: Config, saved_twice: Path, tmp_path: Path
) -> None:
    (saved_twice / "checkpoints").rename(tmp_path / "elsewhere")
    (saved_twice / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "new").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "new" / "checkpoints").symlink_to(tmp_path / "empty")
    with pytest.raises(UserError, match=r"new/checkpoints' lies behind a link.*: move the whole run"):
        go(small, tmp_path / "new")
    assert not any((tmp_path / "empty").iterdir())
    with pytest.raises(UserError, match="behind a link"):
        surefoot.resume(saved_twice, trust=True, ranks=1, quiet=True, total_steps=10_000)


def test_nothing_outside_of_a_run_directory_is_written(saved_twice: Path, tmp_path: Path) -> None:
    """A link where a file is about to be written, and a path instead of a name: as in a run from a stranger."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("config.json", "metrics.jsonl", "policy.safetensors"):
        (saved_twice / f".{name}.writing").symlink_to(victim)
        (saved_twice / name).rename(tmp_path / name)
        (saved_twice / name).symlink_to(tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in ("config.json", "metrics.jsonl", "policy.safetensors")]
    with pytest.raises(UserError, match=r"config\.json cannot be used \(it is no plain file\)"):
        surefoot.resume(saved_twice, trust=True, ranks=1, quiet=True)
    (saved_twice / "config.json").unlink()
    newest = checkpoints(saved_twice)[-1] / "state.json"
    facts = files.unseal(newest.read_bytes())
    facts["files"] |= {"../../../victim": [4, files.digest(b"mine")], str(victim): [4, files.digest(b"mine")]}
    newest.write_bytes(files.seal(facts))
    surefoot.resume(saved_twice, trust=True, ranks=1, quiet=True, total_steps=128 * 5)
    assert [row["step"] for row in rows(saved_twice)] == [128 * 5]  # none were read through the link
    assert victim.read_text() == "mine"
    assert before == [(tmp_path / name).read_bytes() for name in ("config.json", "metrics.jsonl", "policy.safetensors")]
    assert not any(p.is_symlink() for p in saved_twice.rglob("*"))


# Not between: a hundred thousand games are allowed, and take all memory.
NUMBERS = st.integers(-300, 300) | st.integers(2**40) | st.integers(max_value=-(2**40))
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("finished") / "a"
    tiny = {"num_envs": 1, "num_steps": (128,), "network": MLP((4,)), "total_steps": 512, "eval_episodes": 0}
    surefoot.train("cartpole", run_dir=where, ranks=1, quiet=True, **tiny)
    return where


@pytest.mark.long
@pytest.mark.parametrize("name", ["config.json", "state.json"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_json_file_is_refused_in_a_sentence(name: str, finished: Path, data: st.DataObject) -> None:
    """Resealed or not, never another exception and never a run that is silently another one."""
    file = (finished if name == "config.json" else checkpoints(finished)[-1]) / name
    before = file.read_bytes()
    facts = files.unseal(before)
    *way, last = data.draw(st.sampled_from(sorted(places(facts), key=str)))
    part = facts
    for key in way:
        part = part[key]
    old, part[last] = part[last], data.draw(JSON)
    changed = json.dumps(part[last]) != json.dumps(old)
    try:
        file.write_bytes(json.dumps(facts | {"digest": json.loads(before)["digest"]}).encode())
        if changed:  # as by accident
            with pytest.raises(UserError):
                surefoot.resume(finished, ranks=1, quiet=True)
        file.write_bytes(files.seal(facts))  # as by somebody who means it: loads, or says why not
        with suppress(UserError):
            cfg = directory.read_config(finished)
            runner.prepare(cfg, initial(cfg, Alone()), finished, Alone())
    finally:
        file.write_bytes(before)
        for aside in finished.glob("checkpoints/*.damaged"):
            aside.rename(aside.with_suffix(""))


# Disks: every write, fsync and rename may fail; what was there stays, and no rest is left.


@contextmanager
def failing(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The `at`-th of the calls that need the disk says that it is full, and all later ones."""
    calls = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] >= at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", wrap(files.write))
        patch.setattr(os, "fsync", wrap(os.fsync))
        patch.setattr(os, "rename", wrap(os.rename))
        patch.setattr(os, "replace", wrap(os.replace))
        yield calls


def test_a_disk_that_is_full_at_any_moment_of_saving_leaves_the_checkpoint_before(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = initial(small, Alone())
    save(state, small, tmp_path, Alone())
    before = read_checkpoint(checkpoints(tmp_path)[0])
    state.steps = 64
    moments = 0
    for at in range(1, 100):
        with failing(at, monkeypatch) as calls:
            try:
                save(state, small, tmp_path, Alone())
            except OSError:
                moments += 1
            else:
                assert calls[0] < at
                break
        assert read_checkpoint(checkpoints(tmp_path)[0]) == before
        whole = checkpoints(tmp_path)[1:]  # renamed already, and then the folder's own fsync failed
        assert all(read_checkpoint(checkpoint)[0]["steps"] == 64 for checkpoint in whole)
        assert {p.name for p in (tmp_path / "checkpoints").iterdir()} <= {"000000000", "000000064"}
        for checkpoint in whole:
            shutil.rmtree(checkpoint)
    assert moments == 4 * 2 + 3  # each file's write and fsync, the folder's fsync, its rename, its parent's fsync
    assert len(checkpoints(tmp_path)) == 2


@pytest.mark.long
def test_a_process_killed_at_any_moment_of_saving_leaves_a_whole_checkpoint(small: Config, tmp_path: Path) -> None:
    """A forked copy of this process saves, and is killed before and after each call that needs the disk."""
    state = initial(small, Alone())
    save(state, small, tmp_path, Alone())
    before = read_checkpoint(checkpoints(tmp_path)[0])
    state.steps = 64
    seen = set()
    for moment in range(100):
        child = os.fork()
        if child == 0:
            killing_at(moment)
            save(state, small, tmp_path, Alone())
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = checkpoints(tmp_path)
        assert read_checkpoint(found[0]) == before
        assert all(read_checkpoint(checkpoint)[0]["steps"] == 64 for checkpoint in found[1:])
        seen.add(len(found))
        for checkpoint in found[1:]:
            shutil.rmtree(checkpoint)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert (moment, seen) == (2 * 11, {1, 2})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000000000"]  # and no rest is left in the end


def killing_at(moment: int) -> None:
    """Make this process kill itself before or after a call that needs the disk: moment 0 is before the first."""
    calls = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            for half in range(2):
                if calls[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls[0] += 1
                if half == 0:
                    result = real(*args, **kwargs)
            return result

        return call

    real = os.open
    exclusive = wrap(real)  # what makes a file; others only read_checkpoint
    os.open = lambda path, flags, *how, **more: (exclusive if flags & os.O_EXCL else real)(path, flags, *how, **more)
    os.fsync, os.rename = wrap(os.fsync), wrap(os.rename)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tmpfs", "limit"])
def test_a_run_on_a_disk_that_is_really_full_loses_nothing(
    kind: str, small: Config, whole: Path, tmp_path: Path
) -> None:
    """A small file system, or a limit on the size of files, in a forked copy of this process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = fill_and_make_room(kind, small, disk, whole)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 77:
        pytest.skip("no file system can be mounted here: user namespaces are not allowed")
    assert code == 0


def fill_and_make_room(kind: str, small: Config, disk: Path, whole: Path) -> int:
    """Take a run through a full disk at its beginning, while it trains, and at its end; 77 where none can be had."""
    run, filler = disk / "a", disk / "filler"
    if kind == "tmpfs" and not mount_here(disk, 400_000):
        return 77
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def exit_now(room: int) -> None:  # for all files together, or for each of them
        if kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            return
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))

    def make_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        filler.unlink(missing_ok=True)

    go(small, run, total_steps=256, save_every=1e-6)
    before = read_checkpoint(checkpoints(run)[-1])
    for room, says in (
        (
            0,
            r"'.*/a/(config.json|metrics.jsonl)' cannot be written \(.*\): make room, .* goes on with: ",
        ),
        (
            8192 if kind == "tmpfs" else 3000,
            r"checkpoints/000000768' cannot be written \(.*\): make room, .* goes on with: ",
        ),
    ):
        exit_now(room)
        with pytest.raises(Fault, match=says):
            surefoot.resume(run, ranks=1, quiet=True, total_steps=768)
        make_room()
        assert read_checkpoint(checkpoints(run)[-1]) == before
        assert not list(run.rglob("*.writing"))
    real = runner.finish

    def full(*args: Any) -> None:
        exit_now(0)
        real(*args)

    runner.finish = full
    with pytest.raises(
        Fault, match=r"'.*/a/curve\.png' cannot be written \(.*\): make room, or mend it; what was saved"
    ):
        surefoot.resume(run, ranks=1, quiet=True, total_steps=768)
    make_room()
    runner.finish = real
    surefoot.resume(run, ranks=1, quiet=True)
    assert (run / "report.md").exists()
    assert_same_run(whole, run)
    if kind == "tmpfs":
        remount, read_only = 0x20, 0x1
        assert not ctypes.CDLL(None).mount(b"none", os.fsencode(disk), b"tmpfs", remount | read_only, None)
        with pytest.raises(
            UserError, match=r"'.*/new' cannot be written \(Read-only file system\): choose another --run"
        ):
            go(small, disk / "new")
    return 0


def mount_here(folder: Path, size: int) -> bool:
    """Mount a file system of so many bytes, which only this process sees (as `unshare -Urm`); False where it cannot."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    new_user, new_mounts = 0x10000000, 0x00020000
    if sys.platform != "linux" or libc.unshare(new_user | new_mounts):
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return not libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())


def test_training_goes_on_where_a_checkpoint_cannot_be_written_and_the_last_one_must(
    small: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, full = files.write, [True]

    def write(folder: files.Folder, name: str, data: bytes) -> None:
        if full[0] and "checkpoints" in str(folder.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, name, data)

    monkeypatch.setattr(files, "write", write)
    with pytest.raises(Fault, match=r"checkpoints/000000768' cannot be written \(No space left on device\)"):
        go(small, tmp_path / "a", save_every=1e-6)
    assert capsys.readouterr().err.count("it goes on and tries again") == 6
    assert len(rows(tmp_path / "a")) == 6
    full[0] = False
    go(small, tmp_path / "a", save_every=1e-6)
    assert_same_run(tmp_path / "a", whole)


def test_rows_wait_for_room_and_a_broken_tensorboard_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = metrics.Metrics(tmp_path, 0)
    real = os.write

    def a_little(handle: int, data: bytes) -> int:  # a full disk takes a part, then nothing
        if len(data) > 5:
            return real(handle, data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log, "board", os.open("/dev/full", os.O_WRONLY))
    log.add({"step": 1, "x": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "write", a_little)
        for step in (2, 3, 4):
            log.add({"step": step, "x": float("nan")})
    log.add({"step": 5, "x": 2.0})
    log.close()
    assert [(row["step"], row["x"]) for row in read(tmp_path)] == [(s, {1: 1.0, 5: 2.0}.get(s)) for s in range(1, 6)]
    err = capsys.readouterr().err
    assert err.count("No space left") == 2
    assert "TensorBoard" in err


def test_a_run_directory_belongs_to_one_run(small: Config, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / ".lock"), pytest.raises(UserError, match="another process is writing"):
        go(small, tmp_path / "a")
    go(small, tmp_path / "a")


# Environments that break: named with seed and actions; nothing of what was broken is learned.


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", "RuntimeError: the simulator exploded"),
        ("nan", "its observation is not finite"),
        ("infinite reward", "its reward is inf"),
        ("shape", r"its observation has shape \(2,\), but its space has \(3,\)"),
        ("type", "TypeError"),
        ("not a number", "could not convert|TypeError|ValueError"),
        ("action", "AssertionError: [01] is no legal action"),
    ],
)
def test_a_faulty_environment_is_named_so_that_it_can_be_replayed(
    name: str, says: str, small: Config, tmp_path: Path
) -> None:
    cfg = replace(small, env=Gymnasium(f"worlds:Faulty-{name.replace(' ', '-')}-v0"))
    cfg.env.make().close()  # looked at once a process
    worlds.Faulty.made = worlds.Faulty.steps = 0
    with pytest.raises(Fault, match=says) as caught:
        go(cfg, tmp_path / "a")
    text = str(caught.value)
    assert "surefoot resume" in text
    where = worlds.Faulty.last
    assert f"(episode's seed {where['seed']}, step {where['step']}, last actions " in text
    actions = text.split("last actions ")[1].split(")")[0].split()
    assert actions == [str(a) for a in where["actions"][-8:]]
    assert f"environment {where['number']} " in text
    steps = int(checkpoints(tmp_path / "a")[-1].name)  # the start of the iteration in which it happened
    assert steps == rows(tmp_path / "a")[-1]["step"] > 0
    game = cfg.env.make()  # and it can be replayed
    out = game.obs.copy()
    game.reset(where["seed"], out)
    assert worlds.Faulty.last["seed"] == where["seed"]


def test_a_last_observation_that_is_not_finite_is_its_own_episodes_fault(small: Config, tmp_path: Path) -> None:
    """Diverged and terminated in the same step: the seed named is that of the episode that did."""
    cfg = replace(small, env=Gymnasium("worlds:Diverging-v0"))
    with pytest.raises(Fault, match="its observation is not finite") as caught:
        go(cfg, tmp_path / "a")
    assert f"(episode's seed {worlds.Diverging.last}, step 3, last actions " in str(caught.value)


@pytest.mark.parametrize("where", ["make", "reset"])
def test_an_environment_that_fails_before_it_is_played_is_a_fault_and_can_be_made_anew(
    where: str, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(small, env=Gymnasium("worlds:Unwilling-v0"))
    monkeypatch.setattr(worlds.Unwilling, "refuses", {where: 1 if where == "make" else 20})
    with pytest.raises(Fault, match="RuntimeError: not today"):
        go(cfg, tmp_path / "a")
    if where == "reset":
        monkeypatch.setattr(worlds.Unwilling, "refuses", {where: 20})
        go(cfg, tmp_path / "b", env_restarts=1)
        assert len(rows(tmp_path / "b")) == 6


def test_a_fault_in_the_closing_evaluation_costs_the_evaluation_alone(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = replace(small, env=Gymnasium("worlds:Unwilling-v0"), eval_episodes=50)
    monkeypatch.setattr(worlds.Unwilling, "refuses", {"reset": 8 * 16 + 8 + 20})
    go(cfg, tmp_path / "a")
    assert "the environment failed in evaluation episode" in capsys.readouterr().err
    assert (tmp_path / "a" / "report.md").exists()
    monkeypatch.setattr(worlds.Unwilling, "refuses", {"reset": 20})  # not one of the first, with which fewer are played
    with pytest.raises(Fault, match="not today"):
        surefoot.evaluate(tmp_path / "a")


def test_a_run_whose_config_is_gone_goes_on_and_is_not_taken_for_another(saved_twice: Path, small: Config) -> None:
    (saved_twice / "config.json").unlink()
    with pytest.raises(UserError, match=r"another Config \(.*seed"):
        go(small, saved_twice, seed=77)
    flip(checkpoints(saved_twice)[-1] / "state.json")  # even where the newest checkpoint does not know it either
    surefoot.resume(saved_twice, trust=True, ranks=1, quiet=True, total_steps=128 * 5)
    assert [row["step"] for row in rows(saved_twice)] == [128 * k for k in range(1, 6)]


@pytest.mark.long
def test_how_a_run_is_looked_after_may_change_when_it_goes_on(small: Config, tmp_path: Path) -> None:
    cfg = replace(small, env=Gymnasium("worlds:Enormous-v0"))
    with pytest.raises(Fault, match="not finite"):
        go(cfg, tmp_path / "a")
    go(cfg, tmp_path / "a", skip_updates=1000)  # begun again, no checkpoint was there
    surefoot.resume(tmp_path / "a", ranks=1, quiet=True, total_steps=128 * 7, skip_updates=2000, timeout=60.0)
    assert len(rows(tmp_path / "a")) == 7


def test_the_best_checkpoint_is_kept_and_can_be_evaluated(small: Config, tmp_path: Path) -> None:
    state = initial(small, Alone())
    for steps, score in ((100, 1.0), (200, 5.0), (300, 4.0), (400, 3.0), (500, 2.0), (600, 1.0)):
        state.steps = steps
        state.recent_episodes.extend([Episode(0, score, 6)] * 100)
        save(state, small, tmp_path, Alone())
    assert [int(p.name) for p in checkpoints(tmp_path)] == [200, 400, 500, 600]
    assert len(surefoot.evaluate(checkpoints(tmp_path)[0], episodes=3).scores) == 3


def test_a_run_begun_again_before_its_first_checkpoint_has_no_doubles(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = metrics.Metrics(tmp_path, 0)
    for step in (1, 2, 3):
        log.add({"step": step, "x": 1.0})
    log.close()
    again = metrics.Metrics(tmp_path, 0)
    for step in (1, 2):
        again.add({"step": step, "x": 2.0})
    again.close()
    board = EventAccumulator(str(tmp_path / "tb"), purge_orphaned_data=True)
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("x")] == [(1, 2.0), (2, 2.0)]
    assert [row["x"] for row in read(tmp_path)] == [2.0, 2.0]


def test_tensorboard_hears_of_a_row_within_five_seconds_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics, "time", lambda: now[0])
    log = metrics.Metrics(tmp_path, 0)
    log.add({"step": 1, "x": 1.0})
    assert not (tmp_path / "tb").exists()
    now[0] += 6
    log.add({"step": 2, "x": 2.0})
    (board,) = (tmp_path / "tb").iterdir()
    size = board.stat().st_size
    log.close()
    assert size == board.stat().st_size > 0  # nothing was left to write


def test_a_broken_transition_never_enters_the_data() -> None:
    """Rows of a game that raised: what was played before is cut short, what follows is a new episode, all exact."""
    from surefoot.algorithm.rollout import collect

    games = EnvVector(Gymnasium("worlds:Crashing-v0"), 5, range(3), restarts=100)
    torch.manual_seed(0)
    policy = MLP((8,)).build(games.observation_space, games.action_space)
    games.reset_all()
    r = collect(policy, games, torch.rand(60, 3))
    assert games.restarts < 100
    crashed = r.truncated.nonzero().tolist()
    assert crashed
    for t, n in crashed:
        assert r.obs[t + 1, n, 1] == 0  # a new episode
        with torch.no_grad():
            shown = torch.tensor([[r.obs[t, n, 0], r.obs[t, n, 1] + 1, r.action[t, n]]])
            assert torch.allclose(r.next_value[t, n], policy(shown.float())[1], atol=1e-5)
    step_after = r.obs[..., 1] + 1
    assert torch.equal(r.reward, step_after + 10 * r.action)  # every row is one real transition
    inside = ~r.ended[:-1]
    assert torch.equal(r.obs[1:][inside][:, 2], r.action[:-1][inside].float())
    with torch.no_grad():  # and the old policy's numbers belong to these rows
        dist, value, _ = policy(r.obs.flatten(0, 1))
    assert torch.allclose(dist.log_prob(r.action.flatten()), r.logp.flatten(), atol=1e-5)
    assert torch.allclose(value, r.value.flatten(), atol=1e-5)


@pytest.mark.long
def test_it_learns_with_an_environment_that_crashes_at_random(small: Config, tmp_path: Path) -> None:
    cfg = replace(small, env=Gymnasium("worlds:FragileCatch-v0"), total_steps=128 * 150, env_restarts=10_000)
    go(cfg, tmp_path / "a", learning_rate=replace(small.learning_rate, initial=3e-3))
    assert rows(tmp_path / "a")[-1]["return_mean"] > 0.8


def test_an_episode_too_long_to_replay_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.envs import gym_env
    from surefoot.envs.vector import EnvVector

    assert MAX_REPLAY >= 100_000
    monkeypatch.setattr(gym_env, "MAX_REPLAY", 5)
    games = EnvVector(Gymnasium("worlds:ScriptedLong-terminated-v0"), 1, range(1))
    games.reset_all()
    for _ in range(5):
        games.step([0], games.obs.copy())
    other = EnvVector(Gymnasium("worlds:ScriptedLong-terminated-v0"), 1, range(1))
    assert other.restore(games.snapshot()) == []
    games.step([0], games.obs.copy())
    assert len(games.envs[0].actions) == 5  # type: ignore[attr-defined]
    assert other.restore(games.snapshot()) == [0]


def test_an_update_that_is_not_finite_is_skipped_as_often_as_allowed(small: Config, tmp_path: Path) -> None:
    """Rewards of 1e30 overflow the squared error in single precision; the weights stay what they were."""
    cfg = replace(small, env=Gymnasium("worlds:Enormous-v0"))
    with pytest.raises(Fault, match="the gradient is not finite in iteration 1, after 0 steps"):
        go(cfg, tmp_path / "a")
    go(cfg, tmp_path / "b", skip_updates=1000)
    first = initial(cfg, Alone()).policy.state_dict()
    assert all(torch.equal(x, first[k]) for k, x in surefoot.load_policy(tmp_path / "b")[0].state_dict().items())
    facts, _ = read_checkpoint(checkpoints(tmp_path / "b")[-1])
    assert facts["skipped"] == 6 * 2 * 4


# Signals while games are played, and environments that hang.


@pytest.mark.long
@pytest.mark.parametrize(("wait", "number"), [("slow", signal.SIGINT), ("hanging", signal.SIGTERM)])
@pytest.mark.usefixtures("signals_interrupt")
def test_a_signal_breaks_a_rollout_off_and_loses_nothing(
    wait: str, number: int, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the environment sleeps; the iteration's start is saved, and the bits are the same."""
    cfg = replace(small, env=Gymnasium("worlds:Sleepy-v0"))
    go(cfg, tmp_path / "whole")
    main = threading.get_ident()

    def sleep() -> None:  # called by the environment in the middle of the third rollout
        threading.Thread(target=lambda: signal.pthread_kill(main, number)).start()
        signal.pause() if wait == "slow" else threading.Event().wait(600)

    monkeypatch.setattr(worlds.Sleepy, "nap", staticmethod(sleep))
    monkeypatch.setattr(worlds.Sleepy, "steps_until_nap", 128 * 2 + 70)
    with pytest.raises(KeyboardInterrupt):
        go(cfg, tmp_path / "parts")
    assert len(rows(tmp_path / "parts")) == 2
    assert checkpoints(tmp_path / "parts")[-1].name == f"{256:09d}"
    monkeypatch.setattr(worlds.Sleepy, "steps_until_nap", -1)
    go(cfg, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hang; that is too long after half a second, from now on, so a busy machine is no hang."""
    monkeypatch.setattr(heartbeat.Watchdog, "allowed", lambda *_: 0.5)
    threading.Event().wait(600)


def test_a_hanging_environment_ends_the_run_with_its_name(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worlds.Sleepy, "nap", staticmethod(lambda: hang(monkeypatch)))
    monkeypatch.setattr(worlds.Sleepy, "steps_until_nap", 128 + 3)
    cfg = replace(small, env=Gymnasium("worlds:Sleepy-v0"))
    with pytest.raises(Fault, match=r"environment 2 \(episode's seed \d+, step \d+, .* has hung for 0.5 seconds"):
        go(cfg, tmp_path / "a")
    assert checkpoints(tmp_path / "a")[-1].name == f"{128:09d}"


@pytest.mark.usefixtures("signals_interrupt")
@pytest.mark.parametrize("change", [{}, {"eval_every": 256}], ids=["at the end", "while it trains"])
def test_an_environment_that_hangs_in_an_evaluation_ends_the_run(
    change: dict[str, Any], small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is saved, and without its hanging the run goes on."""
    step, steps = evaluation._Slot.step, itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation._Slot, "step", lambda *x: hang(patch) if next(steps) == 10 else step(*x))
        with pytest.raises(Fault, match=r"^rank 0 has given no sign of life for 0.5 seconds; .* resume "):
            go(small, tmp_path / "a", eval_episodes=3, **change)
    go(small, tmp_path / "a", eval_episodes=3, **change)
    assert len(rows(tmp_path / "a")) == 6
    assert (tmp_path / "a" / "evaluation.json").exists()


@pytest.mark.usefixtures("signals_interrupt")
@pytest.mark.parametrize(
    ("method", "where"), [("__init__", "while it is made or first reset"), ("reset", "episode's seed .*beginning")]
)
def test_an_environment_that_hangs_before_its_first_decision_is_named(
    method: str, where: str, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The minute more that it is given for its start is shortened when it hangs, and not before."""

    def hang(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(heartbeat, "START", 0.1)
        threading.Event().wait(600)

    monkeypatch.setattr(worlds.Catch, method, hang)
    with pytest.raises(Fault, match=rf"^environment 0 \({where}\) has hung for 0.3 seconds$"):
        go(small, tmp_path / "a", timeout=0.2)


@pytest.mark.usefixtures("signals_interrupt")
@pytest.mark.parametrize("method", ["__init__", "reset"])
def test_the_look_at_an_environment_before_training_is_watched(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command's own --timeout, and from Python."""

    def hang(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(heartbeat, "START", 0.1)
        threading.Event().wait(600)

    monkeypatch.setattr("surefoot.envs.gym_env.MASK_SOURCES", {})
    monkeypatch.setattr(worlds.Catch, method, hang)
    sentence = "environment 0 (while it is made or first reset) has hung for 0.3 seconds"
    with pytest.raises(Fault, match=re.escape(sentence)):
        find("worlds:Catch", timeout=0.2)
    assert cli.main(["train", "worlds:Catch", "--timeout=0.2", "--quiet"]) == 1
    assert capsys.readouterr().err.endswith(f"surefoot: {sentence}\n")
    assert timeout_in(["--quiet", "--timeout", "7"]) == {"timeout": 7.0}
    assert timeout_in(["--timeout", "long"]) == timeout_in(["--timeout"]) == {}


def test_sigusr1_saves_and_goes_on(small: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asking(runner.Reporter):
        def on_iteration(self, state: Any, *rest: Any) -> None:
            super().on_iteration(state, *rest)
            if state.iteration == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(runner, "Reporter", Asking)
    go(small, tmp_path / "a")
    assert [int(p.name) for p in checkpoints(tmp_path / "a")] == [256, 768]
    assert_same_run(tmp_path / "a", whole)


def test_a_policy_that_learns_nothing_is_reported(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Corridor pays the same whatever is done: over the games all rewards agree, and nothing is pushed."""
    from surefoot.algorithm.advantages import FutureReturn, OverGames

    cfg = replace(small, env=Gymnasium("worlds:Corridor-v0"), advantage=FutureReturn(0.9), normalize=OverGames())
    go(cfg, tmp_path / "a", value_coef=0.0, total_steps=128 * 25)
    err = capsys.readouterr().err
    assert err.count("nothing was learned for 20 iterations: every advantage is 0") == 1


def test_a_policy_that_always_does_the_same_is_reported(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def certain(*args: Any) -> Any:
        state = initial(*args)
        with torch.no_grad():
            state.policy.actor.bias[0] = 100.0
        return state

    monkeypatch.setattr(runner, "initial", certain)
    go(small, tmp_path / "a", total_steps=128 * 45)
    err = capsys.readouterr().err
    assert err.count("the policy has played the same actions for 20 iterations (entropy ") == 1
    assert "give it a larger --entropy.coef or a lower learning rate" in err


def test_a_gaussian_that_is_narrow_is_not_one_action(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entropy of a density may be below 0."""
    cfg = replace(small, env=Gymnasium("Pendulum-v1"), network=MLP(std=0.1))
    go(cfg, tmp_path / "a", total_steps=128 * 22)
    assert read(tmp_path / "a")[-1]["entropy"] < 0
    assert "same actions" not in capsys.readouterr().err


class SignalsAt:
    """Calls a function; at one of its calls signals come first."""

    def __init__(self, real: Callable[..., Any], call: int, *signals: int) -> None:
        self.real, self.left, self.signals = real, call, signals

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        for number in self.signals if self.left == 0 else ():
            signal.raise_signal(number)
        return self.real(*args, **kwargs)


BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
@pytest.mark.usefixtures("signals_interrupt")
@pytest.mark.parametrize("stage", ["update", "save"])
def test_a_signal_lets_an_update_or_a_save_finish(
    stage: str, number: int, small: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, call = {"update": (learning, "update", 8 + 3), "save": (files, "write", 2 + 5 + 2)}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, SignalsAt(getattr(module, name), call, number))
        with pytest.raises(KeyboardInterrupt):
            go(small, tmp_path / "parts", save_every=1e-6 if stage == "save" else 1e9)
    assert checkpoints(tmp_path / "parts")[-1].name == f"{256:09d}"  # the second iteration's
    go(small, tmp_path / "parts")
    assert_same_run(whole, tmp_path / "parts")


@BOTH
@pytest.mark.usefixtures("signals_interrupt")
@pytest.mark.parametrize("stage", ["evaluation", "film"])
def test_a_signal_after_training_ends_at_once_and_loses_nothing(
    stage: str,
    number: int,
    small: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = replace(small, env=Gymnasium("CartPole-v1"), total_steps=128, eval_episodes=2)
    place, name = {"evaluation": (evaluation._Slot, "step"), "film": (videos, "_frame")}[stage]
    signals = SignalsAt(getattr(place, name), 3, number)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, lambda *args: signals(*args))
        with pytest.raises(KeyboardInterrupt):
            go(cfg, tmp_path / "a")
    assert "what was saved goes on with: " in capsys.readouterr().err
    assert not (tmp_path / "a" / "report.md").exists()
    surefoot.resume(tmp_path / "a", ranks=1, quiet=True)
    assert (tmp_path / "a" / "report.md").exists()
    if stage == "film":
        before = sorted((tmp_path / "a").iterdir())
        assert tmp_path / "a" / "game.gif" in before
        monkeypatch.setattr(place, name, SignalsAt(getattr(place, name), 3, number))
        assert cli.main(["video", str(tmp_path / "a"), "--out", str(tmp_path / "a" / "other.gif")]) == 130
        assert sorted((tmp_path / "a").iterdir()) == before


@pytest.mark.usefixtures("signals_interrupt")
@pytest.mark.parametrize("launched", [False, True])
def test_the_second_signal_ends_at_once_but_a_rank_leaves_that_to_its_launcher(
    launched: bool, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever signals all processes of a run reaches a rank twice, directly and through its launcher."""
    if launched:
        heartbeat.Heartbeat.create(tmp_path / "0", small.num_envs)
        monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path / "0"))
    monkeypatch.setattr(learning, "update", SignalsAt(learning.update, 3, signal.SIGTERM, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(small, tmp_path / "a")
    assert [int(checkpoint.name) for checkpoint in checkpoints(tmp_path / "a")] == ([128] if launched else [])


def test_sigterm_saves_and_then_ends_a_program_that_trains_from_python(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked copy of this process, in which SIGTERM does what it does by default."""
    monkeypatch.setattr(learning, "update", SignalsAt(learning.update, 3, signal.SIGTERM))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            go(small, tmp_path / "a")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert [int(checkpoint.name) for checkpoint in checkpoints(tmp_path / "a")] == [128]


def test_a_handler_of_ones_own_hears_the_signal_when_all_is_saved(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    old = signal.signal(signal.SIGTERM, lambda *_: heard.append(len(checkpoints(tmp_path / "a")) == 1))
    monkeypatch.setattr(learning, "update", SignalsAt(learning.update, 3, signal.SIGTERM))
    try:
        run = surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert heard == [True]
    assert run.steps == 128


@pytest.mark.long
@pytest.mark.parametrize(
    ("wrong", "kind", "says"),
    [
        (
            {"env": Gymnasium("worlds:Unmakeable-v0")},
            Fault,
            "the environment .* cannot be made: RuntimeError: no display of any kind",
        ),
        ({"device": "warp"}, UserError, "device 'warp' cannot be used: .*"),
    ],
    ids=["fault", "mistake"],
)
def test_an_exception_is_the_same_on_any_number_of_ranks(
    wrong: dict[str, Any],
    kind: type[Exception],
    says: str,
    small: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cfg, sentences = replace(small, **wrong), set()
    for ranks in (1, 2):
        with pytest.raises(UserError, match=f"^{says}$") as caught:
            surefoot.train(cfg, run_dir=tmp_path / "a", ranks=ranks, quiet=True)
        assert type(caught.value) is kind
        sentences.add(str(caught.value))
    assert len(sentences) == 1
    assert capfd.readouterr().err == ""  # nothing is said twice


@pytest.mark.usefixtures("signals_interrupt")
def test_a_run_whose_episodes_never_end_has_no_score_and_goes_on_exactly(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(small, env=Gymnasium("worlds:ScriptedLong-terminated-v0"))
    go(cfg, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(learning, "update", SignalsAt(learning.update, 3 * 8 + 1, signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            go(cfg, tmp_path / "parts")
    go(cfg, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert {(row["episodes"], row["return_mean"]) for row in rows(tmp_path / "parts")} == {(0, None)}
    report = (tmp_path / "parts" / "report.md").read_text()
    assert "| training score | no episode has ended yet |" in report
    assert "nan" not in report
