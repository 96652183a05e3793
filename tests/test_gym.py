"""Any Gymnasium id: the contract every game keeps, and one sentence for what cannot be learned."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.envs import Env, Games
from surefoot.envs.atari import Pong
from surefoot.envs.gym import Gymnasium
from surefoot.errors import UserError
from surefoot.presets import LESSON_GAME

ALL = [Pong(), LESSON_GAME, Gymnasium("CartPole-v1"), Gymnasium("Acrobot-v1"), Gymnasium("worlds:Catch-v0")]


@pytest.mark.parametrize("env", ALL, ids=str)
def test_the_contract(env: Env) -> None:
    """Observations as announced, the same seed twice the same, snapshots exact, endings reset in the same step."""
    runs = []
    for _ in range(2):
        games = Games(env, 3, range(2))
        games.reset_all()
        first = games.obs.copy()
        assert games.observation_space.contains(games.obs[0])
        out = np.empty_like(games.obs)
        steps = [games.step([t % games.action_space.n, 0], out) for t in range(40)]
        runs.append((first, out.copy(), [s.reward for s in steps]))
        games.close()
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    games.take_finished()
    saved, where = games.snapshot(), games.obs.copy()
    other = Games(env, 3, range(2))
    assert other.restore(saved) == []
    assert np.array_equal(other.obs, where)
    mine, theirs = np.empty_like(where), np.empty_like(where)
    for t in range(60):
        a, b = games.step([0, t % 2], mine), other.step([0, t % 2], theirs)
        assert (a.reward, a.terminated, a.truncated) == (b.reward, b.terminated, b.truncated)
        assert np.array_equal(mine, theirs)
        for i, final in a.final.items():
            assert np.array_equal(final, b.final[i])
            assert games.length[i] == 0  # a new episode has begun
    assert games.episodes == other.episodes
    assert games.score == other.score
    assert games.take_finished()[-1:] == other.take_finished()[-1:]


def test_other_seeds_are_other_episodes() -> None:
    first = []
    for seed in (0, 1):
        games = Games(Gymnasium("CartPole-v1"), seed, range(3))
        games.reset_all()
        first.append(games.obs.copy())
    assert len(np.unique(np.concatenate(first), axis=0)) == 6


def test_the_time_limit_truncates() -> None:
    games = Games(Gymnasium("worlds:Corridor-v0"), 0, range(1))
    games.reset_all()
    out = np.empty_like(games.obs)
    flags = [games.step([0], out) for _ in range(20)]
    assert [s.truncated[0] for s in flags] == [False] * 19 + [True]
    assert not any(s.terminated[0] for s in flags)
    assert games.take_finished()[0].score == 20


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CartPoel-v1", "did you mean CartPole"),
        ("no_such_module:Env-v0", "no environment"),
        ("Blackjack-v1", "observations are Tuple.*FlattenObservation"),
    ],
)
def test_what_cannot_be_learned_is_said_in_a_sentence(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        Gymnasium(name).make()
    assert "\n" not in str(error.value)
