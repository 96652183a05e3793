"""`--track`: the real trackers get every row once; what goes wrong with one is a note and never the run's end."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

import surefoot
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.connect import tracking
from surefoot.connect.tracking import beside, chosen, record
from surefoot.errors import UserError
from surefoot.runs.directory import checkpoints

STAND_IN = """
import json, os
def init(**how):
    if os.environ.get("BROKEN"):
        raise RuntimeError("no such account")
    print(json.dumps(["init", how]), file=open("../said", "a"))
def log(numbers, step):
    print(json.dumps(["log", step, numbers]), file=open("../said", "a"))
def finish():
    print(json.dumps(["finish"]), file=open("../said", "a"))
"""


@pytest.fixture
def trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in Trackio's place that writes down how it is called; returns its record."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "trackio.py").write_text(STAND_IN.replace("../said", str(tmp_path / "said")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), os.environ["PYTHONPATH"]]))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(tracking, "EVERY", 0.1)
    return tmp_path / "said"


@pytest.mark.slow
def test_every_row_is_recorded_once_also_by_a_resumed_run(small: Config, tmp_path: Path, trackio: Path) -> None:
    run = surefoot.train(small, total_steps=3 * 128, run_dir=tmp_path / "a", quiet=True, track="trackio")
    assert record(run.path)["step"] == 3 * 128
    surefoot.resume(run.path, total_steps=5 * 128, eval_episodes=2, quiet=True)  # it is known who records it
    first, *said = map(json.loads, trackio.read_text().splitlines())
    logged = [line for line in said if line[0] == "log"]
    assert [line[1] for line in logged] == [128, 256, 384, 512, 640, 640]
    rows = surefoot.load(run.path).metrics
    assert logged[3][2] == {k: float(v) for k, v in rows[3].items() if v is not None and k != "step"}
    evaluation = surefoot.load(run.path).evaluation
    assert evaluation is not None
    (low, high), iqm = evaluation.interval, evaluation.iqm
    assert logged[-1][2] == {"score_mean": evaluation.mean, "score_low": low, "score_high": high, "score_iqm": iqm}
    names = [line[1]["name"] for line in (first, *said) if line[0] == "init"]
    assert names[0] == names[1] == f"a-{record(run.path)['id']}"
    assert (first[1]["project"], first[1]["resume"]) == ("surefoot", "allow")
    assert first[1]["config"]["learning_rate.initial"] == 0.001
    assert said[-1] == ["finish"]


def test_a_tracker_that_fails_is_a_note(
    small: Config, tmp_path: Path, trackio: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    run = surefoot.train(small, total_steps=2 * 128, run_dir=tmp_path / "a", quiet=True, track="trackio")
    assert "surefoot: trackio has failed (RuntimeError: no such account): the run goes on" in capsys.readouterr().err
    assert checkpoints(run.path)
    monkeypatch.delenv("BROKEN")
    surefoot.resume(run.path, total_steps=3 * 128, quiet=True)
    steps = [json.loads(line)[1] for line in trackio.read_text().splitlines() if '"log"' in line]
    assert steps == [128, 256, 384]  # what was missed, too


@pytest.mark.usefixtures("trackio")
def test_a_tracker_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "GRACE", 0.1)
    monkeypatch.setattr(sys, "executable", "/bin/sleep")  # "-m": it ends at once with an error
    with beside(chosen("trackio"))(tmp_path / "a"):
        pass
    assert "has failed" in capsys.readouterr().err
    script = tmp_path / "hang"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    with beside(chosen("trackio"))(tmp_path / "a"):
        pass
    assert "trackio takes too long for the last rows" in capsys.readouterr().err
    assert list((tmp_path / "a").iterdir()) == []  # no run has begun there


def test_a_tracker_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "cartpole", "--track", "wandb"]) == 2
    assert "wandb is not installed: pip install 'surefoot[wandb]'" in capsys.readouterr().err
    assert main(["train", "cartpole", "--track", "tensorboard"]) == 2
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="track is 'comet'; allowed is wandb, mlflow, trackio"):
        chosen("comet")
    (tmp_path / "tracking.json").write_text('{"tracker": "mlflow", "step": 5}')
    with beside(None)(tmp_path):
        pass
    assert "mlflow, which has recorded this run, is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_offline(small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = surefoot.train(small, total_steps=3 * 128, run_dir=tmp_path / "a", quiet=True, track="wandb")
    surefoot.resume(run.path, total_steps=4 * 128, quiet=True)
    assert record(run.path)["step"] == 4 * 128
    both = sorted((run.path / "wandb").glob(f"offline-run-*-{record(run.path)['id']}"))
    assert len(both) == 2
    assert [len(list(one.glob("run-*.wandb"))) for one in both] == [1, 1]
    assert b"return_mean" in next(both[1].glob("run-*.wandb")).read_bytes()


@pytest.mark.slow
def test_mlflow_with_sqlite(small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    run = surefoot.train(small, total_steps=3 * 128, run_dir=tmp_path / "a", quiet=True, track="mlflow")
    surefoot.resume(run.path, total_steps=4 * 128, quiet=True)
    from mlflow import MlflowClient

    client = MlflowClient()
    found = client.get_run(record(run.path)["id"])
    assert (found.info.run_name, found.info.status) == ("a", "FINISHED")
    assert found.data.params["learning_rate.initial"] == "0.001"
    history = client.get_metric_history(found.info.run_id, "kl")
    assert {metric.step: metric.value for metric in history} == dict(
        zip(*surefoot.load(run.path).curve("kl"), strict=True)
    )
