"""Running statistics: against numpy, the same on any number of ranks, frozen while learned from, kept exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import surefoot
from helpers import assert_same_run, interrupt_at
from surefoot.algorithm.advantages import GAE, FutureReturn, OverBatch
from surefoot.algorithm.rewards import ScaledReward, SignReward
from surefoot.algorithm.running_stats import moments_per_env, past_return
from surefoot.algorithm.state import State, initial
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.errors import UserError
from surefoot.loop import begin, collect, finish
from surefoot.models.layers import RunningNorm, merge
from surefoot.models.networks import MLP
from surefoot.models.policy import Policy
from surefoot.parallel.ranks import Alone, Gloo
from surefoot.runs import worker as runner
from surefoot.runs.directory import checkpoints
from surefoot.runs.evaluation import evaluate
from surefoot.runs.files import unseal
from surefoot.runs.policy_file import policy_bytes
from surefoot.runs.reporter import Reporter

ALIKE = "ClipReward:min_reward=1,max_reward=1"


@pytest.fixture
def control(small: Config) -> Config:
    return replace(
        small,
        env=Gymnasium("worlds:Target-v0"),
        network=MLP((16,), running=True),
        reward=ScaledReward(),
        normalize=OverBatch(memory=0.9),
        task="target",
    )


def nothing(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(()), np.zeros(size), np.zeros(size)


def test_moments_are_numpys() -> None:
    x = 1e4 + torch.randn(3, 50, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    now = nothing(5)
    for rollout in x:
        now = merge(now, [50] * rollout.shape[1], moments_per_env(rollout, Alone()))
    everything = x.reshape(-1, 5).numpy()
    assert now[0] == 3 * 50 * 8
    np.testing.assert_allclose(now[1], everything.mean(0), rtol=1e-13)
    np.testing.assert_allclose(now[2] / now[0], everything.var(0), rtol=1e-9)


def test_moments_have_the_same_bits_however_the_games_are_shared() -> None:
    x = torch.randn(37, 8, 3, generator=torch.Generator().manual_seed(0))
    whole = moments_per_env(x, Alone())
    for count in (2, 4, 8):
        parts = [moments_per_env(x[:, Gloo(r, count).columns(8)], Alone()) for r in range(count)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_past_return_by_hand() -> None:
    # gamma 1/2. Environment 0: 8 before, then 1, 2 (ends), 3; game 1: nothing before, 4, 4, 4
    reward = torch.tensor([[1.0, 4], [2, 4], [3, 4]])
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    past, carry = past_return(reward, ended, 0.5, torch.tensor([8.0, 0]).double())
    assert past.tolist() == [[5, 4], [4.5, 6], [3, 7]]
    assert carry.tolist() == [3, 7]
    assert past_return(reward[:2], ended[:2], 0.5, torch.zeros(2).double())[1].tolist() == [0, 6]  # an episode's end


@pytest.mark.parametrize("step", [5, 6], ids=["first of a rollout", "second"])
def test_the_return_so_far_begins_anew_with_the_episode_after_a_crash(step: int) -> None:
    count = iter(range(1, 100))

    class Crashing(gymnasium.Env):  # type: ignore[type-arg]
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            assert next(count) != step
            return np.zeros(1, np.float32), 1.0, False, False, {}

    cfg = surefoot.configure(Crashing, num_envs=1, num_steps=4, minibatch_size=0, env_restarts=1, reward=ScaledReward())
    state = begin(cfg)
    for _ in range(2):
        finish(state, collect(cfg, state), cfg)
    assert float(state.running_return[0]) == pytest.approx(sum(0.99**k for k in range(state.envs.length[0])))
    state.envs.close()


def test_numbers_are_seen_by_their_moments_and_nowhere_beyond_ten() -> None:
    seen = RunningNorm(2)
    assert seen(torch.tensor([[3.0, 4.0]])).tolist() == [[3, 4]]  # before there are any
    seen.assign(torch.tensor(4.0), torch.tensor([1.0, -1.0]), torch.tensor([16.0, 4.0]))  # deviations 2 and 1
    assert seen(torch.tensor([[5.0, -1.0], [99.0, -99.0]])).tolist() == [
        pytest.approx([2, 0], abs=1e-6),
        pytest.approx([10, -10]),
    ]
    other = RunningNorm(2)
    other.load_state_dict(seen.state_dict())
    assert torch.equal(other(torch.ones(1, 2)), seen(torch.ones(1, 2)))


def test_rewards_are_scaled_and_clipped() -> None:
    assert ScaledReward(10.0)(torch.tensor([[3.0, -500.0]]), 2.0).tolist() == [[1.5, -10]]
    assert SignReward()(torch.tensor([[3.0, -0.5, 0.0]])).tolist() == [[1, -1, 0]]


def after(cfg: Config, iterations: int) -> tuple[State, list[Any]]:
    """The state after so many rollouts, from which nothing was learned, and their episodes."""
    state, episodes = begin(cfg), list[Any]()
    for _ in range(iterations):
        episodes += finish(state, collect(cfg, state), cfg)
    state.envs.close()
    return state, episodes


def test_rewards_are_centered_once_where_only_time_limits_end_episodes(control: Config) -> None:
    control = replace(control, ema_decay=0.99)
    state, episodes = after(control, 1)
    assert len(episodes) == 8
    assert state.reward_shift is None
    mean = sum(e.score for e in episodes) / 80
    for iterations in (2, 4):
        state, _ = after(control, iterations)
        assert state.reward_shift == pytest.approx(mean)
        assert state.return_moments[0] == 128 * (iterations - 1)
        assert state.policy.critic is not None
        for policy in (state.policy, state.ema_policy()):
            assert policy.critic is not None
            assert not any(p.any() for p in policy.critic.parameters())
            assert policy.actor.weight.any()


@pytest.mark.parametrize(
    ("changes", "shift"),
    [
        ({"env": Gymnasium("CartPole-v1")}, 0.0),  # episodes terminate
        ({"env": Gymnasium("worlds:Scripted-truncated-v0", wrappers=(ALIKE,))}, None),  # every step pays as much
        ({"reward": ScaledReward(center=False)}, 0.0),
        ({"advantage": FutureReturn()}, 0.0),  # it takes a time limit for an end
        ({"advantage": GAE(gamma=1.0)}, 0.0),
        ({"advantage": GAE(gamma=0.5)}, 0.0),  # returns vary as much as they are large
        ({"value_coef": 0.0}, 0.0),  # no critic would follow
        ({"reward": SignReward()}, None),
    ],
    ids=str,
)
def test_rewards_are_not_centered_elsewhere(control: Config, changes: Any, shift: float | None) -> None:
    state, _ = after(replace(control, **changes), 3)
    assert state.reward_shift == shift
    assert state.policy.critic is not None
    assert state.policy.critic.weight.any()


@pytest.mark.long
def test_a_goal_that_is_rarely_found_at_first_is_learned_since_rewards_are_centered(tmp_path: Path) -> None:
    """Of three seeds each, policies had -9.0 to -3.4 after 20,480 steps, and -48.0 to -45.1 with `center=False`."""
    how: Any = {"total_steps": 20_480, "run_dir": tmp_path / "a", "quiet": True, "ranks": 1, "eval_episodes": 10}
    run = surefoot.train("worlds:Seek-v0", **how)
    assert run.evaluation is not None
    assert run.evaluation.mean > -20


class Watching(Reporter):
    """Keeps the rollouts and what the policy made of them, before and after learning."""

    seen: list[tuple[torch.Tensor, torch.Tensor, float]]

    def on_iteration(self, state: State, rollout, *rest):  # type: ignore[no-untyped-def, override]
        self.seen.append((rollout.obs.clone(), rollout.reward.clone(), state.return_std))
        super().on_iteration(state, rollout, *rest)


def moments(policy: Policy) -> RunningNorm:
    (found,) = [m for m in policy.modules() if isinstance(m, RunningNorm)]
    return found


def test_a_runs_moments_are_those_of_all_it_saw_and_its_rewards_stay_raw(
    control: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watching.seen = []
    monkeypatch.setattr(runner, "Reporter", Watching)
    control = replace(control, reward=ScaledReward(center=False))
    run = surefoot.train(control, run_dir=tmp_path / "a", ranks=1, quiet=True)
    policy, env, facts = surefoot.load_policy(run.path)
    obs = torch.stack([obs for obs, *_ in Watching.seen]).view(-1, 3).double().numpy()
    np.testing.assert_allclose(moments(policy).mean, obs.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments(policy).square / len(obs), obs.var(0), rtol=1e-12)
    reward = torch.cat([reward for _, reward, _ in Watching.seen]).double().numpy()
    assert reward.min() < -5  # raw
    past, carry = [], np.zeros(8)
    for t, paid in enumerate(reward):
        carry = paid + control.advantage.gamma * carry * (t % 10 > 0)  # an episode has 10 steps
        past.append(carry)
    want = np.sqrt(np.var(past) + 1e-8)
    assert Watching.seen[-1][2] == pytest.approx(want, rel=1e-9)
    assert facts["returns"][0] == len(obs)
    before = moments(policy).state_dict()
    evaluate(policy, env, range(3))  # frozen
    assert all(torch.equal(x, before[k]) for k, x in moments(policy).state_dict().items())


def test_collection_and_learning_see_the_same_until_both_are_over(control: Config) -> None:
    """The first minibatch's ratios are 1 although the statistics move every rollout."""
    from surefoot.algorithm.callback import Callback
    from surefoot.algorithm.train import train
    from surefoot.algorithm.update import METRIC_NAMES

    drifts = []

    class Silent(Callback):
        def should_stop(self, state: State) -> bool:
            return state.iteration >= 4

        def on_iteration(self, state: State, rollout, returns, metrics, learn_s) -> None:  # type: ignore[no-untyped-def]
            drifts.append(float(metrics[0, METRIC_NAMES.index("ratio_drift")]))

    state = initial(control, Alone())
    train(control, state, Alone(), Silent())
    assert moments(state.policy).count == 4 * 16 * 8
    assert max(drifts) < 1e-5


