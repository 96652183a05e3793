"""The policy in a loop of one's own: it takes the environment's observations and gives its actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import surefoot
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium, describe
from surefoot.errors import UserError
from surefoot.models.networks import MLP
from surefoot.models.policy import Policy
from surefoot.rng import Purpose, integer
from surefoot.runs.evaluation import evaluate
from surefoot.runs.policy_file import policy_bytes
from worlds import World


class Odd(World):
    """A Dict of a choice that begins at 3, bytes and numbers; actions that begin at -2."""

    def __init__(self) -> None:
        inner = spaces.Dict(picture=spaces.Box(0, 255, (2, 2), np.uint8), choice=spaces.Discrete(4, start=3))
        self.observation_space = spaces.Dict(inner=inner, number=spaces.Box(-1, 1, (1,), np.float32))
        self.action_space: spaces.Space[Any] = spaces.Discrete(5, start=-2)

    def _see(self) -> Any:
        inner = {"picture": self.np_random.integers(256, size=(2, 2), dtype=np.uint8), "choice": 3 + self.t % 4}
        return {"inner": inner, "number": self.np_random.uniform(-1, 1, 1).astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        self.t += 1
        return self._see(), float(np.sum(action) * self.t), self.t == 9, False, {}


class Bounded(Odd):
    """Numbers of uneven bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(np.array([-3, 10], np.float32), np.array([1, 11], np.float32))


class Several(Odd):
    """Several choices of several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.MultiDiscrete([2, 3, 4])


class Mixed(Odd):
    """A Dict of a choice that begins at 1, a Tuple of numbers in bounds, and whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        arm = spaces.Tuple((spaces.Box(-2, 0, (2,), np.float32), spaces.Box(0, 7, (1, 2), np.int64)))
        self.action_space = spaces.Dict(arm=arm, gear=spaces.Discrete(3, start=1))

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        self.t += 1
        reach, count = action["arm"]
        return self._see(), float(action["gear"] + self.t * (reach.sum() + count.sum())), self.t == 9, False, {}


class Locked(Several):
    """Several choices, of which a mask in info leaves some."""

    def _info(self) -> dict[str, Any]:
        self.mask = tuple(np.eye(n, dtype=np.int8)[self.t % n] | (np.arange(n) == 0) for n in (2, 3, 4))
        return {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: Any = None):
        obs, _ = super().reset(seed=seed)
        return obs, self._info()

    def step(self, action: Any):
        assert all(allowed[a] for allowed, a in zip(self.mask, action, strict=True)), action
        obs, *rest, _ = super().step(action)
        return obs, *rest, self._info()


TASKS = [
    Gymnasium("CartPole-v1"),
    Gymnasium("Pendulum-v1"),
    Gymnasium("FrozenLake-v1", ("is_slippery=False",)),
    *(Gymnasium(f"worlds:{name}-v0") for name in ("Identity", "Target", "Switches", "Doors", "Nested")),
    *(describe(lambda kind=kind: kind()) for kind in (Odd, Bounded, Several, Mixed, Locked)),
]


def loaded(env: Gymnasium, folder: Path) -> Policy:
    """A policy with large weights, from its file."""
    game, network = env.make(), MLP((8,))
    torch.manual_seed(1)
    policy = network.build(game.observation_space, game.action_space)
    with torch.no_grad():
        policy.actor.weight.normal_(0, 3)
    (folder / "policy").write_bytes(policy_bytes(policy, Config(env=env, network=network), 0))
    return surefoot.load_policy(folder / "policy", trust=True)[0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id.rpartition(".")[2])
def test_a_loop_of_ones_own_plays_as_evaluate_does(task: Gymnasium, tmp_path: Path) -> None:
    policy = loaded(task, tmp_path)
    env, scores = task.make().env, []
    for episode in range(3):
        obs, info = env.reset(seed=integer(0, Purpose.EVALUATION, 0, episode))
        score, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, info = env.step(policy.act(obs, True, info.get("action_mask")))
            score, over = score + float(reward), terminated or truncated
        scores.append(score)
    assert scores == pytest.approx(evaluate(policy, task, range(3), greedy=True).scores)


def test_actions_are_sampled_as_the_policy_says(tmp_path: Path) -> None:
    policy = loaded(Gymnasium("CartPole-v1"), tmp_path)
    obs, rng = np.array([0.1, -0.2, 0.02, 0.1]), np.random.default_rng(0)  # in double precision, as some have it
    drawn = [policy.act(obs, rng=rng) for _ in range(200)]
    with torch.no_grad():
        expected = float(policy(torch.as_tensor(obs, dtype=torch.float32)[None])[0].probabilities()[0, 1])
    assert {type(action) for action in drawn} == {np.int64}  # as the space's own `sample`
    assert abs(np.mean(drawn) - expected) < 4 * np.sqrt(expected * (1 - expected) / 200) + 1e-9
    again = np.random.default_rng(0)
    assert drawn == [policy.act(obs, rng=again) for _ in range(200)]
    assert policy.act(obs, greedy=True) == (expected > 0.5)
    assert policy.act(obs) in (0, 1)


def test_a_mask_that_allows_nothing_allows_everything_as_in_training(tmp_path: Path) -> None:
    policy = loaded(describe(Locked), tmp_path)
    obs, _ = Locked().reset(seed=0)
    best = policy.act(obs, greedy=True, mask=np.ones(9)).tolist()
    assert best != [0, 0, 0]  # of logits that are all masked the first would be taken
    assert policy.act(obs, greedy=True, mask=np.zeros(9)).tolist() == best


def test_what_the_policy_cannot_see_is_a_sentence(tmp_path: Path) -> None:
    policy = loaded(Gymnasium("CartPole-v1"), tmp_path)
    for wrong in (
        np.full(4, np.nan),
        np.zeros((1, 4), np.float32)[:, :3],
        np.zeros(5),
        "left",
        None,
        {"obs": np.zeros(4)},
    ):
        with pytest.raises(UserError, match="the policy cannot see this"):
            policy.act(wrong)
    with pytest.raises(UserError, match=r"mask=info\['action_mask'\]"):
        loaded(Gymnasium("worlds:Doors-v0"), tmp_path).act(1)
    with pytest.raises(UserError, match="load_policy"):
        MLP((4,)).build(spaces.Discrete(2), spaces.Discrete(2)).act(0)


def test_the_policy_of_a_run_that_trains_acts_too(small: Config) -> None:
    from surefoot.models.policy import build_policy

    env: gymnasium.Env[Any, Any] = gymnasium.make("worlds:Catch-v0")
    policy = build_policy(small, env.observation_space, env.action_space)
    assert policy.act(env.reset(seed=0)[0]) in range(3)
