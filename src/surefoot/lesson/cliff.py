"""A policy with one parameter, small enough that every expectation is exact: the lesson's cliff.

An episode has twelve steps: walk on with probability sigmoid(theta), or stay. Walking on has reward 1, but the tenth
time leads over an edge and has reward -29. With `fall` 0 the path is level, and every step on is worth 1.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.algorithm.advantages import episode_return
from surefoot.algorithm.objectives import Objective, Reinforce, trajectory_ratio
from surefoot.models.distributions import Bernoulli
from surefoot.rng import Purpose, stream

STEPS, EDGE, FALL = 12, 10, 30.0
START, EPSILON = -0.4, 0.2


class Episodes(NamedTuple):
    """K episodes as columns."""

    action: Tensor  # [12, K] int64: 1 walked on, 0 stayed
    reward: Tensor  # [12, K]
    ended: Tensor  # [12, K] bool


def episodes_of(action: Tensor, fall: float = FALL) -> Episodes:
    """The episodes with these actions [12, K]."""
    walked = action.cumsum(0)
    reward = action.double() - fall * ((walked == EDGE) & (action == 1)).double()
    ended = torch.zeros_like(action, dtype=torch.bool)
    ended[-1] = True
    return Episodes(action, reward, ended)


@cache
def all_episodes(fall: float = FALL) -> Episodes:
    """Every possible episode, K = 4096."""
    number = torch.arange(2**STEPS)
    return episodes_of(torch.stack([(number >> t) & 1 for t in range(STEPS)]), fall)


def sample_episodes(theta: float, count: int, seed: int, fall: float = FALL) -> Episodes:
    """`count` episodes as the policy plays them."""
    noise = torch.from_numpy(stream(seed, Purpose.ACTIONS).random((STEPS, count)))
    return episodes_of(Bernoulli(torch.full_like(noise, theta)).sample(noise), fall)


@cache
def kinds(fall: float = FALL) -> tuple[Tensor, Tensor, Tensor]:
    """One episode for each number of steps walked, its return, and how many of all episodes are alike.

    Neither the return nor the probability depends on the order of the steps. Actions [12, 13], returns [13], counts
    [13].
    """
    every = all_episodes(fall)
    walked = every.action.sum(0)
    first = torch.stack([(walked == k).nonzero()[0, 0] for k in range(STEPS + 1)])
    total = episode_return(every.reward, every.ended, 1.0)[0]
    return every.action[:, first], total[first], walked.bincount().double()


def log_probability(theta: Tensor, action: Tensor) -> Tensor:
    """log pi(a) of every action [12, K] under each theta [...]: [12, K, ...]."""
    shape = (*action.shape, *theta.shape)
    return Bernoulli(theta.expand(shape)).log_prob(action.view(*action.shape, *[1] * theta.ndim).expand(shape))


def probability(theta: Tensor, action: Tensor) -> Tensor:
    """P(tau; theta) of episodes with these actions [12, K] under each theta [...]: [K, ...]."""
    logp = log_probability(theta, action)
    return trajectory_ratio(logp, torch.zeros_like(logp))


def average_reward(theta: Tensor, fall: float = FALL) -> Tensor:
    """Expected return under each theta [...]."""
    action, total, count = kinds(fall)
    mean: Tensor = torch.tensordot(count * total, probability(theta, action), 1)
    return mean


def model(theta: Tensor, old: Tensor, objective: Objective) -> Tensor:
    """The objective's estimate, from the old policy's episodes, of the expected return under each theta [...].

    It is exact at theta = `old` (scalar).
    """
    action, total, count = kinds()
    mean = average_reward(old)
    logp = log_probability(theta, action)
    logp_old, advantage = (
        x.reshape(*x.shape, *[1] * theta.ndim).expand_as(logp)
        for x in (log_probability(old, action), (total - mean).expand(action.shape))
    )
    gain = (objective(logp, logp_old, advantage) - advantage).sum(0)
    estimate: Tensor = mean + torch.tensordot(count * probability(old, action), gain, 1)
    return estimate


def ascend(objective: Objective, steps: int = 18, learning_rate: float = 0.05, start: float = START) -> list[Tensor]:
    """Gradient ascent on the objective from `start` with the same old episodes: theta after each step."""
    old = torch.tensor(start, dtype=torch.float64)
    path = [old.clone()]
    for _ in range(steps):
        theta = path[-1].clone().requires_grad_()
        model(theta, old, objective).backward()  # type: ignore[no-untyped-call]
        assert theta.grad is not None
        path.append(theta.detach() + learning_rate * theta.grad)
    return path


def step_gradients(theta: float, action: Tensor, advantage: Tensor) -> Tensor:
    """A_t d log pi(a_t) / d theta of every step [12, K]; a column's sum is REINFORCE's gradient from one episode."""
    each = torch.full(action.shape, theta, dtype=torch.float64, requires_grad=True)
    logp = Bernoulli(each).log_prob(action)
    Reinforce()(logp, logp.detach(), advantage).sum().backward()  # type: ignore[no-untyped-call]
    assert each.grad is not None
    return each.grad


def true_gradient(theta: float, fall: float = FALL) -> float:
    """The slope of the average reward."""
    x = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(average_reward(x, fall), x)[0])
