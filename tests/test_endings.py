"""How programs begin and end around a run: outputs, places, environments that end or copy their process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import endings
import surefoot
from helpers import TINY
from makers import Image
from processes import RANK, Ear, gone_within
from surefoot.algorithm.objectives import Entropy
from surefoot.algorithm.schedules import FixedRate, LinearRate, ScheduledRate
from surefoot.commands.cli import Train, parse
from surefoot.config import Config
from surefoot.envs.makers import parse_kwargs
from surefoot.envs.registrations import register
from surefoot.errors import LONGEST, Fault, UserError, note, one_line, put, said
from surefoot.models.networks import MLP
from surefoot.parallel.heartbeat import VARIABLE
from surefoot.parallel.launch import launch, workspace
from surefoot.paths import absolute, file_name
from surefoot.presets import find
from surefoot.runs.directory import read_evaluation
from surefoot.runs.evaluation import Evaluation
from surefoot.runs.files import seal, unseal
from surefoot.runs.metrics import MAY_BE_NULL, NUMBERS, read
from surefoot.runs.start import start
from surefoot.versions import OLDEST

SHORT = ["--num-envs", "2", "--num-steps", "16", "--minibatch-size", "16", "--num-epochs", "1", "--total-steps", "64"]
SHORT += ["--eval-episodes", "0"]


def shell(words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's command; `surefoot` in it is the program, SHORT the options of a short run."""
    words = words.replace("surefoot", f"{sys.executable} -m surefoot").replace("SHORT", " ".join(SHORT))
    return subprocess.run(words, shell=True, cwd=cwd, env=os.environ | env, capture_output=True, timeout=120)


@pytest.mark.parametrize("way", ["Quitting", "Leaving"])
def test_an_environment_that_ends_its_process_is_a_fault(way: str, tmp_path: Path) -> None:
    endings.Quitting.steps = 0
    with pytest.raises(Fault, match=r"episode's seed .* SystemExit: (os\._exit\(0\) was called|0);"):
        surefoot.train(f"endings:{way}", run_dir=tmp_path / "a", quiet=True, **TINY)
    assert os._exit.__module__ != "surefoot.parallel.guard"


@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "ranks"),
    [
        *((way, 1) for way in ("InThread", "RegularlyInC", "InC", "Replaced")),
        pytest.param("Quitting", 2, marks=pytest.mark.slow),
    ],
)
def test_a_program_that_an_environment_ends_says_so(way: str, ranks: int, tmp_path: Path) -> None:
    done = shell(f"surefoot train endings:{way} SHORT --run-dir a --ranks {ranks}", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"surefoot: ")
    assert done.stderr.count(b"\n") == 1
    unheard = b"exit code 0 before its work was done"
    said = {"RegularlyInC": b"exit() was called in C", "InC": unheard, "Replaced": unheard}
    assert said.get(way, b"os._exit(0)") in done.stderr


@pytest.mark.parametrize("way", ["Basely", "Speechless", "Verbose"])
def test_what_an_environment_says_is_one_clean_line(way: str, tmp_path: Path) -> None:
    endings.Quitting.steps = 0
    with pytest.raises(Fault) as caught:
        surefoot.train(f"endings:{way}", run_dir=tmp_path / "a", quiet=True, **TINY)
    text = str(caught.value)
    assert len(text) < LONGEST
    assert text.isprintable()
    assert {
        "Basely": "Own: basely",
        "Speechless": "its text fails with Own",
        "Verbose": "ValueError: much \\x1b[31mado",
    }[way] in text
    assert list((tmp_path / "a" / "checkpoints").iterdir())


def test_odd_texts_are_shown_as_they_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    class Narrow:
        encoding, written = "ascii", ""

        def write(self, text: str) -> None:
            self.written += text.encode("ascii").decode()

        def flush(self) -> None:
            pass

    stream = Narrow()
    assert put("1 · 2 \udcff", stream)
    assert stream.written == "1 \\xb7 2 \\udcff\n"
    assert not put("nothing", None)
    with open(os.devnull) as closed:
        pass
    assert not put("nothing", closed)
    note("a\nb\x1b]0;title\x07 \u202e")
    assert capsys.readouterr().err == "surefoot: a b\\x1b]0;title\\x07 \\u202e\n"
    assert len(one_line("x" * 10_000)) == LONGEST
    assert said(ValueError()) == "ValueError"


