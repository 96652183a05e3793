"""`surefoot bench`; and of the scripts in bench/ the race's rules and what is made of the figures."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import race
import relatives
import speed
import surefoot
import worlds
from common import Rule, plan, reached
from surefoot.commands.benchmark import bare, measure
from surefoot.commands.cli import Train, main, parse
from surefoot.config import Config
from surefoot.envs.atari import Pong
from surefoot.envs.gym import Gymnasium
from surefoot.errors import Fault


def test_a_rank_measures_every_stage_and_the_whole(small: Config) -> None:
    found = measure(small, 0.02)
    assert found.ranks == 1
    assert min(found.bare, found.emulate, found.act, found.learn, found.loop) > 0
    parts = sum(1 / rate for rate in (found.emulate, found.act, found.learn))
    assert parts <= 1 / found.loop * 1.001  # the stages are parts of the loop's time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second whenever it is asked."""
    monkeypatch.setattr("surefoot.commands.benchmark.perf_counter", itertools.count().__next__)


@pytest.mark.usefixtures("clock")
def test_the_bare_emulator_plays() -> None:
    assert bare(Pong(), 1.5) == 512 / 2  # one round of 512 steps, in two seconds


@pytest.mark.long
def test_bench_prints_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    tiny = ["--network.hidden", "8", "--num-envs", "1", "--minibatch-size", "64"]  # one game: one rank
    assert main(["bench", "cartpole", *tiny, "--seconds", "0.05", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["task"] == "cartpole"
    assert [row["ranks"] for row in facts["speeds"]] == [1]
    assert facts["speeds"][0]["loop"] > 0


def test_bench_refuses_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pong", "--ranks", "3"]) == 2
    assert "divisors of the 32 environments" in capsys.readouterr().err
    assert main(["bench", "cartpole", "--seconds", "0"]) == 2
    assert "seconds is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("passed", "first"),
    [
        ([], None),
        ([True], None),  # no next one to confirm it
        ([False, False, False], None),
        ([True, True], 0),
        ([False, True, False, True, False], None),  # never two in a row
        ([False, True, False, True, True, True], 3),
        ([False, False, True, True, False], 2),
        ([True, False, True, True], 2),
    ],
)
def test_the_first_that_reaches_the_bar_counts_if_the_next_one_does_too(passed: list[bool], first: int | None) -> None:
    assert reached(dict(enumerate(passed))) == first


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 3))
def test_judging_every_other_policy_finds_the_same_winner(passed: list[bool], workers: int) -> None:
    """`plan` spares most of the work and none of the answer, however many are judged at once."""
    everything = dict(enumerate(passed))
    known: dict[int, bool] = {}
    while wanted := plan(known, len(passed)):
        assert not set(wanted) & set(known)
        for i in wanted[:workers]:
            known[i] = everything[i]
    assert reached(known) == reached(everything)
    if passed and reached(everything) is None:
        assert len(passed) - 1 in known  # how far it came


def test_judging_ends_early_only_out_of_reach() -> None:
    rule, asked = Rule(), list[range]()

    def play(scores: list[float]) -> dict[str, list[float]]:
        asked.clear()

        def games(episodes: range) -> list[float]:
            asked.append(episodes)
            return [scores[e] for e in episodes]

        return rule.judge(games)

    low = play([11.9] * 110)
    assert (asked, low["scores"], rule.passed(low)) == ([range(10)], [], False)
    just = play([12.0] * 10 + [15.0] * 50 + [21.0] * 50)  # 6 short in each of 50: 300, the most there may be
    assert asked == [range(10), range(10, 35), range(35, 60), range(60, 85), range(85, 110)]
    assert rule.passed(just)
    short = play([12.0] * 10 + [15.0] * 49 + [14.0] + [21.0] * 50)
    assert len(asked) == 3
    assert (len(short["scores"]), rule.passed(short)) == (50, False)
    below = play([21.0] * 85 + [8.0] * 25)
    assert (len(below["scores"]), rule.passed(below)) == (100, False)


