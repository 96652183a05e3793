"""Standard output is the user's, and nothing is silent for long."""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import surefoot
import worlds
from surefoot import output
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.models.networks import MLP
from surefoot.output import Progress, clock, doing, environments_on_stderr, out, signs_of_life
from surefoot.presets import find
from surefoot.runs import evaluation
from surefoot.runs.evaluation import evaluate
from surefoot.runs.policy_file import policy_bytes

TINY: dict[str, Any] = {"num_envs": 2, "num_steps": (8,), "minibatch_size": 8, "num_epochs": 1, "total_steps": 32}
TALKER = """
import ctypes, os, sys
import gymnasium, numpy as np
from gymnasium import spaces
libc = ctypes.CDLL(None)
def talk(what):
    print("python", what)
    os.write(1, f"system {what}\\n".encode())
    libc.printf(f"library {what}\\n".encode())  # kept until the program ends, where standard output is no terminal
talk("imported")
class Talker(gymnasium.Env):
    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        talk("made")
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        talk("reset")
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        talk("step")
        return np.zeros(2, np.float32), 1.0, self.t == 4, False, {}
    def render(self):
        return np.zeros((8, 8, 3), np.uint8)
    def close(self):
        talk("closed")
"""


def policy_of(env: Gymnasium, path: Path) -> Path:
    """A policy file for two numbers and two actions, without making the environment."""
    from gymnasium import spaces

    policy = MLP((4,)).build(spaces.Box(0, 1, (2,)), spaces.Discrete(2))
    path.write_bytes(policy_bytes(policy, Config(env=env, network=MLP((4,)), task="talk"), 0))
    return path


