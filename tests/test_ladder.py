"""The ladder: equal frames for its rungs, runs that continue, what the report says, and the small task of --quick."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import assert_same_run
from processes import gone_within
from surefoot.commands.cli import main
from surefoot.envs.atari import Pong
from surefoot.errors import UserError
from surefoot.lesson.ladder_report import RungFigures, _first, report, sentence
from surefoot.lesson.ladder_rungs import frames_per_step, jobs, rungs
from surefoot.lesson.ladder_worker import gradient_noise, measure, noise_of, train
from surefoot.lesson.rally import BALLS, HALF, SIZE, Rally
from surefoot.presets import LADDER
from surefoot.runs.directory import checkpoints, read_evaluation
from surefoot.runs.metrics import read

FACTS = {"start": -2.0, "frames": 1000, "unit": "steps"}


def play(seed: int, clever: bool) -> tuple[float, int]:
    """Score and length of a game of Rally by one who runs after the ball, or by one who does not look."""
    game, rng = Rally(), np.random.default_rng(seed)
    game.reset(seed=seed)
    score, steps, over = 0.0, 0, False
    while not over:
        frames, reward, over, truncated, _ = game.step(int(game.x > game.paddle) if clever else int(rng.integers(2)))
        assert frames.shape == (2, SIZE, SIZE)
        assert frames.dtype == np.uint8
        assert not truncated
        score, steps = score + reward, steps + 1
    return score, steps


def test_rally_is_won_by_looking() -> None:
    clever, blind = (np.array([play(seed, how) for seed in range(30)]) for how in (True, False))
    assert set(clever[:, 1]) == {BALLS * (SIZE - 1)} == set(blind[:, 1])
    assert clever[:, 0].mean() > 4
    assert -3.5 < blind[:, 0].mean() < -0.5


def test_rallys_frames_show_paddle_and_ball_before_and_now() -> None:
    game = Rally()
    first, _ = game.reset(seed=3)
    assert (first[0] == first[1]).all()
    after, *_ = game.step(1)
    assert (after[0] == first[1]).all()
    assert after[1].sum() == 255 * (2 * HALF + 1 + 1)
    ball = np.argwhere(after[1, :-1])
    assert ball.tolist() == [[1, game.x]]
    assert np.argwhere(after[1, -1]).ravel().tolist() == [SIZE // 2 + 1 + d for d in (-1, 0, 1)]
    game.x, game.dx = SIZE - 1, 1  # a wall
    game.step(0)
    assert (game.x, game.dx) == (SIZE - 2, -1)


def test_rungs_have_equal_frames() -> None:
    assert frames_per_step(LADDER[0]) == 8  # the action for 4 frames, then a NOOP for 4
    assert frames_per_step(replace(LADDER[0], env=Pong(frame_skip=(2, 4)))) == 3
    todo = jobs((), 2, 10_240_000, Path("here"), False, 20)
    assert [(j.rung, j.cfg.seed) for j in todo] == [(cfg.task, seed) for seed in (1, 2) for cfg in LADDER]
    assert {(j.cfg.total_steps, j.cfg.total_iterations) for j in todo} == {(1_280_000, 0)}  # 500 rollouts of 8 x 320
    assert todo[7].run_dir == Path("here/normalized/seed-2")
    for rung, small in zip(LADDER, rungs(quick=True), strict=True):
        changed = ("env", "network", "num_envs", "num_steps", "learning_rate", "task")
        assert replace(small, **{name: getattr(rung, name) for name in changed}) == rung
    assert [cfg.task for cfg in rungs(("ppo", "future"))] == ["future", "ppo"]
    assert [cfg.task for cfg in rungs(("trpo", "ppo"), quick=True)] == ["ppo-quick", "trpo-quick"]  # beside the last
    for bad, why in (((("pro",), 1, 99), "no rung pro"), (((), 0, 99), "seeds is 0"), (((), 1, 7), "at least 8")):
        with pytest.raises(UserError, match=why):
            jobs(*bad, Path("here"), False, 20)


def test_noise_beside_signal() -> None:
    """Gradients of a known mean and covariance: 2 beside 4 parameters of deviation 3 give 3 x 2 / 2 = 3."""
    rng = torch.Generator().manual_seed(0)
    gradients = 3 * torch.randn(40_000, 4, generator=rng, dtype=torch.float64)
    gradients[:, 0] += 2
    assert noise_of(gradients) == pytest.approx(3, rel=0.05)
    few = [noise_of(g) ** -2 for g in gradients.split(10)]  # signal beside noise, without bias however few there are
    assert np.mean([max(x, 0.0) for x in few]) > 1 / 9
    assert noise_of(torch.tensor([[1.0], [-1.0]])) == math.inf


def figures(rung: str, score: list[float], **more: object) -> RungFigures:
    known = {"evaluation": [], "frames_to_score": [None], "noise": [4.0], "effective_samples": [1.0]}
    known |= {"largest_kl": [0.0], "frames": [], "curve": [], "low": [], "high": []}
    return RungFigures(**{"rung": rung, "score": score, **known, **more})


def test_a_sentence_claims_no_more_than_was_measured() -> None:
    first, second = figures("reinforce", [1.0, 1.2, 1.1], noise=[4.0, 5.0, 9.0]), figures("normalized", [2.0, 2.2, 2.1])
    assert "+3.1 points in 1,000 steps" in sentence(first, None, FACTS)
    assert "noise is 5.0 times its signal" in sentence(first, None, FACTS)
    assert "1.1 becomes 2.1 points, more than seeds differ by chance" in sentence(second, first, FACTS)
    assert "from 5.0 to 4.0" in sentence(second, first, FACTS)
    wide = figures("normalized", [0.0, 4.0, 2.3])
    assert "no more than seeds differ by chance" in sentence(wide, first, FACTS)
    assert "chance cannot be told" in sentence(figures("normalized", [9.0]), figures("reinforce", [0.0]), FACTS)
    nothing = sentence(figures("clipped", [-0.01]), figures("surrogate", [-0.04]), FACTS)
    assert ": 0.0 becomes 0.0 points" in nothing
    fell = figures("surrogate", [-2.0], effective_samples=[0.41], largest_kl=[1.234])
    assert "up to 1.2 nats (before: 0), and its samples were worth 41% at the worst" in sentence(fell, first, FACTS)


def test_frames_to_a_goal() -> None:
    rows = [{"step": step, "return_mean": mean} for step, mean in ((2, 1), (3, 5), (4, 3))]
    assert _first(rows, 4.0, 8) == 24
    assert _first(rows, 6.0, 8) is None


@pytest.mark.long
def test_runs_continue_to_another_end_and_are_reported(tmp_path: Path) -> None:
    """In this process: 2 rollouts and then 4 are 4 at once; then the figures beside the runs' own files."""
    short, long = (jobs(("reinforce", "clipped"), 1, 720 * n, tmp_path / "a", True, n - 2) for n in (2, 4))
    for job in (*short, *long):
        train(job.cfg, job.run_dir)
    once = jobs(("clipped",), 1, 720 * 4, tmp_path / "b", True, 0)[0]
    train(once.cfg, once.run_dir)
    assert_same_run(once.run_dir, long[1].run_dir)
    with pytest.raises(UserError, match="another Config"):
        train(replace(long[1].cfg, num_epochs=2), long[1].run_dir)
    report(long, tmp_path / "a")
    assert "| 100% |" in (text := (tmp_path / "a" / "report.md").read_text())
    assert text.count("| - | 100% |") == 2  # the noise is not measured yet
    for _ in range(2):  # the second time it is there already
        measure([job.cfg for job in long], long[0].run_dir, 3)
    report(long, tmp_path / "a")
    facts = json.loads((tmp_path / "a" / "ladder.json").read_text())
    assert facts["frames"] == 2880
    assert [f["rung"] for f in facts["rungs"]] == ["reinforce", "clipped"]
    for job, f in zip(long, facts["rungs"], strict=True):
        rows = read(job.run_dir)
        assert len(rows) == 4
        assert f["curve"][-1] == f["low"][-1] == f["high"][-1] == f["score"][0] == rows[-1]["return_mean"]
        assert f["evaluation"] == [read_evaluation(job.run_dir).mean]
        assert f["largest_kl"] == [max(row["kl"] for row in rows)]
        assert f["noise"][0] is None or f["noise"][0] > 0
    text = (tmp_path / "a" / "report.md").read_text()
    assert "2 rungs, 2,880 steps each, 1 seed;" in text
    assert text.count("| reinforce |") == text.count("| clipped |") == 1
    assert (tmp_path / "a" / "ladder.png").read_bytes().startswith(b"\x89PNG")
    report(short, tmp_path / "a")  # fewer frames than the runs have: curves end there, later policies do not count
    facts = json.loads((tmp_path / "a" / "ladder.json").read_text())
    assert [f["score"] for f in facts["rungs"]] == [[read(job.run_dir)[1]["return_mean"]] for job in short]
    assert [f["evaluation"] for f in facts["rungs"]] == [[], []]