@pytest.mark.usefixtures("signals_interrupt")
def test_a_stopped_and_resumed_run_has_the_same_bits(
    control: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(control, num_steps=(12,), minibatch_size=24)  # rollouts end in the middle of episodes
    surefoot.train(cfg, run_dir=tmp_path / "whole", ranks=1, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "Reporter", interrupt_at(2))
        with pytest.raises(KeyboardInterrupt):
            surefoot.train(cfg, run_dir=tmp_path / "parts", ranks=1, quiet=True)
    surefoot.resume(tmp_path / "parts", ranks=1, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    facts = [unseal((checkpoints(tmp_path / d)[-1] / "state.json").read_bytes()) for d in ("whole", "parts")]
    assert facts[0]["return_moments"] == facts[1]["return_moments"]
    assert facts[0]["return_moments"][0] > 0


def test_fine_tuning_keeps_the_statistics(control: Config, tmp_path: Path) -> None:
    run = surefoot.train(control, run_dir=tmp_path / "a", ranks=1, quiet=True)
    state = initial(replace(control, seed=9), Alone())
    returns = runner.load_source(state.policy, control, run.path)
    assert moments(state.policy).count == 6 * 128
    assert returns[0] == 5 * 128  # since rewards are centered
    assert -20 < returns[3] < -5
    assert torch.equal(moments(state.policy).mean, moments(surefoot.load_policy(run.path)[0]).mean)


def test_a_policy_of_an_earlier_version_is_learned_from_as_it_was(control: Config, tmp_path: Path) -> None:
    """Its header has three numbers: rewards stay as they are. A policy that has never learned decides anew."""
    policy = initial(control, Alone()).policy
    for returns, shift in (((9.0, 1.0, 2.0), 0.0), ((0.0, 0.0, 0.0), None), ((9.0, 1.0, 2.0, -0.5), -0.5)):
        (tmp_path / "policy").write_bytes(policy_bytes(policy, control, 0, returns))
        assert runner.load_source(policy, control, tmp_path / "policy") == (*returns[:3], shift)
    for changes in ({"reward": SignReward()}, {"advantage": GAE(gamma=1.0)}):  # where nothing may be centered
        cfg: Any = replace(control, **changes)  # type: ignore[arg-type]
        assert runner.load_source(policy, cfg, tmp_path / "policy") == (0.0, 0.0, 0.0, 0.0)
    for damaged in ((None, 1.0, 2.0), (9.0, 1.0, 2.0, math.nan)):
        (tmp_path / "policy").write_bytes(policy_bytes(policy, control, 0, damaged))
        with pytest.raises(UserError, match="is not a surefoot policy"):
            runner.load_source(policy, control, tmp_path / "policy")
