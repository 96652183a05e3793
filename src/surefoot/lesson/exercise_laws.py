"""The laws of the exercises and the known mistakes: right and wrong answers, both made of the package's functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from surefoot.algorithm.advantages import (
    discounted_sum,
    episode_return,
    future_return,
    gae,
    normalize_over_batch,
    normalize_over_games,
    td_error,
)
from surefoot.algorithm.objectives import ClippedSurrogate, Reinforce, Surrogate
from surefoot.lesson.exercise_judge import Answer, Args, Law, Mistake


@cache
def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _ended(*at: tuple[int, int], shape: tuple[int, int] = (6, 3)) -> Tensor:
    ended = torch.zeros(shape, dtype=torch.bool)
    for t, n in at:
        ended[t, n] = True
    return ended


def _without_ends(args: Args) -> Args:
    return args | {"ended": torch.zeros_like(args["ended"])}


NEVER, TWICE = _ended(), _ended((2, 0), (5, 0), (1, 2), (2, 2))
OVER_THE_END = "the next row belongs to another episode there: multiply what follows by (1 - ended)"


def _from_start(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """`advantages.future_return_from_start`, which knows no endings, with them."""
    power = gamma ** torch.arange(len(reward), dtype=reward.dtype)
    return future_return(reward, ended, gamma) * power[:, None]


NOT_REBASED = (
    "discount not re-based",
    "gamma^k counts from the start of the trajectory, so later actions are worth less; count it from the action, "
    "gamma^(k - t). (The lesson's own code does this, and normalising each step over the games makes up for it.)",
)
FUTURE_RETURN = Answer(
    future_return,
    (
        Law(
            "with gamma = 1 it is what is still to come: rewards (1, 0, 1) give (2, 1, 1)",
            {
                "reward": torch.tensor([[1.0], [0.0], [1.0]]),
                "ended": _ended((2, 0), shape=(3, 1)),
                "gamma": 1.0,
            },
        ),
        Law("with gamma = 0 it is the reward itself", {"reward": _random(1, 6, 3), "ended": NEVER, "gamma": 0.0}),
        Law("a reward k steps ahead counts gamma^k", {"reward": _random(2, 6, 3), "ended": NEVER, "gamma": 0.9}),
        Law("an episode's end cuts the sum", {"reward": _random(3, 6, 3), "ended": TWICE, "gamma": 0.9}),
    ),
    (
        Mistake("sum over all instead of future", "what came before the action is not its doing", episode_return),
        Mistake(*NOT_REBASED, _from_start),
        Mistake("not discounted", "gamma is left out", change=lambda a: a | {"gamma": 1.0}),
        Mistake("summed over an episode's end", OVER_THE_END, change=_without_ends),
        Mistake(
            "the action's own reward left out",
            "the sum begins with r_t itself",
            lambda reward, ended, gamma: future_return(reward, ended, gamma) - reward,
        ),
        Mistake(
            "the past instead of the future",
            "the sum runs from t to the end, not from the start to t",
            lambda reward, ended, gamma: future_return(reward.flip(0), ended, gamma).flip(0),
        ),
    ),
)


def _scaled(x: Tensor, power: int) -> Tensor:
    """Rows without their mean, times sigma^power."""
    return (x - x.mean(1, keepdim=True)) * x.std(1, correction=0, keepdim=True) ** power


def _of_one_less(x: Tensor) -> Tensor:
    n = x.shape[1]
    return normalize_over_games(x) * (1.0 if n < 2 else ((n - 1) / n) ** 0.5)


SIGMA_0 = (
    "normalising where sigma is 0",
    "where all games have the same return sigma is 0, or what rounding leaves of 0, and dividing by it gives nan or "
    "numbers out of nothing: compare the largest with the smallest and return zeros there",
)
SPREAD = _random(4, 5, 6) * torch.tensor([[0.1], [1.0], [10.0], [1.0], [3.0]]) + torch.arange(5.0)[:, None]
NORMALIZE = Answer(
    normalize_over_games,
    (
        Law("every step has mean 0 and mean square 1 over the games", {"advantage": SPREAD}),
        Law("two games are at +1 and -1", {"advantage": torch.tensor([[3.0, 1.0], [-7.0, 8.0]])}),
        Law(
            "where all games agree there are zeros",
            {"advantage": torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])},
            SIGMA_0,
        ),
        Law(
            "so there are where they agree up to rounding",
            {"advantage": torch.tensor([[0.1], [0.7]]).repeat(1, 9)},
            SIGMA_0,
        ),
    ),
    (
        Mistake(
            "over the whole batch",
            "each step is compared with the same step of the other games: mean and sigma over dimension 1",
            normalize_over_batch,
        ),
        Mistake(
            "over time instead of games",
            "a column is one game after another step: mean and sigma over dimension 1, the games",
            lambda x: normalize_over_games(x.T).T,
        ),
        Mistake("sigma with N - 1", "torch's std divides by N - 1 unless told `correction=0`", _of_one_less),
        Mistake("not divided by sigma", "the mean is taken off, the spread is left", lambda x: _scaled(x, 0)),
        Mistake("divided by the variance", "sigma is its square root", lambda x: _scaled(x, -2)),
        Mistake(
            "the mean is left",
            "take the mean over the games off before dividing",
            lambda x: x / x.std(1, correction=0, keepdim=True),
        ),
    ),
)


def _mean(objective: type[Reinforce | Surrogate | ClippedSurrogate]) -> Callable[..., Tensor]:
    """An objective of log probabilities, as the mean over probabilities."""
    return lambda new, old, a, *epsilon: objective(*epsilon)(new.log(), old.log(), a).mean()


def _of_ratio(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mean of a formula of (ratio, advantage[, epsilon])."""
    return lambda new, old, *rest: formula(new / old, *rest).mean()


