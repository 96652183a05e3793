"""The quiz on credit assignment: three steps of a game, questions, and answers that are computed, not stored."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import torch
from torch import Tensor

from surefoot.algorithm.advantages import episode_return, future_return
from surefoot.algorithm.objectives import Reinforce
from surefoot.errors import UserError
from surefoot.lesson.svg import number
from surefoot.models.distributions import Bernoulli
from surefoot.rng import Purpose, stream

THETA = 0.5
LESSON = ((0, 1, 0), (1.0, 0.0, 1.0))  # the third game of the lesson's quiz, which is the first here


def game(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Actions, rewards and ends [3, 1] of game number `seed`; 0 is the lesson's."""
    draws = stream(seed, Purpose.ACTIONS).integers((2, 2, 2, 3, 3, 3)).tolist()
    action, reward = LESSON if seed == 0 else (draws[:3], draws[3:])
    ended = torch.tensor([[False], [False], [True]])
    return torch.tensor(action)[:, None], torch.tensor(reward, dtype=torch.float64)[:, None], ended


def contributions(action: Tensor, advantage: Tensor) -> list[float]:
    """A_t d log pi(a_t) / d theta of each step, where pi(1) = theta, at theta = 1/2."""
    theta = torch.full(action.shape, THETA, dtype=torch.float64, requires_grad=True)
    logp = Bernoulli(theta.logit()).log_prob(action)
    Reinforce()(logp, logp.detach(), advantage).sum().backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    return [float(x) for x in theta.grad[:, 0]]


def answers(seed: int) -> dict[str, tuple[list[float], str]]:
    """What is right, by field: the numbers, and how they come about."""
    action, reward, ended = game(seed)
    future, total = (f(reward, ended, 1.0) for f in (future_return, episode_return))
    gradients = {}
    for name, advantage in (("future", future), ("total", total)):
        each = contributions(action, advantage)
        gradients[name] = [sum(each)], " + ".join(number(x) for x in each).replace("+ −", "− ")
    returns = future[:, 0].tolist()
    rewards = ", ".join(number(x) for x in reward[:, 0].tolist())
    return {"returns": (returns, f"sums of the rewards {rewards} from each step to the end"), **gradients}


def check(seed: int, given: Mapping[str, str]) -> dict[str, tuple[bool, str]]:
    """Whether each field is right, and a sentence on it; raises UserError for a field that holds no numbers."""
    verdicts = {}
    for name, (right, why) in answers(seed).items():
        text = given.get(name, "").replace("−", "-").replace(";", ",")
        try:
            numbers = [float(x) for x in text.split(",")]
        except ValueError:
            raise UserError(f"'{given.get(name, '')}' is no number: write numbers with commas between them") from None
        ok = len(numbers) == len(right) and all(abs(a - b) < 1e-6 for a, b in zip(numbers, right, strict=True))
        listed = ", ".join(number(x) for x in right)
        close = name != "returns" and not ok and len(numbers) == 1 and abs(numbers[0] + right[0]) < 1e-6
        says = f"Right: {why} = {listed}." if name != "returns" else f"Right: {listed}, {why}."
        if close:
            says = "The size is right, the sign is not: ∇log π(0) = −1 / (1 − θ) = −2, and ∇log π(1) = 1 / θ = 2."
        elif not ok and name == "returns":
            says = "Not yet: add up the rewards from each step to the end, this step's own included; three numbers."
        elif not ok:
            says = (
                f"Not yet: each step gives its {name} reward times ∇log π(a_t), which is 2 for action 1 and −2 for 0."
            )
        verdicts[name] = ok, says
    return verdicts


FIELDS = {
    "returns": "Future rewards R₁, R₂, R₃ (γ = 1)",
    "future": "Gradient of this game with future rewards, Σ R_t ∇log π(a_t)",
    "total": "The same with the total reward, Σ R ∇log π(a_t)",
}


def html(seed: int) -> str:
    """The quiz about one game as a form."""
    action, reward, _ = game(seed)
    rows = "".join(
        f"<tr><th scope='row'>{name}</th>" + "".join(f"<td>{number(float(x))}</td>" for x in values[:, 0]) + "</tr>"
        for name, values in (("action a_t", action), ("reward r_t", reward))
    )
    inputs = "".join(
        f'<p><label for="quiz-{name}">{escape(label)}</label><input id="quiz-{name}" name="{name}" inputmode="text" '
        f'autocomplete="off" aria-describedby="quiz-{name}-says"><span id="quiz-{name}-says" role="status"></span></p>'
        for name, label in FIELDS.items()
    )
    return (
        f'<form class="quiz" data-seed="{seed}"><table><tr><th scope="row">step t</th><th>1</th><th>2</th><th>3</th>'
        f"</tr>{rows}</table>{inputs}<button>check</button> "
        '<button type="button" class="another">another game</button></form>'
    )
