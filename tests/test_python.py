"""surefoot from Python: what `train` and `load` return, a user's own functions, the loop by hand."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

import surefoot
from helpers import block_with
from hooks import Halved, first_env, third_iteration
from surefoot.algorithm.advantages import OverBatch
from surefoot.algorithm.objectives import ClippedSurrogate, Objective, TrustRegion
from surefoot.config import Config
from surefoot.errors import Fault, UserError
from surefoot.loop import advantages, begin, collect, finish, minibatches, update
from surefoot.runs.directory import checkpoints
from surefoot.runs.hooks import TAKEN


def process_settings() -> list[Any]:
    numbers = np.random.get_state()[1]  # type: ignore[index]
    return [random.getstate(), list(numbers), torch.get_rng_state().tolist(), torch.get_num_threads()]


@pytest.mark.usefixtures("drawn_curves")
def test_a_run_is_an_object(small: Config, tmp_path: Path) -> None:
    run = surefoot.train(small, eval_episodes=2, run_dir=tmp_path / "a", quiet=True)
    with Image.open(run.path / "curve.png") as picture:
        assert picture.size == (910, 520)
    assert run.evaluation is not None
    assert re.findall(r"score \S+?(?=<)|image/(?:png|gif)(?=;base64,[\w+/]{200})", run._repr_html_()) == [
        f"score {run.evaluation.mean:.2f}", "image/png", *["image/gif"] * (run.path / "game.gif").exists()
    ]  # fmt: skip
    steps, scores = run.curve()
    assert run.directory == run.path == tmp_path / "a"
    assert steps[-1] == run.steps == 768
    assert scores[-1] == run.metrics[-1]["return_mean"]
    assert run.curve("kl", "iteration")[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert run.config == replace(small, eval_episodes=2)
    obs, _ = gymnasium.make("worlds:Catch-v0").reset(seed=0)
    assert run.policy.act(obs, greedy=True) in range(3)
    again = surefoot.load(run.directory)
    random.seed(1)
    torch.set_num_threads(3)
    before = process_settings()
    assert again.evaluation == run.evaluation
    assert again.evaluate(episodes=3).scores == surefoot.evaluate(run.path, episodes=3).scores
    assert process_settings() == before
    torch.set_num_threads(1)
    alone = (run.directory / "policy.safetensors").rename(tmp_path / "alone")
    assert len(surefoot.load(alone, env="worlds:Catch-v0").evaluate(episodes=3).scores) == 3
    assert "<img" not in surefoot.load(alone)._repr_html_()
    with pytest.raises(UserError, match="no metric 'score': there are step, "):
        run.curve("score")
    with pytest.raises(UserError, match="there is no file"):
        surefoot.load(tmp_path / "nowhere")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_users_functions_see_every_iteration(small: Config, tmp_path: Path, ranks: int) -> None:
    own = {"metrics": {"first_env": first_env}, "objective": Halved()}
    run = surefoot.train(small, run_dir=tmp_path / "a", quiet=True, ranks=ranks, stop=third_iteration, **own)
    assert run.steps == 3 * 128  # it has come to its end: the report card is there
    assert (run.directory / "report.md").exists()
    assert run.curve("first_env")[1].tolist() == [0.0 if ranks == 1 else 2.0] * 3  # the mean of envs 0 and 4
    assert set(run.metrics[0]) - {"first_env"} <= TAKEN
    more = surefoot.resume(run.path, quiet=True, **own)  # without the stop condition
    assert more.steps == 6 * 128
    assert len(more.curve("first_env")[0]) == 6


def test_functions_that_fail_or_do_not_fit_are_named(small: Config, tmp_path: Path) -> None:
    how = {"run_dir": tmp_path / "a", "quiet": True}
    with pytest.raises(UserError, match="metrics has 'kl', which is surefoot's own"):
        surefoot.train(small, metrics={"kl": first_env}, **how)
    with pytest.raises(UserError, match="15 is no function"):
        surefoot.train(small, stop=15, **how)  # type: ignore[arg-type]
    for given in ({"stop": lambda row: row is None}, {"objective": lambda logp, _, advantage: logp * advantage}):
        with pytest.raises(UserError, match="called in this process alone: for more ranks take it from a module"):
            surefoot.train(small, ranks=2, **given, **how)
    assert not (tmp_path / "a").exists()
    with pytest.raises(Fault, match=r"'stop' failed after 128 steps: KeyError: 'score'; what was saved goes on"):
        surefoot.train(small, stop=lambda row: row["score"] > 1, **how)
    assert checkpoints(tmp_path / "a")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("objective", [ClippedSurrogate(), TrustRegion()], ids=str)
def test_the_loop_by_hand_is_the_loop(objective: Objective, recompute: bool, small: Config, tmp_path: Path) -> None:
    small = replace(small, objective=objective, recompute=recompute, normalize=OverBatch(memory=0.9))
    run = surefoot.train(small, run_dir=tmp_path / "a", quiet=True)
    torch.set_num_threads(1)
    state = begin(small)
    while state.progress(small) < 1:
        rollout = collect(small, state)
        advantage, returns = advantages(rollout, small, state)
        for batch in minibatches(rollout, advantage, returns, small, state):
            update(state, batch, small)
        finish(state, rollout, small)
    state.envs.close()
    own = run.policy.state_dict()
    assert all(torch.equal(x, own[name]) for name, x in state.policy.state_dict().items())


@pytest.mark.long
def test_the_snippets_on_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is cut short: the calls are the page's."""
    monkeypatch.chdir(tmp_path)
    short = "total_iterations=1, eval_episodes=0, quiet=True"
    names: dict[str, Any] = {"surefoot": surefoot, "gymnasium": gymnasium}
    for call in (
        block_with("objective=lambda logp"),
        block_with("learning_rate=lambda progress"),
        block_with("memory=GRU(units=64)"),
    ):
        exec(re.sub(r'(?i)("cartpole(-v1)?", )', rf"\1{short}, ", call), names)
    for call in (block_with('num_envs, "async"'), block_with('num_envs, "sync"')):
        exec(call, names)
        run = surefoot.train(
            names["make_env"], run_dir=f"vector-{len(call)}", total_iterations=1, eval_episodes=0, quiet=True
        )
        assert run.steps == 1024
    surefoot.train("Pendulum-v1", run_dir="runs/pendulum", total_iterations=1, eval_episodes=0, quiet=True)
    exec(block_with('surefoot.load_policy("runs/pendulum")'), names)
    assert names["truncated"]


def test_the_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block_with("from surefoot.loop import").replace("20_000", "1_024"), names)
    assert names["state"].steps == 1024  # type: ignore[attr-defined]
    exec(block_with("def solved(row)").replace("> 475", "> 5"), names)
    run = names["run"]
    assert isinstance(run, surefoot.Run)
    assert run.steps < 100_000
    assert np.isfinite(run.curve("moves")[1]).all()


def test_importing_surefoot_imports_nothing_heavy() -> None:
    code = "import sys, surefoot; print({'torch', 'numpy', 'gymnasium', 'tyro'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
    assert surefoot.Config is Config
    with pytest.raises(AttributeError):
        surefoot.nothing  # noqa: B018
