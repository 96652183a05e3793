"""`surefoot doctor`: what it says of machines, installations and environments is so."""

from __future__ import annotations

import gc
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from surefoot.commands import doctor
from surefoot.commands.benchmark import Speed, bare
from surefoot.commands.cli import main
from surefoot.envs.gym import Gymnasium
from surefoot.errors import Fault
from surefoot.presets import find
from worlds import Doors


def said(lines: str) -> dict[str, str]:
    return {line[:12].strip(): line[13:] for line in lines.splitlines()}


def test_an_environment_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "worlds:Catch-v0", "--seconds", "0.1"]) == 0
    found = said(capsys.readouterr().out)
    assert found["task"] == "worlds:Catch-v0"
    assert found["acts"] == "Discrete(3)"
    assert found["episodes"].startswith("5 of 5 ended within 500 steps of random actions, with scores from -1 to 1")
    assert found["seeds"] == "two seeds give different first observations"
    assert found["replay"] == "an episode played again in the same environment is the same"
    assert found["determinism"] == "an episode played again in a new environment is the same"
    assert found["chosen"].startswith("by its spaces: MLP, 8 environments x 128 steps, 10 epochs")
    assert re.fullmatch(r"[\d,]+ steps/s without surefoot", found["alone"])
    assert len(found) < 24  # one screen


def test_masks_are_obeyed_by_random_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    shut: list[int] = []
    monkeypatch.setattr(Doors, "__del__", lambda self: shut.append(self.broken), raising=False)
    lines = dict(doctor.environment(Gymnasium("worlds:Doors-v0")))
    assert lines["determinism"] == "an episode played again in a new environment is the same"
    assert bare(Gymnasium("worlds:Doors-v0"), 0.05) > 0
    gc.collect()
    assert len(shut) >= 3
    assert not any(shut)


@pytest.mark.parametrize(
    ("id", "line", "says"),
    [
        ("worlds:Carrying-v0", "replay", "another from .* on: it carries something over"),
        ("makers:Noisy", "determinism", "another from .* on: it draws random numbers"),
        ("worlds:Corridor-v0", "seeds", "two seeds give the same first observations"),
    ],
)
def test_what_is_wrong_is_said(id: str, line: str, says: str) -> None:
    assert re.search(says, dict(doctor.environment(Gymnasium(id)))[line])


def test_an_environment_that_fails_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Fault, match="failed in step 1 of an episode with seed 0: RuntimeError"):
        list(doctor.environment(Gymnasium("makers:Broken")))
    assert main(["doctor", "CartPoel-v1"]) == 2
    assert "did you mean CartPole-v1" in capsys.readouterr().err


def test_the_machine_and_what_is_missing_for_which_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("pygame", "pygame-ce", "mujoco", "opencv-python-headless"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    own = [f'{text}; extra == "{k}"' for k, texts in project["optional-dependencies"].items() for text in texts]
    others = importlib.metadata.requires
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: own if name == "surefoot" else others(name))
    found = dict(doctor.machine())
    assert found["no atari"] == "opencv-python-headless: pip install 'surefoot[atari]'"
    assert found["no classic-control"].endswith(": pip install 'surefoot[classic-control]'")
    assert "mujoco" in found["no mujoco"]
    assert "no lesson" not in found
    assert re.match(r"\d+", found["cores"])
    assert "surefoot 0." in found["versions"]


@pytest.mark.slow
def test_how_long_pong_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--seconds", "0.5"]) == 0
    found = said(capsys.readouterr().out)
    assert re.fullmatch(r"1,003,520 steps in about [\d:]+: [\d,]+ steps/s on \d+ ranks", found["pong"])


@pytest.mark.parametrize("slow", [True, False])
def test_a_slow_environment_wants_ranks(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Speed(ranks=1, bare=500, emulate=490, act=9e4, learn=2e4 if slow else 300, loop=470 if slow else 180)
    monkeypatch.setattr(doctor, "bench", lambda *_: [found])
    monkeypatch.setattr("surefoot.parallel.launch.usable_cores", lambda: 3)
    assert ("--ranks 2" in str(list(doctor.speed(find("Pendulum-v1"), 1.0)))) is slow
