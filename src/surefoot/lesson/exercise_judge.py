"""How a learner's function is judged: by its answers to cases, beside the right ones and those of known mistakes.

A law is a case whose right answer shows it. A mistake is a wrong function, or the right one with changed arguments; it
is recognised where the learner's answers are its answers in every case.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import UserError
from surefoot.lesson.exercises import Verdict

Args = dict[str, Any]
RTOL = 1e-4  # of the largest right number: single precision, sums in any order


@dataclass(frozen=True)
class Law:
    """A sentence, the arguments of the case that shows it, and the mistake it gives away by itself."""

    sentence: str
    args: Args
    mistake: tuple[str, str] = ("", "")
    """name and explanation, where no particular wrong answer but any wrong answer here is this mistake"""


@dataclass(frozen=True)
class Mistake:
    """A known mistake, as a function, or as a change of the arguments of the right one."""

    name: str
    message: str
    function: Callable[..., Tensor] | None = None
    change: Callable[[Args], Args] = dict


@dataclass
class Outcome:
    """The results of a function, one tensor or more for each case, and which tensor is what."""

    numbers: dict[str, Tensor]

    def agrees(self, other: Outcome) -> bool:
        """Whether all numbers are the same, up to rounding."""
        return all(_same(other.numbers[k], x) for k, x in self.numbers.items())


@dataclass
class Answer:
    """An exercise: the right function, its laws and the known mistakes."""

    right: Callable[..., Tensor]
    laws: tuple[Law, ...]
    mistakes: tuple[Mistake, ...]
    expected: list[Outcome] = field(default_factory=list)
    wrong: list[tuple[list[Mistake], list[Outcome]]] = field(default_factory=list)

    def expect(self) -> None:
        """Compute the right answers, and those of each mistake and of each two that can be made together."""
        self.expected = [run(self.right, {"detached": True, **law.args}) for law in self.laws]
        single = [[m] for m in self.mistakes]
        pairs = [list(p) for p in itertools.combinations(self.mistakes, 2) if not (p[0].function and p[1].function)]
        for made in single + pairs:
            function = next((m.function for m in made if m.function), self.right)
            outcomes = []
            for law in self.laws:
                args = {"detached": True, **law.args}
                for mistake in made:
                    args = mistake.change(args)
                outcomes.append(run(function, args))
            self.wrong.append((made, outcomes))


def _same(mine: Tensor, right: Tensor) -> bool:
    return mine.shape == right.shape and torch.allclose(mine, right, RTOL, _tolerance(right), equal_nan=True)


def _tolerance(x: Tensor) -> float:
    return RTOL * max(x[x.isfinite()].abs().tolist(), default=0.0)


def run(function: Callable[..., Any], args: Args) -> Outcome:
    """Call a function with copies of the arguments; `theta`, if any, is what probabilities and gradients are of.

    `old_probs` that are not given come from theta too, with a gradient unless `detached` is. Raises UserError where
    what the function returns is no number or array of numbers, or where it changes an argument.
    """
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in args.items()}
    theta, detached = given.pop("theta", None), given.pop("detached", False)
    if theta is not None:
        theta.requires_grad_()
        old = given.pop("old_probs", theta.sigmoid())
        given = {"new_probs": theta.sigmoid(), "old_probs": old.detach() if detached else old, **given}
    before = {k: v.detach().clone() for k, v in given.items() if isinstance(v, Tensor)}
    result = function(*given.values())
    for name, x in before.items():
        if not torch.equal(given[name], x):
            raise UserError(f"it changes its argument {name}: work on a copy, as with {name}.clone()")
    if result is None:
        raise UserError("it returns nothing: is a `return` missing?")
    try:
        value = result if isinstance(result, Tensor) else torch.as_tensor(result)
        numbers = {"": value.detach().float()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"it returns {type(result).__name__}, which is no array of numbers") from error
    if theta is not None:
        gradient = torch.zeros_like(theta)
        if value.requires_grad and value.numel() == 1:
            gradient = torch.autograd.grad(value.sum(), theta, allow_unused=True)[0]
            gradient = torch.zeros_like(theta) if gradient is None else gradient
        numbers["gradient"] = gradient
    return Outcome(numbers)


def judge(answer: Answer, function: Callable[..., Any]) -> list[Verdict]:
    """The verdicts on a learner's function; what it raises is raised."""
    if not answer.expected:
        answer.expect()
    try:
        results = [run(function, law.args) for law in answer.laws]
    except UserError as error:
        return [Verdict("it runs", False, str(error))]
    laws = []
    for law, mine, right in zip(answer.laws, results, answer.expected, strict=True):
        passed = right.agrees(mine)
        laws.append(Verdict(law.sentence, passed, "" if passed else difference(mine, right)))
    broken = [not v.passed for v in laws]
    mistakes = _recognised(answer, results, broken) if any(broken) else []
    return [Verdict("known mistake", False, message, name) for name, message in mistakes] + laws


def _recognised(answer: Answer, results: list[Outcome], broken: list[bool]) -> list[tuple[str, str]]:
    """Names and explanations of the mistakes that explain these results."""
    telling = dict.fromkeys(law.mistake for law, wrong in zip(answer.laws, broken, strict=True) if wrong)
    named = [mistake for mistake in telling if mistake[0]]
    plain = [i for i, law in enumerate(answer.laws) if not law.mistake[0]]
    if any(broken[i] for i in plain):
        for made, outcomes in answer.wrong:
            if all(outcomes[i].agrees(results[i]) for i in plain):
                return [(m.name, m.message) for m in made] + named
    return named


def difference(mine: Outcome, right: Outcome) -> str:
    """Where the learner's numbers first differ from the right ones."""
    for what, x in right.numbers.items():
        y = mine.numbers[what]
        if x.shape != y.shape:
            return f"it returns the shape {list(y.shape)}; right is {list(x.shape)}{'' if x.ndim else ', one number'}"
        if not _same(y, x):
            off = (~torch.isclose(y, x, RTOL, _tolerance(x))).nonzero()
            at = off[0].tolist() if x.ndim else []
            where = f" at t = {at[0]}, n = {at[1]}" if at else ""
            of = "the gradient for the policy's parameter" if what else "the result"
            return f"{of}{where} is {float(y[tuple(at)]):.4g}; right is {float(x[tuple(at)]):.4g}"
    return ""