def _clip(ratio: Tensor, epsilon: float) -> Tensor:
    return ratio.clamp(1 - epsilon, 1 + epsilon)


LOG_OF_OLD = (
    "log of the old probabilities",
    "they are constants, so nothing can be learned from them: the new ones belong above, the old ones below",
)


def _shared(right: Callable[..., Tensor]) -> tuple[Mistake, ...]:
    """The mistakes that both surrogates know."""
    return (
        Mistake(*LOG_OF_OLD, lambda *args: (args[1].log() * args[2]).mean()),
        Mistake(*LOG_OF_OLD, lambda new, old, a, *_: (new / old.log() * a).mean()),
        Mistake(
            "no gradient through the ratio",
            "its value is right, but the new probabilities have lost their gradient (detach, no_grad, numpy or item)",
            lambda new, *rest: right(new.detach(), *rest),
        ),
        Mistake(
            "log of the new probabilities",
            "that is REINFORCE: old games need the ratio new / old",
            lambda new, old, a, *_: _mean(Reinforce)(new, old, a),
        ),
        Mistake(
            "the ratio upside down",
            "new probabilities above, old ones below",
            lambda new, old, *rest: right(old, new, *rest),
        ),
        Mistake(
            "the sum instead of the mean",
            "divide by the number of actions, or a longer game takes larger steps",
            lambda new, old, a, *rest: right(new, old, a, *rest) * a.numel(),
        ),
        Mistake(
            "a loss instead of an objective",
            "it is to be maximised: the minus sign belongs to the loss",
            lambda *args: -right(*args),
        ),
        Mistake(
            "no detach of the old probabilities",
            "where they come from the network itself their gradient cancels that of the new ones: old_probs.detach()",
            change=lambda a: a | {"detached": False},
        ),
    )


def _policies(spread: float, **more: Any) -> Args:
    """Two policies whose ratios lie about 1, on both sides of the advantage."""
    theta = _random(5, 5, 4)
    old = (theta + spread * _random(6, 5, 4)).sigmoid()
    return {"theta": theta, "old_probs": old, "advantage": _random(7, 5, 4), **more}


def _same_policy(**more: Any) -> Args:
    return {"theta": _random(5, 5, 4), "advantage": _random(7, 5, 4), **more}


WITH_GRADIENT = "old probabilities that come with a gradient are constants all the same"
SURROGATE = Answer(
    _mean(Surrogate),
    (
        Law("an action that became more probable counts more: r A, and its gradient", _policies(0.7)),
        Law("near the old policy it is the mean advantage, and its gradient REINFORCE's", _policies(1e-3)),
        Law(WITH_GRADIENT, _same_policy()),
    ),
    _shared(_mean(Surrogate)),
)

