"""The figures on how good an action was: REINFORCE, noise, normalising, credit, the critic, GAE."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from surefoot.algorithm.advantages import episode_return, future_return, gae, normalize_over_games, td_error
from surefoot.lesson.cliff import (
    STEPS,
    Episodes,
    all_episodes,
    probability,
    sample_episodes,
    step_gradients,
    true_gradient,
)
from surefoot.lesson.svg import Axis, Mark, axis, number, plot
from surefoot.lesson.widgets import Again, Choice, Drawn, Figure, Slider

THETA = Slider("policy parameter θ", -2, 2.5, 0.1, 0.3)
REPEATS, LEVEL = 400, 0.0


def total(e: Episodes) -> Tensor:
    """Each episode's total reward, at each of its steps [12, K]."""
    return episode_return(e.reward, e.ended, 1.0)


def one_game(width: int, theta: float, seed: int) -> Drawn:
    """One episode, and the push that each of its actions gets from its total reward."""
    e = sample_episodes(theta, 1, seed, LEVEL)
    push = step_gradients(theta, e.action, total(e))[:, 0]
    steps, reward = np.arange(1, STEPS + 1), e.reward[:, 0]
    x = Axis("step t", 0.3, STEPS + 0.7)
    pictures = [
        plot([Mark("bars", steps, reward, "a", "reward r_t")], x, axis("reward", reward, low=0.0), width, height=200),
        plot(
            [Mark("bars", steps, push, "b", "push of this action, R ∇log π(a_t)")],
            x,
            axis("push on θ", push, low=0.0),
            width,
            height=200,
        ),
    ]
    result, true = float(push.sum()), true_gradient(theta, LEVEL)
    values = {
        "total reward R": number(float(reward.sum())),
        "gradient from this game": number(result),
        "true gradient": number(true),
    }
    verdict = "points the wrong way" if result * true < 0 else "is zero" if result == 0 else "points the right way"
    says = f"All twelve actions share R = {number(float(reward.sum()))}. The gradient from this one game {verdict}."
    return Drawn(pictures, values, says)


def estimates(theta: float, games: int, seed: int, normalized: bool = False, offset: float = 0.0) -> Tensor:
    """REINFORCE's gradient from the mean of `games` games, REPEATS times [REPEATS]."""
    e = sample_episodes(theta, REPEATS * games, seed, LEVEL)
    advantage = total(e) + offset
    if normalized:
        rows = advantage.view(STEPS, REPEATS, games).flatten(0, 1)
        advantage = normalize_over_games(rows).view(STEPS, -1)
    return step_gradients(theta, e.action, advantage).sum(0).view(REPEATS, games).mean(1)


