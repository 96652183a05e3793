"""Other libraries' option names are answered with the option here, and the page of them is what the code knows."""

from __future__ import annotations

from pathlib import Path

import pytest

import surefoot
from surefoot.algorithm.objectives import AdaptivePenalty, DualClip
from surefoot.commands.cli import Train, main, parse
from surefoot.commands.complaints import options
from surefoot.errors import UserError
from surefoot.models.memory import GRU
from surefoot.other_words import FORMULAS, OPTIONS, WORDS, kebab, page
from surefoot.presets import LESSON, PRESETS, find


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("cartpole --n-steps 128", "no option --n-steps: surefoot calls it --num-steps"),
        ("cartpole --n_steps=128", "no option --n_steps: surefoot calls it --num-steps"),
        ("cartpole --lr 3e-4", "no option --lr: surefoot calls it --learning-rate.initial"),
        ("cartpole --learning-rate 3e-4", "no option --learning-rate: surefoot calls it --learning-rate.initial"),
        ("pong --games 8", "no option --games: surefoot calls it --num-envs"),
        ("pong --rate.target-kl 0.1", "no option --rate.target-kl: surefoot calls it --learning-rate.desired-kl"),
        ("pong credit:gae", "no option credit:gae: surefoot calls it advantage:gae"),
        ("pong --anneal-lr", "no option --anneal-lr: surefoot calls it learning-rate:linear-rate"),
        (
            "future --gae-lambda 0.9",
            "no option --gae-lambda: surefoot calls it --advantage.gae-lambda, of advantage:gae",
        ),
        (
            "pong --num-minibatches 4",
            "no option --num-minibatches: surefoot calls it --minibatch-size = num_envs x num_steps / num_minibatches",
        ),
        (
            "surrogate --e_clip 0.1",
            "calls it --objective.clip-range, of objective:clipped-surrogate",
        ),
        ("cartpole objective:surrogate --objective.clip-range 0.1", "the part that was chosen lacks it"),
        ("cartpole learning-rate:fixed-rate --learning-rate.rate 1", "did you mean --learning-rate.initial?"),
        ("cartpole learning-rate:fixed-rate --learning-rate.cap 1", "the part that was chosen lacks it"),
        ("cartpole memory:lstm --memory.unit 1", "did you mean --memory.units?"),
        ("cartpole --memory.units 8 memory:lstm", "it comes after memory:NAME, which chooses the part"),
    ],
)
def test_another_librarys_option_is_answered_in_one_sentence(
    args: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *args.split()]) == 2
    heard = capsys.readouterr().err
    assert says in heard
    assert heard.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_resume_answers_only_with_options_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "run", "--total-timesteps", "100"]) == 2
    assert "surefoot calls it --total-steps" in capsys.readouterr().err
    assert main(["resume", "run", "--n-steps", "100"]) == 2
    assert "surefoot calls it" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("n_steps", 128, "no field n_steps: surefoot calls it num_steps$"),
        (
            "lr",
            3e-4,
            r"no field lr: surefoot calls it learning_rate\.initial, as in .*=AdaptiveRate\(initial=\.\.\.\)$",
        ),
        ("learning_rate", 3e-4, r"learning_rate is 0\.0003: surefoot calls it learning_rate\.initial"),
        ("anneal_lr", True, r"no field anneal_lr: surefoot calls it learning_rate=LinearRate\(\)$"),
        ("nonsense", 1, "no field nonsense: it has env, network"),
    ],
)
def test_from_python_too(field: str, value: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        surefoot.train("cartpole", **{field: value})


def test_the_choice_that_has_the_field_is_named_where_the_chosen_part_lacks_it() -> None:
    with pytest.raises(UserError, match=r"advantage=GAE\(gae_lambda=\.\.\.\)"):
        find(LESSON, gae_lambda=0.9)


@pytest.mark.parametrize("option", sorted(set(OPTIONS.values())))
def test_every_answer_is_an_option_that_a_config_takes(option: str) -> None:
    if ":" in option:
        parse(["train", "cartpole", kebab(option)])
    else:
        others = {
            "objective": DualClip(),
            "kl_penalty": AdaptivePenalty(),
            "memory": GRU(),
        }  # what no preset has chosen
        cfgs = [*PRESETS.values(), find("cartpole", **others)]
        assert any(f"--{kebab(option)}" in options(Train(cfg)) for cfg in cfgs)


def test_no_word_means_two_things_and_none_hides_an_option() -> None:
    for words in WORDS.values():
        assert all(OPTIONS[word] == option for word, option in words.items())
    assert set(FORMULAS) <= set(OPTIONS)


def test_the_page_is_what_the_program_prints() -> None:
    assert (Path(__file__).parent.parent / "docs" / "options.md").read_text() == page()
