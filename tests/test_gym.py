"""Any Gymnasium id: the contract that every environment keeps, and one sentence for what cannot be learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from surefoot.envs.atari import Atari, Pong
from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import EnvSpec
from surefoot.envs.spaces import masked, parts
from surefoot.envs.vector import EnvVector
from surefoot.errors import UserError
from surefoot.presets import LESSON_GAME

CATCH, CHEETAH = Gymnasium("worlds:Catch-v0"), Gymnasium("HalfCheetah-v5")
IDS = "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "worlds:Nested-v0", "worlds:Doors-v0"
ALL = [Pong(), LESSON_GAME, Atari("breakout", life_loss=True), CATCH, CHEETAH, *map(Gymnasium, IDS)]


@pytest.fixture(params=ALL, ids=str)
def env(request: pytest.FixtureRequest) -> EnvSpec:
    if request.param == CHEETAH:
        pytest.importorskip("mujoco")
    return request.param


def choose(envs: EnvVector) -> Any:
    """Random actions as a rollout has them: a list of numbers, or an array of rows; a mask is obeyed."""
    space, n = envs.action_space, masked(envs.observation_space, envs.action_space)
    actions = np.array([space.sample(row[-n:].view(np.int8) if n else None) for row in envs.obs])
    return actions.tolist() if actions.ndim == 1 else actions


def test_the_contract(env: EnvSpec) -> None:
    """Observations in their space, the same seed twice the same, snapshots exact, endings reset in the same step."""
    envs, runs = EnvVector(env, 3, range(2)), []
    for _ in range(2):
        envs.reset_all()
        envs.action_space.seed(0)
        seen, rewards = [envs.obs.copy()], []
        for _ in range(40):
            rewards.append(envs.step(choose(envs), np.empty_like(envs.obs)).reward)
            seen.append(envs.obs)
        runs.append((np.stack(seen), rewards))
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    for part in parts(envs.observation_space):
        data = envs.obs[0].reshape(-1).view(np.uint8)[part.start : part.stop].view(part.dtype)
        assert part.space.contains(data.reshape(part.space.shape))
    envs.take_finished()
    saved, where = envs.snapshot(), envs.obs.copy()
    other = EnvVector(env, 3, range(2))
    assert other.restore(saved) == []
    assert np.array_equal(other.obs, where)
    mine, theirs = np.empty_like(where), np.empty_like(where)
    for _ in range(60):
        actions = choose(envs)
        a, b = envs.step(actions, mine), other.step(actions, theirs)
        assert (a.reward, a.terminated, a.truncated) == (b.reward, b.terminated, b.truncated)
        assert np.array_equal(mine, theirs)
        for i, final in a.final.items():
            assert np.array_equal(final, b.final[i])
            assert (envs.length[i] == 0) != envs.envs[i].life_lost  # a new episode has begun, or a life
    assert envs.episodes == other.episodes
    assert envs.score == other.score
    assert envs.take_finished()[-1:] == other.take_finished()[-1:]
    envs.close()


def test_other_seeds_are_other_episodes(env: EnvSpec) -> None:
    """In what is seen first, or in a console's memory: its no-ops show only later."""
    envs, first = EnvVector(env, 0, range(3)), set()
    for envs.seed in (0, 1):
        envs.reset_all()
        states = [g.ale.getRAM() for g in envs.envs] if isinstance(env, Pong | Atari) else envs.obs
        first |= {state.tobytes() for state in states}
    assert len(first) == 6 or (env in (LESSON_GAME, CATCH) and len(first) > 3)  # 32 openings, 5 places of a ball


def test_the_time_limit_truncates() -> None:
    envs = EnvVector(Gymnasium("worlds:Corridor-v0"), 0, range(1))
    envs.reset_all()
    out = np.empty_like(envs.obs)
    flags = [envs.step([0], out) for _ in range(20)]
    assert [s.truncated[0] for s in flags] == [False] * 19 + [True]
    assert not any(s.terminated[0] for s in flags)
    assert envs.take_finished()[0].score == 20


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CartPoel-v1", "did you mean CartPole"),
        ("no_such_module:Env-v0", "pip install the package of 'no_such_module'"),
    ],
)
def test_what_cannot_be_learned_is_said_in_a_sentence(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        Gymnasium(name).make()
    assert "\n" not in str(error.value)