def command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "surefoot", *args]
    return subprocess.run(whole, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.long
@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_json_is_json_whatever_the_environment_prints(ranks: str, tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    policy_of(Gymnasium("talker:Talker"), tmp_path / "policy")
    done = command("evaluate", "policy", "--episodes", "3", "--json", "--trust", "--ranks", ranks, cwd=tmp_path)
    assert json.loads(done.stdout)["scores"] == [4.0] * 3
    if ranks == "1":
        assert {"python made", "system step", "library closed"} <= set(done.stderr.splitlines())


@pytest.mark.slow
def test_a_films_name_is_all_that_the_command_answers(tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    policy_of(Gymnasium("talker:Talker"), tmp_path / "policy")
    done = command("video", "policy", "--out", "a.gif", "--trust", cwd=tmp_path)
    assert [Path(line).name for line in done.stdout.splitlines()] == ["a.gif"]


@pytest.mark.long
def test_a_run_says_its_own_on_standard_output_and_what_environments_print_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    flags = [f"--{k.replace('_', '-')}={v[0] if isinstance(v, tuple) else v}" for k, v in TINY.items()]
    how = ["--run-dir", "run", "--ranks", "2", "--eval-episodes", "2", *flags]
    done = command("train", "talker:Talker", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("talker:Talker: 2 environments on 2 ranks") for line in lines)
    assert any("score" in line and "4.00" in line for line in lines)
    assert not {"python", "system", "library"} & {line.split(" ")[0] for line in lines}
    assert "python step" in done.stderr.splitlines()


@pytest.mark.long
def test_where_standard_output_is_no_file_a_run_of_two_ranks_is_heard_in_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook's cell."""
    monkeypatch.chdir(tmp_path)
    heard = []
    for ranks in (1, 2):
        with contextlib.redirect_stdout(io.StringIO()) as cell:
            surefoot.train("worlds:Catch-v0", run_dir=tmp_path / str(ranks), ranks=ranks, eval_episodes=2, **TINY)
        heard.append(cell.getvalue())
    for text, who in zip(heard, ("1 rank,", "2 ranks,"), strict=True):
        assert text.startswith(f"worlds:Catch-v0: 2 environments on {who} 32 steps, seed 1, into ")
        assert "filming" in text
        assert "training score" in text


def test_standard_output_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    with open(1, "w", closefd=False) as stream, contextlib.redirect_stdout(stream):  # as a program has it
        with environments_on_stderr():
            print("an environment")
            os.write(1, b"its library\n")
            print("an answer", file=out())
        print("afterwards", flush=True)
        os.write(1, b"and its library\n")
    assert capfd.readouterr() == ("an answer\nafterwards\nand its library\n", "an environment\nits library\n")
    assert out() is sys.stdout


# Signs of life


class Heard:
    """A stream whose lines can be waited for."""

    def __init__(self) -> None:
        self.lines = queue.Queue[str]()

    def write(self, text: str) -> None:
        self.lines.put(text)

    def flush(self) -> None: ...

    def next(self) -> str:
        return self.lines.get(timeout=60).rstrip("\n")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "FIRST", 0.01)
    monkeypatch.setattr(output, "EVERY", 0.02)


@pytest.mark.usefixtures("impatient")
def test_what_is_being_done_is_said_again_and_again_until_it_is_over() -> None:
    heard, step = Heard(), [0]

    def told() -> str | None:
        step[0] += 1
        return f"step {step[0]}" if step[0] % 3 else None  # nothing to say

    with signs_of_life(Progress(every=0.0, stream=heard)), doing("the whole"):
        assert heard.next().startswith("the whole · 0:0")
        with signs_of_life(Progress(every=0.0, stream=Heard())), doing(told):  # there is one already
            while (line := heard.next()).startswith("the whole"):
                pass
            assert line.startswith("step 1 · 0:0")
            assert [heard.next().split()[1] for _ in range(4)] == ["2", "4", "5", "7"]
        while heard.next().startswith("step"):
            pass
    while not heard.lines.empty():
        assert heard.next().startswith("the whole")


@pytest.mark.usefixtures("impatient")
def test_who_is_told_to_be_quiet_is() -> None:
    heard, before = Heard(), threading.active_count()
    with signs_of_life(Progress(quiet=True, stream=heard)), doing("anything"):
        assert threading.active_count() == before
    assert heard.lines.empty()


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("__init__", "making environment 1 of 2"),
        ("reset", "resetting environment 1 of 2"),
        ("step", r"rollout 1, step 1 of 8 \(in environment 1 of 2\) · no episode has ended yet"),
    ],
)
def test_a_slow_environment_is_named_while_all_wait_for_it(
    where: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment goes on only when the sign has come."""
    cfg, heard, method = find("worlds:Catch-v0", eval_episodes=0, **TINY), Heard(), getattr(worlds.Catch, where)

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(worlds.Catch, where, method)
        while not re.search(says, line := heard.next()):
            assert line
        return method(self, *args, **kwargs)

    monkeypatch.setattr(worlds.Catch, where, slow)
    monkeypatch.setattr(sys, "stdout", heard)
    surefoot.train(cfg, run_dir=tmp_path / "run", ranks=1)


@pytest.mark.usefixtures("impatient")
def test_an_episode_without_an_end_is_named_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Gymnasium("worlds:ScriptedLong-terminated-v0")
    game, heard, step, steps = env.make(), Heard(), evaluation._Slot.step, [0]
    policy = MLP((4,)).build(game.observation_space, game.action_space)

    def slow(slot: Any, action: Any) -> bool:
        steps[0] += 1
        while steps[0] == 600 and "599 of one that has not ended (at the limit of 700 it is cut" not in heard.next():
            pass
        return step(slot, action)

    monkeypatch.setattr(evaluation._Slot, "step", slow)
    with signs_of_life(Progress(every=0.0, stream=heard)):
        assert evaluate(policy, env, range(1), max_steps=700).cut == 1


def test_the_clock() -> None:
    assert [clock(s) for s in (0, 59.9, 61, 3600)] == ["0:00", "0:59", "1:01", "1:00:00"]
    assert torch.get_num_threads() == 1
