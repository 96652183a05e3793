"""Saving and going on: train(2k) is train(k), save, load, train(k), bit for bit; damaged files are named."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import surefoot
from helpers import assert_same_run, interrupt_at, rows, weights
from hooks import Halved
from surefoot.algorithm.objectives import AdaptivePenalty, Surrogate
from surefoot.algorithm.schedules import AdaptiveRate, FixedRate
from surefoot.algorithm.state import initial
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.errors import UserError
from surefoot.models.networks import SmallCNN
from surefoot.parallel.ranks import Alone
from surefoot.presets import PONG
from surefoot.runs import evaluation
from surefoot.runs import reporter as report
from surefoot.runs import worker as runner
from surefoot.runs.checkpoint import KEEP, restore, save
from surefoot.runs.directory import checkpoints
from surefoot.runs.evaluation import evaluate
from surefoot.runs.files import seal, unseal
from surefoot.runs.metrics import read


@pytest.fixture
def tiny_pong() -> Config:
    small = SmallCNN(filters=(4, 4), hidden=8)
    return replace(
        PONG,
        network=small,
        num_envs=2,
        num_steps=(32,),
        minibatch_size=32,
        total_steps=64 * 4,
        eval_episodes=0,
        save_every=1e9,
    )


@pytest.mark.long
@pytest.mark.parametrize("which", ["small", "tiny_pong"])
@pytest.mark.usefixtures("signals_interrupt")
def test_a_stopped_and_resumed_run_has_the_same_bits(
    which: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = replace(request.getfixturevalue(which), learning_rate=AdaptiveRate(1e-3), kl_penalty=AdaptivePenalty())
    surefoot.train(cfg, run_dir=tmp_path / "whole", ranks=1, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "Reporter", interrupt_at(2))
        with pytest.raises(KeyboardInterrupt):
            surefoot.train(cfg, run_dir=tmp_path / "parts", ranks=1, quiet=True)
    assert len(rows(tmp_path / "parts")) == 2 < len(rows(tmp_path / "whole"))
    surefoot.resume(tmp_path / "parts", ranks=1, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    ends = [
        unseal((checkpoints(tmp_path / d)[-1] / "state.json").read_bytes())["terminations"] for d in ("whole", "parts")
    ]
    assert ends[0] == ends[1] >= (which == "small")
    coefs = [row["kl_coef"] for row in rows(tmp_path / "whole")]
    assert coefs[0] in (0.5, 1.0, 2.0)
    assert len({*coefs}) > 2  # adapted, and it is not where it began when the run goes on


def test_the_policy_that_is_kept_is_a_moving_average_and_learning_goes_on_from_the_newest(
    small: Config, tmp_path: Path
) -> None:
    state = initial(small, Alone())
    means = []
    for value, iteration in enumerate((1, 2, 3, 91, 92), 1):
        state.iteration = iteration
        state.flat.data.fill_(value)
        state.update_ema(0.75)
        means.append(float(state.ema_params[0]))
    # of the 2nd and 3rd 10/11 and 10/12 count: 1 + 10/11, 21/11 + 10/12 (3 - 21/11); later a quarter
    assert means == pytest.approx([1, 21 / 11, 31 / 11, 3.1136364, 3.5852273], abs=1e-6)
    save(state, small, tmp_path, Alone())
    kept = surefoot.load_policy(checkpoints(tmp_path)[0])[0]
    assert all((p - 3.5852273).abs().max() < 1e-6 for p in kept.parameters())
    other = initial(small, Alone())
    restore(other, tmp_path, Alone())
    assert all((p == 5).all() for p in other.policy.parameters())
    assert torch.equal(other.ema_params, state.ema_params)


@pytest.mark.usefixtures("signals_interrupt")
def test_an_objective_of_ones_own_learns_and_is_asked_for_when_its_run_goes_on(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = surefoot.train(small, objective=Halved(), run_dir=tmp_path / "whole", quiet=True)
    assert capsys.readouterr().err.count("law: REINFORCE's gradient") == 1
    assert run.config.objective.name == "Halved(factor=0.5)"
    surefoot.train(small, objective=Surrogate(), run_dir=tmp_path / "other", quiet=True)
    assert rows(tmp_path / "whole")[-1] != rows(tmp_path / "other")[-1]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "Reporter", interrupt_at(2))
        with pytest.raises(KeyboardInterrupt):
            surefoot.train(small, objective=Halved(), run_dir=tmp_path / "parts", quiet=True)
    assert main(["resume", str(tmp_path / "parts")]) == 2
    assert (
        "Halved(factor=0.5) is Python code, which no file holds: give it with surefoot.resume"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"the objective is Halved\(factor=2\); the run's is Halved\(factor=0\.5\)"):
        surefoot.resume(tmp_path / "parts", objective=Halved(2))
    surefoot.resume(tmp_path / "parts", objective=Halved(), quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_same_seed_is_the_same_run_and_another_is_not(small: Config, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        surefoot.train(small, seed=seed, run_dir=tmp_path / name, ranks=1, quiet=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


def test_training_into_a_finished_run_changes_nothing_and_another_config_is_refused(
    small: Config, tmp_path: Path
) -> None:
    surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    before = rows(tmp_path / "a")
    surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    assert rows(tmp_path / "a") == before
    with pytest.raises(UserError, match="another Config"):
        surefoot.train(small, seed=9, run_dir=tmp_path / "a", ranks=1, quiet=True)


def test_metrics_written_after_the_checkpoint_are_dropped_on_resume(small: Config, tmp_path: Path) -> None:
    surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    with open(tmp_path / "a" / "metrics.jsonl", "a") as f:
        f.write(json.dumps({"step": 10**9}) + '\n{"step": 77, "cut o')
    surefoot.resume(tmp_path / "a", ranks=1, quiet=True, total_steps=small.total_steps * 2)
    steps = [row["step"] for row in rows(tmp_path / "a")]
    assert steps == [128 * k for k in range(1, 13)]


def test_the_last_checkpoints_are_kept(small: Config, tmp_path: Path) -> None:
    surefoot.train(small, save_every=1e-6, run_dir=tmp_path / "a", ranks=1, quiet=True)
    assert [p.name for p in checkpoints(tmp_path / "a")] == [f"{128 * k:09d}" for k in range(7 - KEEP, 7)]


def test_a_policy_that_is_older_than_the_run_is_said(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after files were mixed up; a checkpoint's own policy is of its own step."""
    surefoot.train(small, save_every=1e-6, run_dir=tmp_path / "a", ranks=1, quiet=True)
    first, *_, last = checkpoints(tmp_path / "a")
    for path in (tmp_path / "a", first, last):
        surefoot.load_policy(path)
    assert capsys.readouterr().err == ""
    shutil.copyfile(first / "policy.safetensors", tmp_path / "a" / "policy.safetensors")
    surefoot.load_policy(tmp_path / "a")
    assert "policy.safetensors' is of step 512, and the newest checkpoint of step 768" in capsys.readouterr().err


