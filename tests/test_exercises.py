"""The exercises: right answers pass, each known mistake gets its name, and the learner's code can do no harm."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from surefoot.commands.cli import main
from surefoot.errors import UserError
from surefoot.lesson import exercise_worker as worker
from surefoot.lesson import exercises
from surefoot.lesson.exercise_judge import judge
from surefoot.lesson.exercise_laws import ANSWERS
from surefoot.lesson.exercises import EXERCISES, check, template

FUTURE = """
def future_return(reward, ended, gamma):
    future, later = reward.clone(), 0.0
    for t in reversed(range(len(reward))):
        future[t] = later = reward[t] + gamma * later * ~ended[t]
    return future
"""
NORMALIZE = """
def normalize(x):
    mean, sigma = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=0)
    return torch.where(x.amax(1, keepdim=True) == x.amin(1, keepdim=True), torch.zeros(()), (x - mean) / sigma)
"""
SURROGATE = """
def surrogate(new_probs, old_probs, advantage):
    ratio = new_probs / old_probs.detach()
    return torch.mean(ratio * advantage)
"""
CLIPPED = """
def clipped_surrogate(new_probs, old_probs, advantage, epsilon):
    ratio = new_probs / old_probs.detach()
    clip = torch.clamp(ratio, 1 - epsilon, 1 + epsilon)
    return torch.mean(torch.min(ratio * advantage, clip * advantage))
"""
GAE = """
def gae(reward, value, next_value, terminated, ended, gamma, gae_lambda):
    advantage, later = torch.zeros_like(reward), 0.0
    for t in reversed(range(len(reward))):
        delta = reward[t] + gamma * next_value[t] * ~terminated[t] - value[t]
        advantage[t] = later = delta + gamma * gae_lambda * later * ~ended[t]
    return advantage
