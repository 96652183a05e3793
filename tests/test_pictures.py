"""The lesson's pictures: the small policy's average reward, the models of it, where their ascents lead, the files."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from surefoot.algorithm.objectives import ClippedSurrogate, Surrogate
from surefoot.commands.pictures import PICTURES, picture
from surefoot.errors import UserError
from surefoot.lesson.cliff import EPSILON, START, all_episodes, ascend, average_reward, model

OBJECTIVES = [Surrogate(), ClippedSurrogate(EPSILON)]


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def programme(theta: float) -> float:
    """The average reward by backward induction over (step, steps walked): twelve decisions, an edge after nine."""
    p = 1 / (1 + math.exp(-theta))
    ahead = [0.0] * 14
    for step in reversed(range(12)):
        now = [0.0] * 14
        for walked in range(step + 1):
            pay = 1.0 - 30.0 if walked + 1 == 10 else 1.0
            now[walked] = p * (pay + ahead[walked + 1]) + (1 - p) * ahead[walked]
        ahead = now
    return ahead[0]


def truth(theta: torch.Tensor) -> float:
    return average_reward(theta).item()


def test_games_are_all_there_is_each_once() -> None:
    action, reward, ended = all_episodes()
    assert action.shape == reward.shape == ended.shape == (12, 4096)
    assert len({tuple(column) for column in action.T.tolist()}) == 4096
    assert ended[-1].all()
    assert not ended[:-1].any()


def test_rewards_of_single_games_by_hand() -> None:
    action, reward, _ = all_episodes()
    found = {tuple(a): r for a, r in zip(action.T.tolist(), reward.T.tolist(), strict=True)}
    assert found[(0,) * 12] == [0] * 12
    assert found[(1,) * 12] == [1] * 9 + [-29] + [1, 1]  # the tenth step leads over the edge: 1 - 30
    assert found[(1,) * 9 + (0,) * 3] == [1] * 9 + [0] * 3  # nine steps on, then waiting before the edge: no fall
    assert found[(1,) * 9 + (0, 1, 0)] == [1] * 9 + [0, -29, 0]  # the fall is paid once, at the step itself


@pytest.mark.parametrize("theta", [-5.0, -2.0, START, 0.0, 0.1, 0.7, 1.5, 4.0])
def test_average_reward_is_that_of_a_dynamic_programme(theta: float) -> None:
    assert truth(number(theta)) == pytest.approx(programme(theta), abs=1e-10)


def test_average_reward_at_its_ends() -> None:
    assert truth(number(-40.0)) == pytest.approx(0, abs=1e-12)  # nobody walks
    assert truth(number(40.0)) == pytest.approx(12 - 30)  # everybody walks and falls


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("old", [START, 0.3, 1.0])
def test_the_model_touches_the_truth_at_the_present_policy(objective, old: float) -> None:
    theta = number(old).requires_grad_()
    real = average_reward(theta)
    belief = model(theta, number(old), objective)
    assert belief.item() == pytest.approx(real.item(), abs=1e-10)
    (slope,) = torch.autograd.grad(real, theta)
    (believed,) = torch.autograd.grad(belief, theta)
    assert believed.item() == pytest.approx(slope.item(), abs=1e-10)
    assert slope.item() == pytest.approx((programme(old + 1e-5) - programme(old - 1e-5)) / 2e-5, abs=1e-6)
    assert abs(slope.item()) > 0.1


def test_far_away_the_models_are_wrong_and_the_clipped_one_promises_less() -> None:
    old = number(START)
    for x in (-1.5, 0.5, 1.5):
        plain, clipped = (model(number(x), old, objective).item() for objective in OBJECTIVES)
        assert clipped < plain
    assert model(number(1.5), old, Surrogate()).item() > truth(number(1.5)) + 5


def test_the_surrogates_ascent_falls_off_the_cliff() -> None:
    path = ascend(Surrogate())
    rewards = [truth(x) for x in path]
    assert path[0].item() == START
    assert all(a < b for a, b in pairwise(path))  # on and on
    assert max(rewards) > rewards[0]  # it climbs at first
    assert rewards[-1] < max(rewards)
    assert rewards[-1] < 0 < rewards[0]  # and ends far below where it began
    beliefs = [model(x, path[0], Surrogate()).item() for x in path]
    assert beliefs == sorted(beliefs)  # believing all the time that it climbs


def test_the_clipped_ascent_holds_before_the_cliff() -> None:
    rewards = [truth(x) for x in ascend(ClippedSurrogate(EPSILON))]
    assert rewards[-1] >= rewards[0]
    assert rewards[-1] >= 0.98 * max(rewards)
    assert max(rewards) > rewards[0] + 0.5
    assert min(rewards) == rewards[0]


def test_the_first_step_of_both_ascents_goes_up_the_true_slope() -> None:
    slope = (programme(START + 1e-5) - programme(START - 1e-5)) / 2e-5
    for objective in OBJECTIVES:
        path = ascend(objective, steps=1, learning_rate=0.01)
        assert len(path) == 2
        assert path[1].item() - START == pytest.approx(0.01 * slope, abs=1e-7)


def test_there_are_the_lessons_three_pictures() -> None:
    assert set(PICTURES) == {"cliff", "clipped", "clipped-explained"}


@pytest.mark.long
@pytest.mark.parametrize("name", ["cliff", "clipped", "clipped-explained"])
@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")], ids=["png", "svg"])
def test_every_picture_is_written(name: str, suffix: str, begins: bytes, tmp_path) -> None:
    out = tmp_path / f"{name}{suffix}"
    assert picture(name, out) == out
    content = out.read_bytes()
    assert content.startswith(begins)
    assert len(content) > 5000


def test_an_unknown_picture_is_refused_with_the_known_ones(tmp_path) -> None:
    with pytest.raises(UserError, match=r"'clif'.*cliff, clipped, clipped-explained"):
        picture("clif", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"a\.jpg.*\.png or \.svg"):
        picture("cliff", tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_users_mistake(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        picture("clipped-explained", tmp_path / "nowhere" / "a.png")