def test_the_newest_checkpoint_is_the_one_with_most_steps(tmp_path: Path) -> None:
    for name in ("1000001536", "999999488", "000000128", ".writing"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [p.name for p in checkpoints(tmp_path)] == ["000000128", "999999488", "1000001536"]


def test_a_mistaken_resume_leaves_the_run_as_it_was(small: Config, tmp_path: Path) -> None:
    surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    before = (tmp_path / "a" / "config.json").read_bytes()
    with pytest.raises(UserError, match="num_envs cannot change on resume"):
        surefoot.resume(tmp_path / "a", num_envs=16)
    with pytest.raises(UserError, match="divisors"):
        surefoot.resume(tmp_path / "a", ranks=3, total_steps=10_000)
    assert (tmp_path / "a" / "config.json").read_bytes() == before


@pytest.mark.usefixtures("signals_interrupt")
def test_an_old_evaluation_does_not_pass_for_a_new_policy(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = surefoot.train(small, eval_episodes=3, run_dir=tmp_path / "a", ranks=1, quiet=True)
    assert first.evaluation is not None
    monkeypatch.setattr(runner, "Reporter", interrupt_at(8))
    with pytest.raises(KeyboardInterrupt):
        surefoot.resume(tmp_path / "a", ranks=1, quiet=True, total_steps=10_000)
    second = surefoot.load(tmp_path / "a")
    assert second.evaluation is None
    assert second.steps == 8 * 128
    assert surefoot.load_policy(tmp_path / "a")[2]["steps"] == 8 * 128


@pytest.mark.long
def test_evaluations_during_training_keep_the_best_policy_and_change_nothing_else(
    small: Config, tmp_path: Path
) -> None:
    cfg = replace(
        small, total_steps=8 * 16 * 12, learning_rate=FixedRate(1.0), ema_decay=0.5
    )  # too fast: the last is not the best
    plain = surefoot.train(cfg, run_dir=tmp_path / "a", ranks=1, quiet=True)
    cfg = replace(cfg, eval_every=256, eval_games=20, eval_episodes=3)
    surefoot.train(replace(cfg, total_steps=8 * 16 * 7), run_dir=tmp_path / "b", ranks=2, quiet=True)
    run = surefoot.resume(tmp_path / "b", ranks=1, quiet=True, total_steps=8 * 16 * 12)
    scores = {row["step"]: row["evaluation"] for row in read(tmp_path / "b") if row["evaluation"] is not None}
    assert list(scores) == [256 * k for k in range(1, 7)]
    policy, env, facts = surefoot.load_policy(tmp_path / "b")
    best = max(scores.values())
    assert best > scores[1536]
    assert facts["steps"] == max(step for step, score in scores.items() if score == best)
    first = report.OTHERS + 20 * facts["steps"] // 128
    assert evaluate(policy, env, range(first, first + 20), cfg.seed).mean == best
    assert run.evaluation is not None
    assert run.evaluation.scores == evaluate(policy, env, range(3), cfg.seed).scores
    last = [surefoot.load_policy(where / "policy.safetensors")[0] for where in (plain.path, tmp_path / "b")]
    assert all(torch.equal(a, b) for a, b in zip(*(p.parameters() for p in last), strict=True))


@pytest.mark.usefixtures("signals_interrupt")
def test_a_signal_breaks_an_evaluation_during_training_off(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        surefoot.train(replace(small, eval_every=256), run_dir=tmp_path / "a", ranks=1, quiet=True)
    assert [(row["step"], row["evaluation"]) for row in read(tmp_path / "a")] == [(128, None), (256, None)]
    monkeypatch.undo()
    surefoot.resume(tmp_path / "a", ranks=1, quiet=True)
    assert [row["step"] for row in read(tmp_path / "a") if row["evaluation"] is not None] == [512, 768]


@pytest.mark.parametrize(
    "wrong", [{"num_steps": "32"}, {"num_envs": "8"}, {"advantage": "gae"}, {"num_epochs": 2.5}, {"nothing": 1}]
)
def test_wrong_types_from_python_are_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        surefoot.train("cartpole", run_dir=tmp_path / "a", **wrong)


def test_a_newer_format_is_refused(small: Config, tmp_path: Path) -> None:
    surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    file = checkpoints(tmp_path / "a")[-1] / "state.json"
    file.write_bytes(seal(unseal(file.read_bytes()) | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        surefoot.resume(tmp_path / "a", ranks=1, quiet=True, total_steps=10_000)


@pytest.mark.parametrize("gone", [False, True], ids=["config.json", "state.json"])
def test_a_run_of_an_earlier_version_is_refused_in_a_sentence_and_its_policy_read(
    gone: bool, small: Config, tmp_path: Path
) -> None:
    run, says = (
        tmp_path / "a",
        r"earlier version of surefoot \(format 4; .*evaluate and video .* train TASK --from RUN`",
    )
    surefoot.train(small, run_dir=run, ranks=1, quiet=True)
    for file in (run / "config.json", checkpoints(run)[-1] / "state.json"):
        facts = unseal(file.read_bytes())
        facts["config"]["games"] = facts["config"].pop("num_envs")
        if facts.pop("format") and file.name == "state.json":
            facts["format"] = 4
        file.write_bytes(seal(facts))
    if gone:
        (run / "config.json").unlink()
    with pytest.raises(UserError, match=says):
        surefoot.resume(run, ranks=1, quiet=True, total_steps=10_000)
    with pytest.raises(UserError, match=says):
        surefoot.train(small, run_dir=run, ranks=1, quiet=True)
    assert len(surefoot.evaluate(run, episodes=2).scores) == 2
    assert surefoot.train(small, source=run, run_dir=tmp_path / "b", ranks=1, quiet=True).steps == small.total_steps


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        surefoot.resume(tmp_path)


def test_an_environment_that_does_not_replay_is_said(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = replace(small, env=Gymnasium("worlds:Carrying-v0"), num_steps=(12,), minibatch_size=24)
    state = initial(cfg, Alone())
    save(state, cfg, tmp_path, Alone())
    assert restore(initial(cfg, Alone()), tmp_path, Alone()) == list(range(8))
    runner.write_config(cfg, tmp_path)
    runner.prepare(cfg, initial(cfg, Alone()), tmp_path, Alone())
    assert "did not replay" in capsys.readouterr().err


def test_a_run_can_start_from_another_runs_policy(small: Config, tmp_path: Path) -> None:
    surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    state = initial(replace(small, seed=5), Alone())
    runner.load_source(state.policy, small, tmp_path / "a")
    assert all(torch.equal(x, weights(tmp_path / "a")[k]) for k, x in state.policy.state_dict().items())
    other = initial(replace(small, env=Gymnasium("CartPole-v1")), Alone())
    with pytest.raises(UserError, match="does not fit"):
        runner.load_source(other.policy, small, tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"not a policy", b"\xff" * 64, b"\x80\x04\x95pickle"])
def test_a_file_that_is_no_policy_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a surefoot policy"):
        surefoot.load_policy(tmp_path)
