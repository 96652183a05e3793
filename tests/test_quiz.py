"""The lesson's quiz on noise and credit assignment, computed by the package's own functions."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from surefoot.algorithm.advantages import episode_return, future_return
from surefoot.algorithm.objectives import Reinforce, effective_sample_size, trajectory_ratio


def log_probabilities(theta: Tensor, actions: tuple[int, ...]) -> Tensor:
    """The quiz's policy: pi(1) = theta, pi(0) = 1 - theta, in every state; [T, 1]."""
    return torch.stack([theta.log() if a == 1 else (1 - theta).log() for a in actions])[:, None]


def rewards_and_endings(rewards: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    ended = torch.zeros(len(rewards), 1, dtype=torch.bool)
    ended[-1] = True
    return torch.tensor(rewards, dtype=torch.float64)[:, None], ended


def step_gradients(actions: tuple[int, ...], rewards: tuple[float, ...], credit, at: float = 0.5) -> list[float]:
    """d/dtheta of each step's gain, by autograd."""
    reward, ended = rewards_and_endings(rewards)
    weight = credit(reward, ended, 1.0)
    steps = []
    for t in range(len(actions)):
        theta = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        logp = log_probabilities(theta, actions)
        gain = Reinforce()(logp, logp.detach(), weight)
        steps.append(torch.autograd.grad(gain[t, 0], theta)[0].item())
    return steps


def future_rewards(rewards: tuple[float, ...]) -> list[float]:
    return future_return(*rewards_and_endings(rewards), 1.0)[:, 0].tolist()


def total_rewards(rewards: tuple[float, ...]) -> list[float]:
    return episode_return(*rewards_and_endings(rewards), 1.0)[:, 0].tolist()


# d log pi(1) / dtheta = 1 / theta = 2 and d log pi(0) / dtheta = -1 / (1 - theta) = -2 at theta = 1/2


def test_game_1_future_rewards_are_2_1_1() -> None:
    assert future_rewards((1, 0, 1)) == [2, 1, 1]
    assert step_gradients((1, 0, 1), (1, 0, 1), future_return) == [4, -2, 2]  # 2 * 2, -2 * 1, 2 * 1


def test_game_2_gradient_with_future_rewards_is_minus_2() -> None:
    assert future_rewards((0, 0, 1)) == [1, 1, 1]
    assert step_gradients((1, 0, 0), (0, 0, 1), future_return) == [2, -2, -2]
    assert sum(step_gradients((1, 0, 0), (0, 0, 1), future_return)) == -2


def test_game_3_gradient_is_minus_4_with_future_and_with_total_rewards() -> None:
    assert future_rewards((1, 0, 1)) == [2, 1, 1]
    # -2 * 2 + 2 * 1 - 2 * 1 = -4 + 2 - 2 = -4; the lesson prints -2 for this sum, a slip
    future = step_gradients((0, 1, 0), (1, 0, 1), future_return)
    assert future == [-4, 2, -2]
    assert future[1] + future[2] == 0  # the second and the third step cancel
    assert sum(future) == -4 < 0
    # the total is 2 at every step: -2 * 2 + 2 * 2 - 2 * 2 = -4 + 4 - 4 = -4, the same
    assert total_rewards((1, 0, 1)) == [2, 2, 2]
    total = step_gradients((0, 1, 0), (1, 0, 1), episode_return)
    assert total == [-4, 4, -4]
    assert sum(total) == -4


# A small game whose rewards depend on the whole history: all eight trajectories are enumerated

TRAJECTORIES = list(product((0, 1), repeat=3))


def game(actions: tuple[int, ...]) -> tuple[float, ...]:
    """A 1 pays more the later it comes, and more after ones; a change of mind costs a half; two zeros pay 3."""
    rewards = []
    for t, a in enumerate(actions):
        reward = a * (t + 1) * (1 + 0.25 * sum(actions[:t]))
        if t > 0 and a != actions[t - 1]:
            reward -= 0.5
        if actions[: t + 1].count(0) == 2 and a == 0:
            reward += 3
        rewards.append(reward)
    return tuple(rewards)


def probability(actions: tuple[int, ...], theta: float) -> float:
    result = 1.0
    for a in actions:
        result *= theta if a == 1 else 1 - theta
    return result


def gradients(credit, theta: float) -> list[float]:
    """The gradient estimate that each trajectory gives."""
    return [sum(step_gradients(actions, game(actions), credit, theta)) for actions in TRAJECTORIES]


def mean_and_variance(values: list[float], theta: float) -> tuple[float, float]:
    weights = [probability(actions, theta) for actions in TRAJECTORIES]
    mean = sum(p * x for p, x in zip(weights, values, strict=True))
    return mean, sum(p * (x - mean) ** 2 for p, x in zip(weights, values, strict=True))


def average_reward(theta: float) -> float:
    return mean_and_variance([sum(game(actions)) for actions in TRAJECTORIES], theta)[0]


def test_the_small_games_reward_depends_on_the_whole_history() -> None:
    assert game((1, 1, 1)) == (1, 2.5, 4.5)  # 1; 2 * 1.25; 3 * 1.5
    assert game((0, 1, 1)) == (0, 1.5, 3.75)  # 0; 2 - 0.5; 3 * 1.25
    assert game((0, 1, 0)) == (0, 1.5, 2.5)  # 0; 2 - 0.5; 0 - 0.5 + 3


@pytest.mark.parametrize("theta", [0.2, 0.5, 0.83])
def test_total_and_future_reward_have_the_same_expected_gradient(theta: float) -> None:
    total, _ = mean_and_variance(gradients(episode_return, theta), theta)
    future, _ = mean_and_variance(gradients(future_return, theta), theta)
    assert abs(total - future) < 1e-12
    assert abs(total) > 0.1
    # and it is the slope of the average reward
    slope = (average_reward(theta + 1e-5) - average_reward(theta - 1e-5)) / 2e-5
    assert future == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("theta", [0.2, 0.5, 0.83])
def test_future_reward_has_less_variance_than_total_reward(theta: float) -> None:
    _, total = mean_and_variance(gradients(episode_return, theta), theta)
    _, future = mean_and_variance(gradients(future_return, theta), theta)
    assert 0 < future < 0.9 * total


def columns(theta: float) -> Tensor:
    """The log pi(a_t) of all trajectories, [3, 8]."""
    value = torch.tensor(theta, dtype=torch.float64)
    return torch.cat([log_probabilities(value, actions) for actions in TRAJECTORIES], 1)


@pytest.mark.parametrize("new", [0.05, 0.4, 0.6, 0.95])
def test_reweighting_old_trajectories_gives_the_new_policys_averages(new: float) -> None:
    old = 0.4
    ratio = trajectory_ratio(columns(new), columns(old)).tolist()
    for quantity in ([sum(game(a)) for a in TRAJECTORIES], gradients(future_return, new), [1.0] * 8):
        reweighted = 0.0
        for actions, r, x in zip(TRAJECTORIES, ratio, quantity, strict=True):
            reweighted += probability(actions, old) * r * x
        assert reweighted == pytest.approx(mean_and_variance(quantity, new)[0], abs=1e-12)


def test_reweighting_is_worth_fewer_samples_the_further_the_policy_has_moved() -> None:
    sizes = [effective_sample_size(trajectory_ratio(columns(x), columns(0.5))).item() for x in (0.5, 0.6, 0.8, 0.95)]
    assert sizes[0] == pytest.approx(8)
    assert sizes == sorted(sizes, reverse=True)
    # one step at pi = 0.95 against 0.5: (1.9 + 0.1)^2 / (1.9^2 + 0.1^2) = 4 / 3.62; three steps: its cube
    assert sizes[3] == pytest.approx((4 / 3.62) ** 3)
