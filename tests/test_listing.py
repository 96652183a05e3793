"""Many runs: lists, differences, curves with bands; and what a shell completes."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import surefoot
from surefoot.algorithm.schedules import FixedRate
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.connect.plots import band, groups
from surefoot.errors import UserError
from surefoot.runs.files import lock_run
from surefoot.runs.worker import write_config


@pytest.fixture(scope="module")
def runs(small: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds each with two learning rates, and one run that has been evaluated."""
    where = tmp_path_factory.mktemp("work") / "runs"
    run = surefoot.train(small, seed=7, eval_episodes=2, run_dir=where / "tried", quiet=True)
    for name, rate in (("slow", 0.001), ("fast", 0.01)):
        for seed in (1, 2):
            copy = shutil.copytree(run.path, where / name / f"seed-{seed}")
            (copy / "evaluation.json").unlink()
            write_config(replace(small, seed=seed, learning_rate=FixedRate(rate)), copy)
    return where


def test_runs_are_listed_with_score_time_and_state(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    report = runs / "fast" / "seed-2" / "report.md"
    text = report.read_text()
    report.unlink()
    with lock_run(runs / "slow" / "seed-1"):
        assert main(["runs", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert main(["runs", "runs"]) == 0
    report.write_text(text)
    names = ["fast/seed-1", "fast/seed-2", "slow/seed-1", "slow/seed-2", "tried"]
    assert [run["path"] for run in facts] == [f"runs/{name}" for name in names]
    assert [run["state"] for run in facts] == ["finished", "stopped", "running", "finished", "finished"]
    assert [run["seed"] for run in facts] == [1, 2, 1, 2, 7]
    assert {run["steps"] for run in facts} == {768}
    evaluation = surefoot.load(runs / "tried").evaluation
    assert evaluation is not None
    assert facts[4]["score"] == evaluation.mean
    head, *lines, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "task", "seed", "steps", "score", "time", "state"]
    assert [line.split()[0] for line in lines] == names
    assert f" {evaluation.mean:.2f} " in lines[4]
    assert f"({facts[0]['score']:.2f})" in lines[0]
    assert note.startswith("in parentheses")


def test_two_runs_differ_in_what_they_were_given(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    a, b = str(runs / "slow" / "seed-1"), str(runs / "fast" / "seed-2")
    assert main(["runs", "--diff", a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"learning_rate.initial": ["0.001", "0.01"], "seed": ["1", "2"]}
    assert main(["runs", "--diff", a, b]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "setting",
        "learning_rate.initial",
        "seed",
    ]
    assert main(["runs", "--diff", a, a]) == 0
    assert capsys.readouterr().out == "they have the same settings\n"
    for wrong, says in ((str(tmp_path), "holds no runs"), (str(tmp_path / "x"), "there is no directory")):
        assert main(["runs", wrong]) == 2
        assert says in capsys.readouterr().err


def test_runs_are_grouped_by_what_differs_or_by_what_is_named(runs: Path) -> None:
    found = groups([runs])
    assert {label: len(many) for label, many in found.items()} == {
        "learning_rate.initial 0.01": 2,
        "learning_rate.initial 0.001": 3,
    }
    assert set(groups([runs], ["seed"])) == {"seed 1", "seed 2", "seed 7"}
    assert set(groups([runs], ["learning-rate", "task"])) == {"learning_rate FixedRate, catch"}
    assert set(groups([runs / "slow"])) == {"catch"}
    with pytest.raises(UserError, match="by is sede: the runs have no such setting, but advantage"):
        groups([runs], ["sede"])
    with pytest.raises(UserError, match="is not a run directory and holds none"):
        groups([runs / "nowhere"])


def test_a_band_is_the_interquartile_mean_and_its_interval() -> None:
    x = np.array([0.0, 10.0])
    grid, middle, low, high = band([x, x + 2], [np.array([0.0, 10.0]), np.array([4.0, 4.0])])
    assert (grid[0], grid[-1]) == (2, 10)  # what they have in common
    assert middle == pytest.approx((grid + 4) / 2)
    assert low == pytest.approx(np.minimum(grid, 4))  # of two curves resamples are one, the other, or both
    assert high == pytest.approx(np.maximum(grid, 4))
    flat = [np.full(2, y) for y in (-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 900.0)]
    _, middle, low, high = band([x] * 8, flat)
    assert middle == pytest.approx(3.5)  # the middle four
    assert (low < 3.5).all()
    assert (high > 3.5).all()


@pytest.mark.filterwarnings("ignore:random_state is deprecated")
@pytest.mark.parametrize("seeds", [3, 10])
def test_a_band_is_rliables(seeds: int) -> None:
    """The same interquartile mean, and the same interval up to the noise of 2,000 resamples."""
    try:
        from rliable import library, metrics
    except (ImportError, TypeError) as error:  # TypeError: arch below 8, which rliable needs, beside pandas 3
        pytest.skip(f"rliable cannot be imported: {error}")
    scores = np.random.default_rng(seeds).normal(100, 10, seeds)
    means, intervals = library.get_interval_estimates(
        {"a": scores[:, None]},
        lambda x: np.array([metrics.aggregate_iqm(x)]),
        reps=2_000,
        random_state=np.random.RandomState(0),
    )
    _, middle, low, high = band([np.array([0.0, 1.0])] * seeds, [np.full(2, score) for score in scores])
    assert middle[0] == pytest.approx(means["a"][0])
    assert (low[0], high[0]) == pytest.approx(intervals["a"].ravel(), abs=0.1 * scores.std())


def test_curves_are_drawn_for_a_paper(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg = tmp_path / "curves.svg"
    assert main(["plot", str(runs / "slow"), str(runs / "fast"), "--out", str(svg), "--metric", "kl"]) == 0
    text = svg.read_text()
    for words in ("environment steps", "minutes of training", ">kl<", "learning_rate.initial 0.01 (2 runs)"):
        assert words in text
    assert surefoot.plot(runs / "tried", out=tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert surefoot.plot(runs, by="seed", out=tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
    capsys.readouterr()
    for args, says in (
        (["--out", "x.jpg"], "must end in .png, .svg or .pdf"),
        (["--metric", "scores"], "has no metric 'scores': it has step"),
        (["--metric", "evaluation"], "the runs have no values of evaluation yet"),
    ):
        assert main(["plot", str(runs), *args]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_shell_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"surefoot {surefoot.__version__}\n"
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = 'source ./script; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _tyro_surefoot; echo "${COMPREPLY[*]}"'
    for words, found in (
        (["surefoot", "ev"], "evaluate"),
        (["surefoot", "train", "pong", "--total"], "--total-steps --total-iterations"),
        (["surefoot", "train", "pong", "opt"], "optimizer:adam optimizer:muon"),
    ):
        done = subprocess.run(
            ["bash", "-c", ask, "-", *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout == found + "\n"
    assert main(["completion", "tcsh"]) == 2