@pytest.mark.long
def test_the_noise_is_measured_with_rollouts_of_its_own(tmp_path: Path) -> None:
    """The same rollouts each time, whatever the machine did before."""
    job = jobs(("future",), 1, 720, tmp_path, True, 0)[0]
    train(job.cfg, job.run_dir)
    again, other = (gradient_noise([job.cfg], job.run_dir, n)["future-quick"] for n in (3, 4))
    assert again == gradient_noise([job.cfg], job.run_dir, 3)["future-quick"] != other


@pytest.mark.long
def test_a_ladder_that_is_stopped_saves_its_runs(tmp_path: Path) -> None:
    """A real command and SIGTERM in the middle of training; no process is left."""
    args = ["--quick", "--rungs", "ppo", "--seeds", "1", "--frames", "100000000", "--run-dir", "here"]
    command = [sys.executable, "-m", "surefoot", "ladder", *args]
    run = tmp_path / "here" / "ppo" / "seed-1"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "metrics.jsonl").exists() or not read(run):
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "surefoot: all runs are saved; the same command continues\n"
    assert [int(checkpoint.name) for checkpoint in checkpoints(run)] == [read(run)[-1]["step"]]
    assert len(children) == 1
    assert gone_within(5, [int(child) for child in children])


def test_mistakes_of_the_ladder_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for args, why in (
        (["--rungs", "pong"], "there is no rung pong: choose from reinforce, normalized"),
        (["--seeds", "0"], "seeds is 0"),
        (["--run-dir", str(tmp_path / "file" / "x")], "cannot be made"),
    ):
        assert main(["ladder", *args]) == 2
        assert why in capsys.readouterr().err