def histogram(x: Tensor, low: float, high: float, bins: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Middles of the bins, and the share of the numbers in each."""
    count, edges = np.histogram(x.numpy(), bins, (low, high))
    return (edges[1:] + edges[:-1]) / 2, count / len(x)


def noise(width: int, theta: float, games: float, seed: int) -> Drawn:
    """The distribution of the gradient's estimate from N parallel games."""
    gradients, true = estimates(theta, int(games), seed), true_gradient(theta, LEVEL)
    reach = 4 * float(estimates(theta, 1, 1).std())
    middle, share = histogram(gradients, true - reach, true + reach)
    marks = [
        Mark("bars", middle, share, "a", f"estimates from N = {int(games)}"),
        Mark("rule", [true], None, "b", "true gradient"),
        Mark("rule", [0.0], None, "grey"),
    ]
    x, y = Axis("gradient", true - reach, true + reach), axis("share of estimates", share, low=0.0)
    wrong = float((gradients * true < 0).double().mean())
    values = {
        "true gradient": number(true),
        "standard deviation of the estimate": number(float(gradients.std())),
        "estimates with the wrong sign": f"{100 * wrong:.0f} %",
    }
    many = f"{int(games)} games in parallel" if games > 1 else "one game"
    says = f"With {many}, {100 * wrong:.0f} of 100 estimates would move θ the wrong way."
    return Drawn([plot(marks, x, y, width)], values, says)


def normalizing(width: int, theta: float, games: float, offset: float, seed: int) -> Drawn:
    """The returns of a few parallel games, what they are worth beside each other, and what that does to the noise."""
    n = int(games)
    e = sample_episodes(theta, n, seed, LEVEL)
    returns = total(e) + offset
    advantage = normalize_over_games(returns)
    x, at = Axis("game", 0.3, n + 0.7), np.arange(1, n + 1)
    pictures = [
        plot([Mark("bars", at, returns[0], "a", "R")], x, axis("return R", returns[0], low=0.0), width, height=190),
        plot(
            [Mark("bars", at, advantage[0], "b", "A = (R − mean) / σ over the games")],
            x,
            Axis("advantage A", -3.2, 3.2),
            width,
            height=190,
        ),
    ]
    true, wrong = true_gradient(theta, LEVEL), []
    for normalized in (False, True):
        gradients = estimates(theta, n, seed, normalized, offset)
        wrong.append(f"{100 * float((gradients * true < 0).double().mean()):.0f} %")
    values = {
        "mean of R": number(float(returns[0].mean())),
        "σ of R": number(float(returns[0].std(correction=0))),
        "wrong sign, raw R": wrong[0],
        "wrong sign, normalised": wrong[1],
    }
    equal = not advantage.any()
    says = (
        "All games went alike: there is nothing to compare, so σ is 0 and every advantage is 0."
        if equal
        else f"Raw returns move θ the wrong way in {wrong[0]} of the estimates, normalised ones in {wrong[1]}."
    )
    return Drawn(pictures, values, says)


@cache
def everything(theta: float) -> tuple[Episodes, Tensor]:
    """All episodes and their probabilities [4096]."""
    e = all_episodes(LEVEL)
    return e, probability(torch.tensor(theta, dtype=torch.float64), e.action)


def spread(theta: float, advantage: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, both exact, of the gradient from one game."""
    e, p = everything(theta)
    gradient = step_gradients(theta, e.action, advantage).sum(0)
    mean = (p * gradient).sum()
    return float(mean), float((p * (gradient - mean).square()).sum().sqrt())


def credit(width: int, theta: float, gamma: float, seed: int) -> Drawn:
    """Total against future reward, at each step of one game, and the spread of the gradient from either."""
    e = sample_episodes(theta, 1, seed, LEVEL)
    future, whole = future_return(e.reward, e.ended, gamma)[:, 0], total(e)[:, 0]
    steps = np.arange(1, STEPS + 1)
    marks = [
        Mark("bars", steps, e.reward[:, 0], "grey", "reward r_t"),
        Mark("line", steps, whole, "a", "total reward R", dashed=True),
        Mark("line", steps, future, "b", "future reward R_t"),
        Mark("dots", steps, future, "b"),
    ]
    picture = plot(marks, Axis("step t", 0.3, STEPS + 0.7), axis("reward", e.reward, future, whole, low=0.0), width)
    every, _ = everything(theta)
    mean_total, std_total = spread(theta, total(every))
    mean_future, std_future = spread(theta, future_return(every.reward, every.ended, gamma))
    values = {
        "mean gradient, total reward": number(mean_total),
        "mean gradient, future reward": number(mean_future),
        "σ of one game's gradient, total": number(std_total),
        "σ of one game's gradient, future": number(std_future),
    }
    compared = "the same on average" if abs(mean_future - mean_total) < 1e-9 else "another on average"
    less = 100 * (1 - (std_future / std_total) ** 2)
    word = "less" if less >= 0 else "more"
    says = f"The gradient from future rewards is {compared}, and has {abs(less):.0f} % {word} variance."
    return Drawn([picture], values, says)


REWARDS = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
CRITIC = (0.4, 0.6, 0.9, 0.1, -0.1, -0.4, -0.7, 0.2, 0.3, 0.3, 0.6, 0.5, 0.9, 1.1, 1.4, 0.8)
AFTER = 0.9  # V of what would have followed the last step


def gae_figure(width: int, gamma: float, gae_lambda: float, ending: str) -> Drawn:
    """TD errors and generalised advantages of one episode."""
    reward, value = (torch.tensor(x, dtype=torch.float64)[:, None] for x in (REWARDS, CRITIC))
    terminated, ended = torch.zeros(reward.shape, dtype=torch.bool), torch.zeros(reward.shape, dtype=torch.bool)
    ended[-1], terminated[-1] = True, ending == "the game is over"
    next_value = torch.cat((value[1:], torch.full((1, 1), AFTER, dtype=torch.float64)))
    delta = td_error(reward, value, next_value, terminated, gamma)[:, 0]
    advantage = gae(reward, value, next_value, terminated, ended, gamma, gae_lambda)[:, 0]
    steps = np.arange(1, len(REWARDS) + 1)
    x = Axis("step t", 0.3, len(REWARDS) + 0.7)
    top = [
        Mark("bars", steps, reward[:, 0], "grey", "reward r_t"),
        Mark("line", steps, value[:, 0], "a", "critic V(s_t)"),
        Mark("dots", steps, value[:, 0], "a"),
    ]
    bottom = [
        Mark("bars", steps, advantage, "b", "advantage A_t"),
        Mark("dots", steps, delta, "c", "TD error δ_t"),
    ]
    pictures = [
        plot(top, x, Axis("reward, value", -1.3, 1.7), width, height=210),
        plot(bottom, x, Axis("advantage", -2.6, 2.6), width, height=230),
    ]
    values = {
        "A of the first action": number(float(advantage[0])),
        "A of the last action": number(float(advantage[-1])),
        "reach of a TD error, 1 / (1 − γλ)": number(1 / (1 - gamma * gae_lambda)) + " steps"
        if gamma * gae_lambda < 1
        else "the whole episode",
    }
    if gae_lambda == 0:
        says = "λ = 0: the advantage is the TD error alone. Little noise, but it believes the critic in everything."
    elif gae_lambda == 1:
        says = "λ = 1: the advantage is the whole return minus V. The critic's errors cancel, the game's noise stays."
    else:
        says = f"Each TD error is handed back with factor γλ = {number(gamma * gae_lambda)} a step."
    return Drawn(pictures, values, says)


@cache
def true_values(theta: float) -> Tensor:
    """V before every step of every episode, and after the last [13, 4096]: the mean of what is still to come.

    It depends on how many steps were walked: averaged over all episodes that agree in that.
    """
    e, p = everything(theta)
    future = future_return(e.reward, e.ended, 1.0)
    walked = torch.cat((torch.zeros_like(e.action[:1]), e.action.cumsum(0)))
    value = torch.zeros(walked.shape, dtype=torch.float64)
    for t in range(STEPS):
        weight = torch.zeros(STEPS + 1, dtype=torch.float64).index_add_(0, walked[t], p)
        sums = torch.zeros(STEPS + 1, dtype=torch.float64).index_add_(0, walked[t], p * future[t])
        value[t] = (sums / weight.clamp(min=1e-300))[walked[t]]
    return value


def bias(width: int, theta: float, error: float, gae_lambda: float) -> Drawn:
    """Bias and spread of GAE for the first action, against lambda, with a critic that is wrong by a fixed amount."""
    e, p = everything(theta)
    mistake = error * torch.from_numpy(np.sin(np.arange(STEPS + 1) * 2.1))[:, None]  # 0 at the first step
    value = true_values(theta) + mistake
    value[-1] = 0.0
    first = e.action[0] == 1
    weight = p[first] / p[first].sum()

    def measure(at: float) -> tuple[float, float]:
        a = gae(e.reward, value[:-1], value[1:], torch.zeros_like(e.ended), e.ended, 1.0, at)[0, first]
        mean = float((weight * a).sum())
        return mean, float((weight * (a - mean).square()).sum().sqrt())

    exact = float((weight * true_values(theta)[1, first]).sum()) + 1.0 - float(true_values(theta)[0, 0])
    grid = np.linspace(0, 1, 21)
    means, stds = zip(*(measure(float(x)) for x in grid), strict=True)
    off = np.abs(np.array(means) - exact)
    mean, std = measure(gae_lambda)
    marks = [
        Mark("line", grid, off, "b", "bias: |mean of A − true advantage|"),
        Mark("line", grid, stds, "a", "spread σ of A"),
        Mark("line", grid, np.hypot(off, stds), "c", "both together, root of the mean square error", dashed=True),
        Mark("rule", [gae_lambda], None, "grey"),
    ]
    picture = plot(marks, Axis("λ", 0, 1), axis("error of the advantage", off, stds, low=0.0), width)
    best = float(grid[np.hypot(off, stds).argmin()])
    values = {"true advantage": number(exact), "mean of A": number(mean), "σ of A": number(std)}
    says = f"With this critic the mean square error is least near λ = {number(best)}."
    return Drawn([picture], values, says)


FIGURES = {
    "one-game": Figure(
        "Twelve steps on a level path: walking on has reward 1, staying 0. All actions share the total reward.",
        {"theta": THETA, "seed": Again("play another game")},
        one_game,
    ),
    "noise": Figure(
        f"{REPEATS} estimates of the gradient, each the mean over N games of R Σ ∇log π.",
        {"games": Slider("parallel games N", 1, 64, 1, 1), "theta": THETA, "seed": Again("other games")},
        noise,
    ),
    "normalizing": Figure(
        "The same games before and after normalize_over_games. Move the offset: raw returns care, advantages do not.",
        {
            "offset": Slider("added to every return", -20, 20, 1, 10),
            "games": Slider("parallel games", 2, 16, 1, 8),
            "theta": THETA,
            "seed": Again("other games"),
        },
        normalizing,
    ),
    "credit": Figure(
        "One game. Mean and spread of the gradient are exact, from all 4,096 games there are.",
        {"gamma": Slider("discount γ", 0, 1, 0.01, 1), "theta": THETA, "seed": Again("another game")},
        credit,
    ),
    "gae": Figure(
        "An episode of sixteen steps with its critic; the advantages are computed by advantages.gae.",
        {
            "gamma": Slider("discount γ", 0.5, 1, 0.01, 0.99),
            "gae_lambda": Slider("λ", 0, 1, 0.01, 0.95),
            "ending": Choice("after the last step", ("the game is over", "the game goes on (truncated)")),
        },
        gae_figure,
    ),
    "bias": Figure(
        "The advantage of walking on in the first step, over all 4,096 games, with a critic that is wrong.",
        {
            "error": Slider("error of the critic", 0, 4, 0.1, 1),
            "gae_lambda": Slider("λ", 0, 1, 0.05, 0.95),
            "theta": Slider("policy parameter θ", -2, 2.5, 0.1, 0.3),
        },
        bias,
    ),
}
