"""Evaluation: exact scores, fresh seeds, the same whatever the number of parallel games, and a true interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import surefoot
from surefoot.envs.gym import Gymnasium
from surefoot.evaluation import Evaluation, evaluate
from surefoot.networks import MLP
from surefoot.policy import Policy


def policy_for(env: Gymnasium) -> Policy:
    game = env.make()
    torch.manual_seed(0)
    return MLP((8,)).build(game.observation_space, game.action_space)


def test_a_scripted_game_scores_what_adds_up_by_hand() -> None:
    env = Gymnasium("worlds:Scripted-terminated-v0")
    policy = policy_for(env)
    with torch.no_grad():
        policy.actor.bias[:] = torch.tensor([0.0, 100.0])
    result = evaluate(policy, env, range(5), greedy=True)
    assert result.scores == [36.0] * 5  # 1 + 2 + 3 and three times 10
    assert result.lengths == [3] * 5


def test_the_number_of_parallel_games_changes_nothing() -> None:
    env = Gymnasium("CartPole-v1")
    policy = policy_for(env).double()
    one, many = (evaluate(policy, env, range(12), seed=3, parallel=n) for n in (1, 7))
    assert one.scores == many.scores
    assert len(set(one.scores)) > 3
    assert evaluate(policy, env, range(12), seed=4).scores != one.scores
    assert evaluate(policy, env, range(3, 12, 4), seed=3).scores == one.scores[3:12:4]


def test_the_seeds_are_not_those_of_training() -> None:
    from surefoot.noise import Purpose, integer

    trained = {integer(1, Purpose.RESETS, n, k) for n in range(32) for k in range(100)}
    assert not trained & {integer(1, Purpose.EVALUATION, 0, e) for e in range(100)}


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """95 % intervals from 200 samples of 60 die throws contain 3.5 in about 95 % of them (at least 88 %)."""
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(200):
        scores = rng.integers(1, 7, 60).astype(float).tolist()
        low, high = Evaluation(scores, [1] * 60, False, k, 0.0).interval
        hits += low <= 3.5 <= high
    assert 176 <= hits <= 199


def test_a_policy_loads_without_its_run(small, tmp_path: Path) -> None:
    run = surefoot.train(small, run_dir=tmp_path / "a", ranks=1, quiet=True)
    file = (run.path / "policy.safetensors").rename(tmp_path / "alone.safetensors")
    policy, env, facts = surefoot.load_policy(file)
    assert env == small.env
    assert facts["steps"] == run.steps
    assert evaluate(policy, env, range(4)).lengths == [6] * 4


@pytest.mark.parametrize("count", [1, 3])
def test_every_episode_counts_once(count: int) -> None:
    env = Gymnasium("CartPole-v1")
    seen: list[int] = []
    result = evaluate(policy_for(env), env, range(count), parallel=2, progress=seen.append)
    assert seen == list(range(1, count + 1))
    assert len(result.scores) == count
    assert result.scores == [float(n) for n in result.lengths]  # CartPole pays 1 a step
