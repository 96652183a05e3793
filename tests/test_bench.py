"""`surefoot bench`, and the race's rules."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from surefoot.benching import bare, measure
from surefoot.cli import main
from surefoot.config import Config
from surefoot.envs.atari import Pong


def test_a_rank_measures_every_stage_and_the_whole(small: Config) -> None:
    speed = measure(small, 0.02)
    assert speed.ranks == 1
    assert min(speed.bare, speed.emulate, speed.act, speed.learn, speed.loop) > 0
    parts = sum(1 / rate for rate in (speed.emulate, speed.act, speed.learn))
    assert parts <= 1 / speed.loop * 1.001  # the stages are parts of the loop's time


def test_the_bare_emulator_runs_past_the_end_of_its_games() -> None:
    assert bare(replace(Pong(), frame_skip=(64, 64)), 0.2) > 0  # 512 x 64 frames: more than a game


def test_bench_prints_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    tiny = ["--network.hidden", "8", "--games", "1", "--minibatch", "64"]  # one game: one rank
    assert main(["bench", "cartpole", *tiny, "--seconds", "0.05", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["task"] == "cartpole"
    assert [speed["ranks"] for speed in facts["speeds"]] == [1]
    assert facts["speeds"][0]["loop"] > 0


def test_bench_refuses_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pong", "--ranks", "3"]) == 2
    assert "divisors of the 32 games" in capsys.readouterr().err
    assert main(["bench", "cartpole", "--seconds", "0"]) == 2
    assert "seconds is 0" in capsys.readouterr().err