@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks", "letters", "outputs"),
    [
        (1, "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", ">&- 2>&-"),
        (2, "PYTHONIOENCODING=cp1252", "2> /dev/full > out"),
        pytest.param(2, "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "<&- >&-", marks=pytest.mark.slow),
        pytest.param(1, "PYTHONIOENCODING=ascii", "> out", marks=pytest.mark.slow),
        pytest.param(1, "", "> /dev/full 2> /dev/full", marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_as_it_should_whatever_is_around_it(ranks: int, letters: str, outputs: str, tmp_path: Path) -> None:
    """Outputs that are closed, full or of few letters; a directory whose name is no UTF-8; an environment that goes
    elsewhere, leaves a thread, and forks two copies of the process, of which one comes back and one stays."""
    name, elsewhere = b"\xff\xfe\xc3\xbc\xf0\x9f\x8e\xb2", tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = f"{letters} surefoot train endings:Everything SHORT --ranks {ranks} --run-dir $PLACE {outputs}"
    done = shell(words, tmp_path, PLACE=os.fsdecode(name), ELSEWHERE=str(elsewhere))
    assert (done.returncode, done.stderr) == (0, b"")
    run = tmp_path / os.fsdecode(name)
    assert b"resume '" + name in (run / "report.md").read_bytes()
    assert (run / "metrics.jsonl").read_text().count("\n") == 2
    if "out" in outputs:
        assert (tmp_path / "out").read_bytes().count(b"where the time went") == 1
    copies = [int(path.name[5:]) for path in elsewhere.iterdir()]
    assert len(copies) == 2 * ranks
    assert sys.platform != "linux" or gone_within(5, copies)


def test_a_result_that_cannot_be_printed_is_a_fault(tmp_path: Path) -> None:
    for words in ("surefoot --help", "surefoot --version", "surefoot train --help"):
        done = shell(f"{words} > /dev/full", tmp_path, PYTHONUNBUFFERED="")
        assert (done.returncode, done.stderr) == (
            1,
            b"surefoot: 'standard output' cannot be used (No space left on device)\n",
        )


def test_a_run_lives_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment goes elsewhere when it is made; names are meant from where they were typed."""
    typed, elsewhere = tmp_path / "typed", tmp_path / "elsewhere"
    typed.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    for act in (surefoot.train, surefoot.evaluate, surefoot.resume):
        monkeypatch.chdir(typed)
        if act is surefoot.train:
            act("endings:Wandering", run_dir="out", quiet=True, **TINY)
            monkeypatch.chdir(typed)
            act("endings:Wandering", quiet=True, **TINY | {"eval_episodes": 0})
        else:
            act("out", **({"episodes": 1} if act is surefoot.evaluate else {"total_steps": 64, "quiet": True}))
    assert {path.name for path in typed.iterdir()} == {"out", "runs"}
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_a_run_may_lose_the_directory_it_was_started_in(tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    done = shell(f"rmdir ../start; surefoot train CartPole-v1 SHORT --run-dir {tmp_path / 'a'}", start)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_directory_that_is_gone_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since MKL ends the process there, at its first product on an Intel processor."""
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert absolute(tmp_path / "run") == tmp_path / "run"
    assert Path.cwd() == Path("/")


def test_a_name_is_not_meant_from_a_directory_that_is_gone(tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    done = shell("rmdir ../start; surefoot train CartPole-v1 SHORT --run-dir a", start)
    assert done.returncode == 2
    assert done.stderr.startswith(b"surefoot: the present directory is gone")


def test_home_is_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert absolute("~/runs") == tmp_path / "runs"
    with pytest.raises(UserError, match="nobody"):
        absolute("~nobody-at-all/runs")
    with pytest.raises(UserError, match="zero byte"):
        absolute("a\0b")


@pytest.mark.parametrize(
    "task", ["a:b.<locals>.<lambda>#0", 'A<>:"/\\|?*\x00\n', "Ns/Name-v1", "ü" * 300, "...", "x" * 400]
)
def test_default_directories_have_names_that_every_system_allows(task: str) -> None:
    name = file_name(task)
    assert 0 < len(name) <= 100
    assert not set('<>:"/\\|?*') & set(name)
    assert name.isprintable()
    assert name.isascii()
    assert not {name[0], name[-1]} & set("-. ")


OURS = (
    "report.md",
    "evaluation.json",
    "curve.png",
    "game.gif",
    "policy.safetensors",
    "best.safetensors",
    "config.json",
)


@pytest.mark.parametrize("name", [*OURS, "metrics.jsonl", "checkpoints", "tb"])
def test_nothing_of_somebody_elses_is_written_over(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text("mine") if "." in name else file.mkdir()
    with pytest.raises(UserError, match=f"holds {name}, which no run of surefoot wrote"):
        surefoot.train("CartPole-v1", run_dir=tmp_path, quiet=True, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.is_dir() or file.read_text() == "mine"
    (tmp_path / name).rename(tmp_path / "aside")
    fields: dict[str, Any] = TINY | {"eval_episodes": 0, "total_steps": 16}
    surefoot.train("CartPole-v1", run_dir=tmp_path, quiet=True, **fields)  # what it would not write may lie there
    surefoot.train("CartPole-v1", run_dir=tmp_path, quiet=True, **fields)
    (tmp_path / ".lock").unlink()  # as in a copy that leaves hidden files out
    surefoot.train("CartPole-v1", run_dir=tmp_path, quiet=True, **fields)


def test_a_summary_of_somebody_elses_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"holds seeds\.json, which surefoot did not write"):
        surefoot.train_seeds("CartPole-v1", 2, run_dir=tmp_path, quiet=True, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["seeds.json"]


@pytest.mark.slow
def test_a_copy_that_lingers_does_not_hold_the_run(tmp_path: Path) -> None:
    tiny = TINY | {"eval_episodes": 0, "learning_rate": "FixedRate()"}
    fields = ", ".join(f"{name}={value}" for name, value in tiny.items())
    program = f"""
import surefoot
from surefoot.algorithm.schedules import FixedRate
surefoot.train("endings:Lingering", run_dir="a", quiet=True, {fields})
surefoot.resume("a", quiet=True, total_steps=96)
"""
    (tmp_path / "program.py").write_text(program)
    done = shell(f"{sys.executable} program.py", tmp_path, ELSEWHERE=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("again", [False, True])
def test_a_run_whose_directory_is_removed_is_a_fault(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one has taken its place."""
    run, other = tmp_path / "a", "the run directory .* is gone"
    monkeypatch.setenv("ELSEWHERE", str(run))
    endings.Quitting.steps = 0
    if again:
        monkeypatch.setattr(endings.shutil, "rmtree", lambda path: (Path(path).rename(tmp_path / "old"), run.mkdir()))
    with pytest.raises(Fault, match=other):
        surefoot.train("endings:Removing", run_dir=run, quiet=True, **TINY)
    assert not run.exists() or not list(run.iterdir())


def test_numbers_of_other_kinds_are_taken_for_what_is_wanted() -> None:
    given = {"total_steps": 1e6, "num_steps": [np.int64(64)], "seed": np.int32(4), "bf16": np.bool_(False)}
    cfg = find("CartPole-v1", max_seconds=np.float32(5), network=MLP([np.int64(32)], running=np.True_), **given)
    again = Config.from_json(json.loads(json.dumps(cfg.to_json())))
    assert again == cfg
    assert (cfg.total_steps, cfg.num_steps, cfg.seed, cfg.bf16, cfg.network) == (
        10**6,
        (64,),
        4,
        False,
        MLP((32,), True),
    )
    assert find("CartPole-v1", num_steps=64) == find("CartPole-v1", num_steps=(64,))
    command = parse(["train", "CartPole-v1", "--total-steps", "1e5", "--num-steps", "64", "1.28e2", "--no-bf16"])
    assert isinstance(command, Train)
    assert (command.config.total_steps, command.config.num_steps) == (100_000, (64, 128))


@pytest.mark.parametrize("wrong", [1.5, "64", None, math.inf, True, np.ones(2)], ids=repr)
def test_what_is_no_whole_number_is_refused(wrong: object) -> None:
    with pytest.raises(UserError, match="total_steps"):
        find("CartPole-v1", total_steps=wrong)
    for text in ("1.5", "inf", "many"):
        with pytest.raises(UserError, match=f"'{text}' is no whole number"):
            parse(["train", "CartPole-v1", "--total-steps", text])


def test_words_that_stand_for_values_are_values_in_kwargs() -> None:
    texts = ["a=false", "b=FALSE", "c=no", "d=off", "e=True", "f=on", "g=null", "h=None", "i=8x8", "j='no'", "k=1e3"]
    assert list(parse_kwargs(texts).values()) == [False] * 4 + [True] * 2 + [None] * 2 + ["8x8", "no", 1000.0]
    kwargs = {"is_slippery": np.False_, "map_name": "no"}
    assert find("FrozenLake-v1", {"is_slippery": False}).env == find("FrozenLake-v1", ["is_slippery=False"]).env
    assert parse_kwargs(f"{k}={v!r}" for k, v in {"map_name": "no"}.items()) == {"map_name": "no"}
    assert find("FrozenLake-v1", {"is_slippery": kwargs["is_slippery"]}).env.kwargs == ("is_slippery=False",)


@pytest.mark.parametrize(("name", "version"), [("numpy", "1.26.4"), ("gymnasium", "0.29.1")])
def test_a_package_that_is_too_old_is_named(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{name}.__version__", version)
    says = f"{name} {version} is installed, and surefoot needs {OLDEST[name]} or newer .*pip install '{name}>="
    with pytest.raises(UserError, match=says):
        surefoot.train("CartPole-v1", **TINY)
    with pytest.raises(UserError, match=says):
        find("MountainCar-v0")


def test_the_oldest_versions_are_those_of_the_package() -> None:
    wanted = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {f"{name}>={oldest}" for name, oldest in OLDEST.items()} <= set(wanted)


class Camera(Image):
    """A picture of a script's own."""


@pytest.mark.parametrize("known", [True, False])
def test_what_a_program_has_registered_its_ranks_know_or_it_takes_one(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class that can be imported by its name, or one that only the program itself has."""
    launched = []
    monkeypatch.setattr("surefoot.runs.start.launch", lambda command, *_: launched.append(command) or 0)
    monkeypatch.setattr("surefoot.parallel.launch.usable_cores", lambda: 2)
    monkeypatch.setattr("surefoot.runs.worker.run", lambda *_, **__: 0)
    gymnasium.register("Own/Camera-v3", Camera if known else type("Camera", (Image,), {}), kwargs={})
    monkeypatch.setattr(sys, "path", [*sys.path, "beside"])
    surefoot_cfg = find("Own/Camera-v3", **TINY)
    start(surefoot_cfg, tmp_path / "a")
    said = capsys.readouterr().err
    if known:
        order = json.loads(launched[0][-1])
        assert os.path.abspath("beside") in order[-1]
        del gymnasium.registry["Own/Camera-v3"]
        register(order[-2])
        assert isinstance(gymnasium.make("Own/Camera-v3").unwrapped, Camera)
        assert said == ""
    else:
        assert not launched
        assert said.startswith("surefoot: 'Own/Camera-v3' can be made in this process alone, so the run takes one rank")
        with pytest.raises(UserError, match="for more ranks name module:function"):
            start(surefoot_cfg, tmp_path / "a", ranks=2)
    del gymnasium.registry["Own/Camera-v3"]


@pytest.mark.long
def test_a_later_end_says_what_jumps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields: dict[str, Any] = TINY | {"eval_episodes": 0, "entropy": Entropy(0.5, end_factor=0.0)}
    jumps = "the learning rate 0.0005 instead of 0"
    for rate, says in ((LinearRate(1e-3), jumps), (ScheduledRate((1e-3, 0.0)), jumps), (FixedRate(1e-3), "50%")):
        where = tmp_path / type(rate).__name__
        surefoot.train("CartPole-v1", run_dir=where, quiet=True, learning_rate=rate, **fields)
        capsys.readouterr()
        surefoot.resume(where, quiet=True, total_steps=96)
        said = capsys.readouterr().err
        assert says in said
        assert "entropy.coef 0.25 instead of 0" in said
        surefoot.resume(where, quiet=True)
        assert capsys.readouterr().err == ""


@pytest.mark.long
def test_a_run_of_another_device_goes_on_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = surefoot.train("CartPole-v1", run_dir=tmp_path / "a", quiet=True, **TINY).path
    for file in (run / "config.json", *run.glob("checkpoints/*/state.json")):
        facts = unseal(file.read_bytes())
        facts["config"]["device"] = "cuda:77"
        file.write_bytes(seal(facts))
    assert surefoot.evaluate(run, episodes=1).scores
    capsys.readouterr()
    assert surefoot.resume(run, quiet=True, total_steps=64).steps == 64
    assert "device 'cuda:77' cannot be used here: the run goes on with cpu" in capsys.readouterr().err
    assert surefoot.resume(run, quiet=True, total_steps=96, device="cpu").config.device == "cpu"
    assert capsys.readouterr().err == ""


def test_a_rank_that_is_ended_with_0_from_within_has_not_finished(tmp_path: Path) -> None:
    ear = Ear(tmp_path / "fifo")
    program = "if me == 0: exit_now(0)\nctypes.CDLL(None)._exit(0)"
    with pytest.raises(Fault, match="rank 1 has ended with exit code 0 before its work was done"):
        launch([sys.executable, "-c", RANK + program, str(tmp_path / "fifo")], 2, 1, 300.0)
    os.close(ear.handle)


def test_folders_of_killed_launchers_are_removed_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import os\nfrom surefoot.parallel.launch import workspace\nwith workspace(): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path)})
    (tmp_path / "surefoot-of-somebody").mkdir()
    assert len(list(tmp_path.iterdir())) == 2
    with workspace() as first:
        names = {"surefoot-of-somebody", first.name}
        assert {path.name for path in tmp_path.iterdir()} == names
        with workspace():
            assert first.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"surefoot-of-somebody"}


def test_no_variable_of_ours_names_a_file_to_be_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_bytes(bytes(10_000))
    monkeypatch.setenv(VARIABLE, str(mine))
    for more in ({}, {"RANK": "0", "WORLD_SIZE": "1"}):
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"{VARIABLE} names .*thesis.txt', which no launcher of surefoot has made"):
            surefoot.train("CartPole-v1", run_dir=tmp_path / "a", quiet=True, **TINY)
    assert mine.read_bytes() == bytes(10_000)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["thesis.txt"]


def test_damaged_rows_cost_themselves_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every single bit of a row in the middle; its end; fields that lack, are null, or of another kind."""
    names = (*NUMBERS, *MAY_BE_NULL, "kl")
    sound = [dict.fromkeys(names, 1.5) | {"step": 64 * i, "iteration": i} for i in range(1, 6)]
    lines = [json.dumps(row).encode() for row in sound]
    file = tmp_path / "metrics.jsonl"

    def left(third: bytes, end: bytes = b"\n") -> list[int]:
        file.write_bytes(b"\n".join(lines[:2]) + b"\n" + third + end + b"\n".join(lines[3:]) + b"\n")
        capsys.readouterr()
        found = read(tmp_path)
        assert all({*NUMBERS, *MAY_BE_NULL} <= set(row) for row in found)
        assert all(type(x) in (int, float, type(None)) for row in found for x in row.values())
        steps = [row["step"] for row in found]
        assert {64, 128, 256, 320} <= set(steps)
        return steps

    third = lines[2]
    for bit in sorted({*range(8 * 40), *range(0, 8 * len(third), 7)}):
        flipped = bytearray(third)
        flipped[bit // 8] ^= 1 << bit % 8
        left(bytes(flipped))
    for bit in range(8):
        assert left(third, bytes([ord("\n") ^ 1 << bit])) == [64, 128, 192, 256, 320]
    for name in names:
        for value in (None, "1", [], {}, True, 10**400, -1, math.nan, math.inf):
            left(json.dumps(sound[2] | {name: value}).encode())
        left(json.dumps({k: v for k, v in sound[2].items() if k != name}).encode())
    for text in (b"", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\x00", json.dumps(sound[0]).encode(), b"9" * 10_000):
        assert left(text) == [64, 128, 256, 320]


@pytest.mark.parametrize(
    "change",
    [
        {"scores": []},
        {"scores": [1.0]},
        {"scores": [math.nan, 1.0]},
        {"scores": "ab"},
        {"scores": None},
        {"lengths": [1.5, 2]},
        {"lengths": [-1, 2]},
        {"greedy": 3},
        {"seed": 10**30},
        {"seconds": []},
        {"cut": "x"},
    ],
    ids=str,
)
def test_a_damaged_evaluation_costs_itself_only(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"scores": [1.0, 2], "lengths": [1, 2], "greedy": False, "seed": 3, "seconds": 1.5}
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(facts))
    assert read_evaluation(tmp_path) == Evaluation([1.0, 2], [1, 2], False, 3, 1.5, 0)
    for text in (json.dumps(facts | change), "[" * 100_000, "9" * 10_000, "[]", "null"):
        file.write_text(text)
        assert read_evaluation(tmp_path) is None
        assert "is damaged and left out" in capsys.readouterr().err