"""
RIGHT = {
    "future_return": FUTURE,
    "normalize": NORMALIZE,
    "surrogate": SURROGATE,
    "clipped_surrogate": CLIPPED,
    "gae": GAE,
}
DETACH, BOOTSTRAP = "no detach of the old probabilities", "bootstrapping over a termination"
MISTAKES = [  # exercise, what is written instead of what, names of the mistakes
    ("future_return", "return future", "return future[0].expand_as(reward)", None),  # of the first episode alone
    (
        "future_return",
        "return future",
        "return (gamma ** torch.arange(len(reward))[:, None] * reward).sum(0).expand_as(reward)",
        ["sum over all instead of future", "summed over an episode's end"],
    ),
    (
        "future_return",
        "return future",
        "[future[t].copy_(torch.where(ended[t - 1], future[t], future[t - 1])) for t in range(1, len(future))]\n"
        "    return future",
        ["sum over all instead of future"],
    ),
    (
        "future_return",
        "return future",
        "return torch.stack([sum(gamma**k * reward[k] for k in range(t, len(reward))) for t in range(len(reward))])",
        ["discount not re-based", "summed over an episode's end"],
    ),
    (
        "future_return",
        "return future",
        "return future * (gamma ** torch.arange(len(reward)))[:, None]",
        ["discount not re-based"],
    ),
    ("future_return", "later * ~ended[t]", "later", ["summed over an episode's end"]),
    ("future_return", "gamma * later", "later", ["not discounted"]),
    (
        "normalize",
        "torch.where",
        "(x - mean) / sigma if sigma is not x else (lambda *x: x)",
        ["normalising where sigma is 0"],
    ),
    (
        "normalize",
        "mean, sigma =",
        "mean, sigma = x.mean(), x.std(correction=0) #",
        ["over the whole batch"],
    ),
    ("normalize", ", correction=0", "", ["sigma with N - 1"]),
    ("normalize", "- mean) / sigma", "- mean)", ["not divided by sigma"]),
    ("surrogate", "ratio * advantage", "torch.log(old_probs) * advantage", ["log of the old probabilities", DETACH]),
    ("surrogate", "ratio * advantage", "torch.log(old_probs.detach()) * advantage", ["log of the old probabilities"]),
    ("surrogate", "ratio * advantage", "torch.log(new_probs) * advantage", ["log of the new probabilities"]),
    ("surrogate", "ratio * advantage", "ratio.detach() * advantage", ["no gradient through the ratio"]),
    (
        "surrogate",
        "torch.mean(ratio * advantage)",
        "(ratio * advantage).mean().item()",
        ["no gradient through the ratio"],
    ),
    ("surrogate", ".detach()", "", [DETACH]),
    ("surrogate", "torch.mean", "-torch.mean", ["a loss instead of an objective"]),
    ("surrogate", "torch.mean", "torch.sum", ["the sum instead of the mean"]),
    (
        "clipped_surrogate",
        "torch.min(ratio * advantage, clip * advantage)",
        "torch.min(ratio, clip) * advantage",
        ["min(ratio, clip) R"],
    ),
    ("clipped_surrogate", "clip * advantage", "clip", ["clip without R"]),
    ("clipped_surrogate", "torch.min(ratio * advantage, clip * advantage)", "clip", ["clip without R"]),
    (
        "clipped_surrogate",
        "torch.min(ratio * advantage, clip * advantage)",
        "clip * advantage",
        ["clip(r) A without the minimum"],
    ),
    ("clipped_surrogate", "torch.min", "torch.max", ["the maximum instead of the minimum"]),
    ("clipped_surrogate", ".detach()", "", [DETACH]),
    ("clipped_surrogate", "new_probs /", "new_probs.detach() /", ["no gradient through the ratio"]),
    ("gae", " * ~terminated[t]", "", [BOOTSTRAP]),
    ("gae", "~terminated[t]", "~ended[t]", ["no bootstrap at a truncation"]),
    ("gae", "later * ~ended[t]", "later", ["summed over an episode's end"]),
    ("gae", " * ~", " + 0 * ~", [BOOTSTRAP, "summed over an episode's end"]),
    ("gae", "gamma * gae_lambda", "gamma", ["lambda left out"]),
    ("gae", "return advantage", "return advantage + value", ["returns instead of advantages"]),
]


def verdicts(name: str, source: str):
    names: dict[str, object] = {}
    exec("import torch\n" + source, names)
    return judge(ANSWERS[name], names[name])


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answers_pass(name: str) -> None:
    found = verdicts(name, RIGHT[name])
    assert len(found) >= 3
    assert all(v.passed and not v.message for v in found), found


@pytest.mark.parametrize(("name", "right", "wrong", "mistakes"), MISTAKES)
def test_each_known_mistake_gets_its_name(name: str, right: str, wrong: str, mistakes: list[str] | None) -> None:
    assert right in RIGHT[name]
    found = verdicts(name, RIGHT[name].replace(right, wrong))
    named = [v.mistake for v in found if v.mistake]
    assert not all(v.passed for v in found)
    assert [v.message for v in found if not v.passed].count("") == 0  # each says where, or what to do
    if mistakes is None:  # wrong in no known way
        assert named == []
    else:
        assert named == mistakes


def test_what_a_law_says_where_it_is_broken() -> None:
    quiz = verdicts("future_return", FUTURE.replace("return future", "return future + 1"))[0]
    assert "(1, 0, 1) give (2, 1, 1)" in quiz.law
    assert quiz.message == "the result at t = 0, n = 0 is 3; right is 2"
    assert "shape [3]" in verdicts("future_return", FUTURE.replace("return future", "return future[:, 0]"))[0].message
    changed = verdicts("gae", GAE.replace("return advantage", "reward += 1; return advantage"))
    assert [v.message for v in changed] == ["it changes its argument reward: work on a copy, as with reward.clone()"]
    nothing = verdicts("gae", GAE.replace("return advantage", "advantage + 0"))
    assert [v.message for v in nothing] == ["it returns nothing: is a `return` missing?"]


def test_arrays_of_numpy_will_do() -> None:
    source = (
        "import numpy\ndef normalize(x):\n x = x.numpy(); s = x.std(1, keepdims=True); e = numpy.ptp(x, 1)[:, None]"
    )
    source += "\n return numpy.where(e, (x - x.mean(1, keepdims=True)) / numpy.where(e, s, 1), 0)"
    assert all(v.passed for v in verdicts("normalize", source))


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("while True: pass", "was still running after 1 seconds"),
        ("return [bytearray(10**7) for _ in range(10**9)]", "asked for more than 100 MB"),
        ("import os; os.kill(os.getpid(), 11)", "ended without a result: it crashed (signal 11)"),
    ],
)
def test_code_that_never_ends_or_takes_everything_is_a_sentence(body: str, why: str) -> None:
    [verdict] = check("gae", f"def gae(*args):\n  {body}", 60 if "byte" in body else 1, 100)
    assert not verdict.passed
    assert why in verdict.message
    assert Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text() == ""


@pytest.mark.long
def test_the_command_writes_a_template_and_then_checks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["exercise"]) == 0
    assert set(EXERCISES) <= set(capsys.readouterr().out.split())
    assert main(["exercise", "gae"]) == 0
    assert Path("gae.py").read_text().split() == template("gae").split()
    Path("gae.py").write_text("import torch\n" + GAE)
    assert main(["exercise", "gae.py"]) == 0
    assert capsys.readouterr().out.endswith("all right\n")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "line 3 is not Python: "),
        ("raise NotImplementedError", "it is not written yet"),
        ("return gae()", "it calls itself without end"),
        ("return args[0] / none", "line 3: NameError: name 'none' is not defined"),
        ("return torch.ones(10**15)", "asked for more than 7 MB"),
        ("exit()", "SystemExit"),
    ],
)
def test_what_else_cannot_be_run(body: str, why: str) -> None:
    [verdict] = worker.verdicts("gae", f"import torch\ndef gae(*args):\n  {body}", 7)
    assert not verdict.passed
    assert why in verdict.message


def test_broken_laws_end_the_command_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exercises, "check", lambda name, source: worker.verdicts(name, source, 7))
    path = tmp_path / "mine.py"
    path.write_text("import torch\n" + GAE + FUTURE.replace("gamma * later", "later"))
    assert main(["exercise", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "known mistake: not discounted" in out
    assert err == "surefoot: not right yet: future_return\n"


def test_mistakes_of_the_command_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, args, why in (
        ("", ["gea"], "there is no exercise 'gea'"),
        ("x = 1", ["mine.py"], "defines none of future_return"),
        ("def (", ["mine.py"], "is not Python"),
    ):
        Path("mine.py").write_text(text)
        assert main(["exercise", *args]) == 2
        assert why in capsys.readouterr().err
    assert main(["exercise", "gae", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="choose one of future_return"):
        check("nothing", "")