def test_a_race_is_told_from_a_runs_files(tmp_path: Path) -> None:
    """A policy's time is when it was written; the scale is the bare emulator's; the yardstick needs 100 games."""
    began, rule = 1_000_000.0, Rule()
    (tmp_path / "policies").mkdir()
    for step, at in ((100, 6.5), (200, 12.0), (300, 18.0)):
        (tmp_path / "policies" / f"{step:09d}.safetensors").touch()
        os.utime(tmp_path / "policies" / f"{step:09d}.safetensors", (began + at, began + at))
    rows = [(50, 3.0, 20.0, 99), (100, 6.0, 17.0, 100), (200, 11.5, 18.0, 100), (300, 17.5, 19.0, 100)]
    stages = {"env_s": 1.0, "act_s": 0.5, "learn_s": 1.0}
    keys = ("step", "seconds", "return_mean", "return_window")
    lines = [json.dumps(dict(zip(keys, row, strict=True)) | stages) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    facts = {"who": "surefoot", "seed": 7, "began": began, "bare": [[2850.0, 2850.0]] * 2, "peak_memory": 5}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    known = {0: {"first": [11.0] * 10, "scores": []}, 1: {"first": [19.0] * 10, "scores": [18.5] * 100}}
    known |= {2: {"first": [20.0] * 10, "scores": [20.0] * 100}}
    run = race.describe(tmp_path, known, rule)
    assert run["reached"]["seconds"] == 12.0
    assert run["reached"]["scaled_seconds"] == 6.0  # half as fast a machine: half of the time on the reference
    assert (run["reached"]["decisions"], run["reached"]["frames"], run["reached"]["score"]) == (200, 800, 18.5)
    assert (run["yardstick"]["seconds"], run["yardstick"]["decisions"]) == (12.0, 200)  # 0.5 s before the row's clock
    assert race.summary([run])["surefoot"]["policy_scaled_seconds"] == {"median": 6.0, "worst": 6.0}
    del known[2]
    missed = race.describe(tmp_path, known, rule)
    assert missed["reached"] is None
    found = race.summary([run, missed])["surefoot"]
    assert (found["seeds"], found["reached"]) == (2, 1)
    assert "policy_seconds" not in found  # no median over the winners alone
    race.show([run, missed], rule)
    race.picture([run, missed], rule, tmp_path / "race.png")


def test_policies_are_kept_though_their_checkpoints_go(small: Config, tmp_path: Path) -> None:
    surefoot.train(replace(small, save_every=1e-9), run_dir=tmp_path / "run", ranks=1, quiet=True)
    (tmp_path / "policies").mkdir()
    race.keep(tmp_path / "run", tmp_path / "policies")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    kept = sorted((tmp_path / "policies").iterdir())
    assert int(kept[-1].stem) == small.total_steps
    assert surefoot.load_policy(kept[-1], trust=True)[2]["steps"] == small.total_steps


def test_speed_is_measured_after_the_warm_up() -> None:
    """100 steps in the first second are not counted; then 200 a second, of which half is spent in the stages."""
    rows = [{"step": 100, "seconds": 1.0, "env_s": 9.0, "act_s": 9.0, "learn_s": 9.0}]
    for k in range(1, 5):
        stages = {"env_s": 0.25, "act_s": 0.15, "learn_s": 0.1}
        rows.append({"step": 100 + 200 * k, "seconds": 1.0 + k} | stages)
    found = speed.measured(rows, 0.5)
    assert found["rate"] == 200.0
    assert found["stages"] == {"emulate": 1250.0, "act": 750.0, "learn": 500.0, "rest": 2500.0}
    with pytest.raises(ValueError, match="more --seconds"):
        speed.measured(rows, 3.5)


def test_speeds_are_compared_within_a_round(tmp_path: Path) -> None:
    """The fastest of the peer's kinds counts, and the median is that of the rounds' ratios."""
    stages = {"emulate": 1.0, "act": 1.0, "learn": 1.0, "rest": 1.0}
    rounds = []
    for ours, slow, fast in ((200.0, 10.0, 100.0), (90.0, 30.0, 20.0), (400.0, 50.0, 100.0)):
        rates = {"Atari, 2 ranks, fp32": ours, "Atari, peer, DummyVecEnv": slow, "Atari, peer, SubprocVecEnv": fast}
        rest = {"of_bare": 0.1, "bare": 1e6, "peak_memory": 1, "stages": stages}
        rounds.append({name: {"rate": rate} | rest for name, rate in rates.items()})
    facts = speed.summary(rounds)
    assert facts["ratios"] == {"fp32 / peer": {"median": 3.0, "min": 2.0, "max": 4.0}}
    assert facts["contestants"]["Atari, 2 ranks, fp32"]["stages_in_bare_steps"]["learn"] == 1.0
    speed.show(facts)
    speed.picture(facts, tmp_path / "speed.png")


@pytest.mark.parametrize("contestant", [c for c in speed.CONTESTANTS if c.ranks], ids=lambda c: c.name)
def test_what_speed_runs_is_a_command(contestant: speed.Contestant) -> None:
    command = parse(contestant.command(1.0, Path("x"), "")[3:])
    assert isinstance(command, Train)
    assert command.config.num_envs % command.ranks == 0


@pytest.mark.usefixtures("clock")
def test_the_bare_environment_may_have_any_actions_and_a_faulty_one_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bare(Gymnasium("Pendulum-v1"), 1.5) == 512 / 2
    monkeypatch.setattr(worlds.Faulty, "steps", 0)  # it raises in the 333rd step of its kind in this process
    with pytest.raises(Fault, match="the simulator exploded"):
        bare(Gymnasium("worlds:Faulty-raises-v0"), 1.5)


def test_relatives_are_scored_as_in_the_papers_table() -> None:
    scores = {
        "A": {"clip": {"1": 110.0, "2": 90.0}, "none": {"1": 55.0, "2": 55.0}, "more": {"1": 10.0}},
        "B": {"clip": {"1": -4.0, "2": -4.0, "3": 0.0}, "none": {"1": -50.0, "2": -50.0}},
        "C": {"clip": {"1": 7.0, "2": 7.0}},  # not all methods: left out of the means
        "D": {method: {"1": 5.0, "2": 5.0} for method in ("clip", "none")},  # no better than random: left out too
    }
    record = {"scores": scores, "random": {"A": 10.0, "B": -44.0, "C": 0.0, "D": 5.0}, "seeds": [1, 2]}
    facts = relatives.table(record, ["clip", "none"])  # of the seeds that were asked for
    assert facts["tasks"] == ["A", "B"]
    assert facts["normalised"] == {"A": {"clip": 1, "none": 0.5}, "B": {"clip": 1, "none": -0.15}}
    assert facts["mean"] == {"clip": 1, "none": 0.175}
    assert facts["error"] == {"clip": 0.056, "none": 0}  # A's two seeds, 1.11 and 0.89: 0.157 / sqrt(2), of two tasks
    first, *others = (relatives.config("Hopper", method, 1, 5_000) for method in relatives.METHODS)
    assert first.total_steps == 3 * 2048
    assert all(other != first for other in others)
