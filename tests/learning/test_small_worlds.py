"""Learning on small worlds with known answers, in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import surefoot
from helpers import Until
from surefoot.algorithm.advantages import GAE, EpisodeReturn, FutureReturn, OverBatch, OverGames
from surefoot.algorithm.objectives import ClippedSurrogate, Entropy, Reinforce, Surrogate
from surefoot.algorithm.rollout import collect
from surefoot.algorithm.state import initial
from surefoot.algorithm.train import train
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.models.networks import MLP, ImpalaCNN
from surefoot.parallel.ranks import Alone
from surefoot.presets import CARTPOLE
from surefoot.runs.evaluation import evaluate
from surefoot.runs.metrics import read

WORLD = replace(
    CARTPOLE,
    network=MLP((32,)),
    num_envs=8,
    num_steps=(32,),
    minibatch_size=64,
    num_epochs=4,
    eval_episodes=0,
    save_every=1e9,
)


def score(cfg: Config, tmp_path: Path) -> float:
    run = surefoot.train(cfg, run_dir=tmp_path / "run", ranks=1, quiet=True)
    policy, env, _ = surefoot.load_policy(run.path)
    return evaluate(policy, env, range(50), seed=7).mean


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_identity_is_learned(seed: int, tmp_path: Path) -> None:
    """A random policy scores 2.5, a perfect one 10."""
    cfg = replace(WORLD, seed=seed, task="identity", env=Gymnasium("worlds:Identity-v0"), total_steps=12_000)
    assert score(cfg, tmp_path) > 9


@pytest.mark.long
def test_a_picture_is_read_by_the_residual_network(tmp_path: Path) -> None:
    """Identity shown as the quarter that is lit; from the policy's file it plays as it did in the run's evaluation."""
    cfg = replace(WORLD, network=ImpalaCNN(), env=Gymnasium("worlds:Lamps-v0"), num_steps=(16,), num_epochs=2)
    cfg = replace(cfg, total_steps=1_536, eval_episodes=20)
    run = surefoot.train(cfg, run_dir=tmp_path / "run", ranks=1, quiet=True)
    assert read(run.path)[0]["ratio_drift_first"] < 1e-5
    assert run.evaluation is not None
    assert run.evaluation.mean > 6
    assert surefoot.evaluate(run.path, episodes=20, seed=cfg.seed).scores == run.evaluation.scores


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_catch_is_learned(seed: int, tmp_path: Path) -> None:
    """The reward comes 6 decisions late. A random policy scores about -0.5, a perfect one 1."""
    cfg = replace(WORLD, seed=seed, task="catch", env=Gymnasium("worlds:Catch-v0"), total_steps=25_000)
    assert score(cfg, tmp_path) > 0.8


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        {"advantage": EpisodeReturn(1.0), "normalize": OverGames(), "objective": Reinforce(), "num_epochs": 1},
        {"advantage": FutureReturn(1.0), "normalize": OverGames(), "objective": Reinforce(), "num_epochs": 1},
        {"advantage": FutureReturn(1.0), "normalize": OverBatch(), "objective": Surrogate(), "num_epochs": 2},
        {"advantage": FutureReturn(1.0), "normalize": OverBatch(), "objective": ClippedSurrogate(0.1), "num_epochs": 4},
    ],
    ids=["total reward", "future reward", "surrogate", "clipped"],
)
def test_every_rung_learns_identity(change: dict[str, object], tmp_path: Path) -> None:
    """The lesson's way, trajectories from the start, with each rung's idea; a random policy scores 2.5."""
    cfg = replace(
        WORLD, env=Gymnasium("worlds:Identity-v0"), from_reset=True, num_steps=(10,), minibatch_size=0, num_envs=32
    )
    cfg = replace(cfg, total_steps=45_000, value_coef=0.0, entropy=Entropy(0.0), **change)  # type: ignore[arg-type]
    assert score(cfg, tmp_path) > 5


@pytest.mark.long
def test_cartpole_is_learned(tmp_path: Path) -> None:
    """A random policy stands for about 20 steps, the limit is 500."""
    assert score(replace(CARTPOLE, total_steps=25_000, eval_episodes=0), tmp_path) > 200


def value_of_the_corridor(bootstrap: bool, monkeypatch: pytest.MonkeyPatch) -> float:
    """V after learning in an endless corridor that is cut every 20 steps; gamma 0.9, so the truth is 10."""
    cfg = replace(
        WORLD, env=Gymnasium("worlds:Corridor-v0"), advantage=GAE(gamma=0.9, gae_lambda=0.95), total_steps=24_000
    )
    if not bootstrap:
        plain = GAE.__call__

        def blind(self: GAE, rollout):  # type: ignore[no-untyped-def]
            return plain(self, replace(rollout, terminated=rollout.ended))

        monkeypatch.setattr(GAE, "__call__", blind)
    state = initial(cfg, Alone())
    train(cfg, state, Alone(), Until(cfg.total_steps))
    rollout = collect(state.policy, state.envs, torch.rand(20, 8, generator=torch.Generator().manual_seed(0)))
    return float(rollout.value.mean())


def test_the_value_goes_to_one_over_one_minus_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    assert value_of_the_corridor(True, monkeypatch) == pytest.approx(10, abs=0.4)


def test_without_the_bootstrap_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean over a 20-step episode of (1 - 0.9^left) / 0.1, left = 20 .. 1, is 6.05."""
    assert value_of_the_corridor(False, monkeypatch) == pytest.approx(6.05, abs=0.5)


@pytest.mark.slow
def test_pong_is_on_its_way_after_a_few_minutes(tmp_path: Path) -> None:
    """From -21 to better than -15 in 300,000 decisions."""
    run = surefoot.train("pong", total_steps=300_000, eval_episodes=20, run_dir=tmp_path / "run")
    assert run.evaluation is not None
    assert run.evaluation.mean > -15