CLIP_WITHOUT_R = ("clip without R", "the clipped ratio has to be multiplied by the reward (the advantage) as well")
CLIPPED_SURROGATE = Answer(
    _mean(ClippedSurrogate),
    (
        Law("r A within the clip range, flat where A would gain beyond it", _policies(0.7, epsilon=0.2)),
        Law("another clip range", _policies(0.7, epsilon=0.05)),
        Law(
            "a bad action that became more probable is not clipped",
            {
                "theta": torch.tensor([[1.0, 1.0]]),
                "old_probs": torch.tensor([[0.5, 0.5]]),
                "advantage": torch.tensor([[-1.0, 1.0]]),
                "epsilon": 0.1,
            },
        ),
        Law(WITH_GRADIENT, _same_policy(epsilon=0.1)),
    ),
    (
        Mistake(
            "min(ratio, clip) R",
            "the smaller of r A and clip(r) A is meant: for a negative A it is the other one of the two ratios",
            _of_ratio(lambda r, a, epsilon: r.minimum(_clip(r, epsilon)) * a),
        ),
        Mistake(*CLIP_WITHOUT_R, _of_ratio(lambda r, a, epsilon: (r * a).minimum(_clip(r, epsilon)))),
        Mistake(*CLIP_WITHOUT_R, _of_ratio(lambda r, _, epsilon: _clip(r, epsilon))),
        Mistake(*CLIP_WITHOUT_R, _of_ratio(lambda r, _, epsilon: r.minimum(_clip(r, epsilon)))),
        Mistake(
            "clip(r) A without the minimum",
            "a bad action that became more probable has to be pushed back, however far it is: min(r A, clip(r) A)",
            _of_ratio(lambda r, a, epsilon: _clip(r, epsilon) * a),
        ),
        Mistake(
            "the maximum instead of the minimum",
            "the objective is a lower bound: it must promise less, not more",
            _of_ratio(lambda r, a, epsilon: (r * a).maximum(_clip(r, epsilon) * a)),
        ),
        Mistake(
            "not clipped",
            "that is the surrogate: clip(r, 1 - epsilon, 1 + epsilon) is missing",
            _of_ratio(lambda r, a, _: r * a),
        ),
        *_shared(_mean(ClippedSurrogate)),
    ),
)


def _steps(seed: int, terminated: Tensor, ended: Tensor, gamma: float = 0.9, gae_lambda: float = 0.8) -> Args:
    reward, value, next_value = (_random(seed + i, 6, 3) for i in range(3))
    within = ~ended[:-1]
    next_value = next_value.clone()
    next_value[:-1][within] = value[1:][within]  # elsewhere the next row is another episode's
    args = {"reward": reward, "value": value, "next_value": next_value, "terminated": terminated, "ended": ended}
    return args | {"gamma": gamma, "gae_lambda": gae_lambda}


def _next_row(args: Args) -> Args:
    return args | {"next_value": torch.cat((args["value"][1:], args["next_value"][-1:]))}


def _gamma_once(*args: Any) -> Tensor:
    reward, value, next_value, terminated, ended, gamma, gae_lambda = args
    return discounted_sum(td_error(reward, value, next_value, terminated, gamma), gae_lambda * (~ended).float())


GAE = Answer(
    gae,
    (
        Law("with lambda = 0 it is the TD error", _steps(10, NEVER, NEVER, gae_lambda=0.0)),
        Law(
            "with lambda = 1 and no critic (V = 0) it is the future return",
            _steps(20, TWICE, TWICE, gae_lambda=1.0) | {k: torch.zeros(6, 3) for k in ("value", "next_value")},
        ),
        Law("TD errors k steps ahead count (gamma lambda)^k", _steps(30, NEVER, NEVER)),
        Law("nothing follows a termination", _steps(40, TWICE, TWICE)),
        Law("after a truncation V of what would have followed counts", _steps(50, NEVER, TWICE)),
        Law("many episodes, both endings", _steps(60, TWICE & (_random(8, 6, 3) > -0.5), TWICE, 0.99, 0.95)),
    ),
    (
        Mistake(
            "bootstrapping over a termination",
            "the task is over there, the future is worth 0: gamma V(s_{t+1}) counts only where not terminated",
            change=lambda a: a | {"terminated": torch.zeros_like(a["terminated"])},
        ),
        Mistake(
            "no bootstrap at a truncation",
            "the episode was only cut short there: V(s_{t+1}) still counts; `terminated`, not `ended`, decides",
            change=lambda a: a | {"terminated": a["ended"]},
        ),
        Mistake("summed over an episode's end", OVER_THE_END, change=_without_ends),
        Mistake(
            "the next row's value at an episode's end",
            "value[t + 1] belongs to another episode there: next_value[t] is that of the true successor",
            change=_next_row,
        ),
        Mistake("lambda left out", "A_{t+1} counts gamma lambda", change=lambda a: a | {"gae_lambda": 1.0}),
        Mistake("gamma left out of the sum", "A_{t+1} counts gamma lambda", _gamma_once),
        Mistake("not discounted", "gamma is left out", change=lambda a: a | {"gamma": 1.0}),
        Mistake(
            "V(s_t) not subtracted",
            "an advantage says how much better it went than V(s_t) expected",
            change=lambda a: a | {"value": torch.zeros_like(a["value"])},
        ),
        Mistake(
            "returns instead of advantages",
            "advantage plus value is the critic's target",
            lambda reward, value, *rest: gae(reward, value, *rest) + value,
        ),
    ),
)

ANSWERS = {
    "future_return": FUTURE_RETURN,
    "normalize": NORMALIZE,
    "surrogate": SURROGATE,
    "clipped_surrogate": CLIPPED_SURROGATE,
    "gae": GAE,
}
