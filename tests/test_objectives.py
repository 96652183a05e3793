"""Gains, their gradients, the clip's flat regions, regularizers, re-weighting and the critic's error."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from hooks import Halved
from surefoot.algorithm.given_objective import GivenObjective, broken_laws, require_lawful
from surefoot.algorithm.objectives import (
    SPO,
    AdaptivePenalty,
    ClippedSurrogate,
    DualClip,
    Entropy,
    FixedPenalty,
    Objective,
    OldPolicyCrossEntropy,
    Reinforce,
    Surrogate,
    clipped_squared_error,
    effective_sample_size,
    is_clipped,
    squared_error,
    trajectory_ratio,
)
from surefoot.algorithm.schedules import annealed
from surefoot.config import Config
from surefoot.errors import UserError
from surefoot.models.distributions import Bernoulli, Categorical

# Off the kinks at 0.8 and 1.2, and w = 0 left out: there every gradient is 0
RATIOS = [0.01, 0.3, 0.5, 0.79, 0.81, 0.9, 1.0, 1.1, 1.19, 1.21, 1.5, 3.0, 20.0]
WEIGHTS = [-5.0, -1.0, -0.1, 0.1, 1.0, 5.0]
GRID = [(r, w) for r in RATIOS for w in WEIGHTS]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gain_and_slope(objective, ratio: float, weight: float, logp_old: float = -0.7) -> tuple[float, float]:
    """The gain of one sample and its derivative with respect to log pi(a|s)."""
    logp = numbers(logp_old + math.log(ratio)).requires_grad_()
    gain = objective(logp, numbers(logp_old), numbers(weight))
    (slope,) = torch.autograd.grad(gain.sum(), logp)
    return gain.item(), slope.item()


# Gains


def test_gains_by_hand() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    logp, old, weight = numbers(half, quarter, half), numbers(quarter, half, half), numbers(3, 3, -2)
    # ratios 2, 1/2, 1
    assert Reinforce()(logp, old, weight).tolist() == pytest.approx([3 * half, 3 * quarter, -2 * half])
    assert Surrogate()(logp, old, weight).tolist() == pytest.approx([6, 1.5, -2])


@pytest.mark.parametrize(
    ("ratio", "weight", "gain"),
    [
        (1.5, 2, 2.4),  # min(3, 1.2 * 2): nothing more to win
        (0.5, 2, 1.0),  # min(1, 0.8 * 2): a loss counts in full
        (1.5, -2, -3.0),  # min(-3, 1.2 * -2): a loss counts in full
        (0.5, -2, -1.6),  # min(-1, 0.8 * -2): nothing more to win
        (1.1, 2, 2.2),  # inside nothing is clipped
        (0.9, -2, -1.8),
    ],
)
def test_clipped_gain_by_hand(ratio: float, weight: float, gain: float) -> None:
    assert gain_and_slope(ClippedSurrogate(0.2), ratio, weight)[0] == pytest.approx(gain, rel=1e-12)


def test_gains_keep_shape_and_take_no_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    logp, old, weight = (torch.randn(3, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    for objective in (Reinforce(), Surrogate(), ClippedSurrogate(0.2), DualClip(), SPO()):
        together = objective(logp, old, weight)
        assert together.shape == (3, 4)
        for t in range(3):
            for n in range(4):
                alone = objective(logp[t, n], old[t, n], weight[t, n])
                assert together[t, n].item() == pytest.approx(alone.item(), rel=1e-12)


# Gradients


@pytest.mark.parametrize(
    "objective", [Reinforce(), Surrogate(), ClippedSurrogate(0.1), ClippedSurrogate(0.2), DualClip(0.2, 1.5), SPO(0.1)]
)
def test_at_the_old_policy_every_objective_has_reinforces_gradient(objective) -> None:
    for weight in WEIGHTS:
        for logp_old in (-0.01, -0.7, -12.0):
            # d/dlogp of w log pi is w
            assert gain_and_slope(objective, 1.0, weight, logp_old)[1] == pytest.approx(weight, rel=1e-12)


def test_away_from_the_old_policy_reinforce_keeps_its_gradient_and_the_surrogate_scales_it() -> None:
    for ratio, weight in GRID:
        assert gain_and_slope(Reinforce(), ratio, weight)[1] == pytest.approx(weight)
        assert gain_and_slope(Surrogate(), ratio, weight)[1] == pytest.approx(ratio * weight)  # dr/dlogp = r


def test_the_gradient_through_a_policys_parameter_is_reinforces() -> None:
    # P(1) = sigmoid(x): d log pi(1) / dx = 1 - p, d log pi(0) / dx = -p; p = 0.25, weights 2 and 3: 2 * .75 - 3 * .25
    for objective in (Reinforce(), Surrogate(), ClippedSurrogate(0.1)):
        x = torch.tensor(math.log(1 / 3), dtype=torch.float64, requires_grad=True)
        logp = Bernoulli(x.expand(2)).log_prob(torch.tensor([1, 0]))
        (slope,) = torch.autograd.grad(objective(logp, logp.detach(), numbers(2, 3)).sum(), x)
        assert slope.item() == pytest.approx(0.75, rel=1e-12)


@pytest.mark.parametrize(("ratio", "weight"), GRID)
def test_the_clipped_gradient_is_zero_exactly_where_the_move_has_gone_far_enough(ratio: float, weight: float) -> None:
    slope = gain_and_slope(ClippedSurrogate(0.2), ratio, weight)[1]
    enough = (ratio > 1.2 and weight > 0) or (ratio < 0.8 and weight < 0)
    assert (slope == 0.0) == enough
    if not enough:  # and elsewhere it is the surrogate's
        assert slope == pytest.approx(ratio * weight, rel=1e-12)


@pytest.mark.parametrize(("ratio", "weight"), GRID)
def test_clipped_is_never_above_the_surrogate(ratio: float, weight: float) -> None:
    plain = gain_and_slope(Surrogate(), ratio, weight)[0]
    for clip_range in (0.0, 0.1, 0.2, 0.5):
        assert gain_and_slope(ClippedSurrogate(clip_range), ratio, weight)[0] <= plain


@pytest.mark.parametrize(("ratio", "weight"), GRID)
def test_clipped_with_a_very_large_epsilon_is_the_surrogate(ratio: float, weight: float) -> None:
    plain = gain_and_slope(Surrogate(), ratio, weight)
    assert gain_and_slope(ClippedSurrogate(1e6), ratio, weight) == plain


@pytest.mark.parametrize(
    ("ratio", "weight", "gain", "slope"),
    [
        (5.0, -2, -6.0, 0.0),  # min(-10, 1.2 * -2) = -10, but no lower than 3 * -2
        (2.5, -2, -5.0, -5.0),  # not yet there: the clipped surrogate's
        (0.5, -2, -1.6, 0.0),
        (5.0, 2, 2.4, 0.0),  # A > 0: nothing is bounded twice
        (0.5, 2, 1.0, 1.0),
    ],
)
def test_dual_clip_by_hand(ratio: float, weight: float, gain: float, slope: float) -> None:
    assert gain_and_slope(DualClip(0.2, 3.0), ratio, weight) == pytest.approx((gain, slope), rel=1e-12)


@pytest.mark.parametrize(("ratio", "weight"), GRID)
def test_dual_clip_with_a_very_large_bound_is_the_clipped_surrogate(ratio: float, weight: float) -> None:
    assert gain_and_slope(DualClip(0.2, 1e6), ratio, weight) == gain_and_slope(ClippedSurrogate(0.2), ratio, weight)


@pytest.mark.parametrize(
    ("ratio", "weight", "gain", "slope"),
    [
        (1.5, 2, 1.75, -4.5),  # 3 - 2 * 0.25 / 0.4; 1.5 (2 - 2 * 0.5 / 0.2): too far, and led back
        (0.5, -2, -2.25, 1.5),  # -1 - 2 * 0.25 / 0.4; 0.5 (-2 + 2 * 0.5 / 0.2)
        (1.2, 2, 2.2, 0.0),  # greatest at 1 + eps
        (0.8, -2, -1.8, 0.0),
        (0.5, 2, -0.25, 3.5),
    ],
)
def test_spo_by_hand(ratio: float, weight: float, gain: float, slope: float) -> None:
    assert gain_and_slope(SPO(0.2), ratio, weight) == pytest.approx((gain, slope), abs=1e-12)


@pytest.mark.parametrize(("ratio", "weight"), GRID)
def test_spo_is_never_above_the_surrogate_and_comes_to_it(ratio: float, weight: float) -> None:
    plain = gain_and_slope(Surrogate(), ratio, weight)
    assert gain_and_slope(SPO(0.2), ratio, weight)[0] <= plain[0]
    assert gain_and_slope(SPO(1e12), ratio, weight) == pytest.approx(plain, rel=1e-8)


# What changes during a run


def test_epsilon_decays_with_the_iteration_and_not_twice() -> None:
    lesson = ClippedSurrogate(clip_range=0.2, decay=0.5)
    assert [lesson.at(i).clip_range for i in range(4)] == [0.2, 0.1, 0.05, 0.025]
    assert lesson.at(2).at(7).clip_range == 0.05  # already as it stands
    assert ClippedSurrogate(0.1).at(1000).clip_range == 0.1
    # the clip_range of `at` is the one that clips: r = 1.15, w = 1
    assert gain_and_slope(lesson.at(0), 1.15, 1.0)[0] == pytest.approx(1.15)
    assert gain_and_slope(lesson.at(1), 1.15, 1.0)[0] == pytest.approx(1.1)


def test_the_other_objectives_stay_as_they_are() -> None:
    for objective in (Reinforce(), Surrogate()):
        cfg = Config(objective=objective, entropy=Entropy(0.04, end_factor=0.0))
        later = annealed(cfg, 17, 0.5)
        assert later.objective is objective
        assert (later.entropy.coef, cfg.entropy.coef) == (0.02, 0.04)


def test_entropys_weight_moves_in_a_straight_line_with_progress() -> None:
    bonus = Entropy(coef=0.03, end_factor=1 / 3)
    # 0.03 - progress * 0.02, and no further than the end; the iteration does not matter
    expected = [(0.0, 0.03), (0.25, 0.025), (0.5, 0.02), (1.0, 0.01), (1.7, 0.01)]
    for progress, weight in expected:
        for iteration in (0, 400):
            now = bonus.at(iteration, progress)
            assert now.coef == pytest.approx(weight)
            assert now.at(iteration, 0.9).coef == now.coef
    gone = Entropy(coef=0.04, end_factor=0.0, until=0.5)
    assert [gone.at(3, progress).coef for progress in (0.0, 0.25, 0.5, 0.9)] == [0.04, 0.02, 0.0, 0.0]


def gradient(bonus, logits: Tensor, old, make=Categorical) -> Tensor:
    """Of a bonus, by the new policy's logits."""
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(bonus(make(logits), old).sum(), logits)
    return found


def test_entropys_bonus_by_hand() -> None:
    uniform, leaning = torch.zeros(1, 2, dtype=torch.float64), numbers(1, 3).log()[None]  # 1/4, 3/4
    # H = (log 4) / 4 + 3 (log 4/3) / 4
    assert Entropy(0.5)(Categorical(leaning), Categorical(uniform)).item() == pytest.approx(
        0.5 * (0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    )
    assert gradient(Entropy(0.5), uniform, Categorical(leaning)).abs().max() < 1e-12  # nothing is more even
    # dH/dx_k = -p_k (log p_k + H): 3/16 log 3 up for the less likely, the same down for the other
    assert gradient(Entropy(0.5), leaning, Categorical(uniform))[0].tolist() == pytest.approx(
        [0.5 * 3 / 16 * math.log(3), -0.5 * 3 / 16 * math.log(3)]
    )


def logit(p: float) -> Tensor:
    return numbers(math.log(p / (1 - p)))


def test_old_policy_cross_entropy_by_hand() -> None:
    bonus = OldPolicyCrossEntropy(coef=0.5)
    # old 1/2: log 2 whatever p is
    assert bonus(Bernoulli(logit(0.25)), Bernoulli(logit(0.5))).item() == pytest.approx(0.5 * math.log(2))
    assert slope_of_bonus(bonus, 0.25, 0.5) == pytest.approx(0)
    # p = 1/2, old 1/4: dp/dx = 1/4 times log(3/4) - log(1/4), taken from what is lost with the likelier action
    assert slope_of_bonus(bonus, 0.5, 0.25) == pytest.approx(0.125 * math.log(3))


def test_old_policy_cross_entropys_weight_decays_with_the_iteration() -> None:
    bonus = OldPolicyCrossEntropy(coef=0.4, decay=0.5)
    for progress in (0.0, 0.9):
        assert [bonus.at(i, progress).coef for i in range(4)] == [0.4, 0.2, 0.1, 0.05]
    assert bonus.at(2, 0.0).at(5, 0.0).coef == 0.1


def slope_of_bonus(bonus, p: float, p_old: float) -> float:
    return gradient(bonus, logit(p), Bernoulli(logit(p_old)), Bernoulli).item()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.6, 0.9])
def test_both_bonuses_pull_towards_one_half_at_the_old_policy_and_equally(p: float) -> None:
    pull = p * (1 - p) * math.log((1 - p) / p)  # dH/dp = log((1 - p) / p), dp/dx = p (1 - p)
    assert slope_of_bonus(Entropy(1.0), p, p) == pytest.approx(pull)
    assert slope_of_bonus(OldPolicyCrossEntropy(1.0), p, p) == pytest.approx(pull)


def test_the_lessons_bonus_goes_on_pushing_where_the_true_entropy_turns_back() -> None:
    # old 0.8, new already at 0.4, bootstrap_obs one half
    assert slope_of_bonus(Entropy(1.0), 0.4, 0.8) > 0
    assert slope_of_bonus(OldPolicyCrossEntropy(1.0), 0.4, 0.8) == pytest.approx(0.24 * math.log(0.25))


# The KL penalty


def test_kl_penalty_by_hand() -> None:
    uniform, leaning = torch.zeros(1, 2, dtype=torch.float64), numbers(1, 3).log()[None]  # 1/2, 1/2; 1/4, 3/4
    # KL(old || new) = (log 2) / 2 + (log 2/3) / 2
    assert FixedPenalty(0.5)(Categorical(leaning), Categorical(uniform)).item() == pytest.approx(0.25 * math.log(4 / 3))
    # by the logits: beta (P - P_old)
    assert gradient(FixedPenalty(0.5), leaning, Categorical(uniform))[0].tolist() == pytest.approx([-0.125, 0.125])
    for penalty in (FixedPenalty(3.0), AdaptivePenalty(3.0)):  # at the old policy: REINFORCE's gradient is left alone
        assert gradient(penalty, leaning, Categorical(leaning)).abs().max() < 1e-12


def test_the_penaltys_coefficient_doubles_beyond_one_and_a_half_and_halves_below_two_thirds() -> None:
    penalty = AdaptivePenalty(initial=8.0, desired_kl=0.03)
    found = [penalty.adapted(4.0, kl) for kl in (0.0, 0.0199, 0.0201, 0.03, 0.0449, 0.0451, 9.0)]
    assert found == [2, 2, 4, 4, 4, 8, 8]
    cfg = Config(kl_penalty=penalty)
    assert annealed(cfg, 3, 0.5, 0.25).kl_penalty == FixedPenalty(0.25)
    assert annealed(replace(cfg, kl_penalty=FixedPenalty(2.0)), 3, 0.5, 0.25).kl_penalty == FixedPenalty(2.0)


# Objectives of one's own


def own(change):
    """An objective that changes the surrogate's value per sample."""
    return lambda logp, logp_old, advantage: change((logp - logp_old).exp() * advantage, logp, advantage)


@pytest.mark.parametrize("objective", [kind() for kind in get_args(Objective)], ids=str)
def test_our_own_objectives_obey_the_laws(objective) -> None:
    assert [*broken_laws(objective)] == []


@pytest.mark.parametrize(
    ("objective", "law", "says"),
    [
        (own(lambda gain, *_: gain[:3]), "per sample", "returns of shape (3,) for 20 samples"),
        (own(lambda gain, *_: gain.mean()), "per sample", "of shape () for 20 samples"),
        (own(lambda *_: 1.0), "per sample", "a float"),
        (lambda logp: logp, "per sample", "fails for 20 samples: TypeError"),
        (own(lambda gain, *_: gain.detach()), "differentiable", "has no gradient"),
        (own(lambda gain, logp, _: gain / (logp - logp)), "finite", "at ratio 0.5 and advantage -2"),
        (own(lambda gain, *_: -gain), "uphill", "not a loss"),
        (own(lambda gain, _, advantage: advantage.mul_(2) * gain), "leaves its arguments alone", "changes"),
        (own(lambda gain, *_: 2 * gain), "REINFORCE's gradient at pi = pi_old", "-4, -0.6, 0.6, 4 for"),
        (own(lambda gain, logp, _: gain * (logp[0] - logp[0] + len(gain) / 20)), "no peeking", "another"),
        (own(lambda gain, *_: gain + torch.rand(())), "deterministic", "other numbers"),
    ],
)
def test_what_is_wrong_with_an_objective_of_ones_own_is_named(objective, law: str, says: str) -> None:
    ((broken, what),) = broken_laws(objective)
    assert broken == law
    assert says in what


def test_an_objective_that_cannot_be_learned_from_is_refused_and_others_are_noted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loss(logp: Tensor, _: Tensor, advantage: Tensor) -> Tensor:
        return -logp * advantage

    with pytest.raises(UserError, match=r"^the objective .*loss is pushed against .*\(law: uphill\)$"):
        require_lawful(GivenObjective.of(loss))
    require_lawful(GivenObjective.of(lambda logp, _, advantage: 2 * logp * advantage))
    assert "it is learned from all the same" in capsys.readouterr().err
    require_lawful(GivenObjective.of(Surrogate()))
    assert capsys.readouterr().err == ""


def test_another_process_finds_an_objective_that_can_be_imported() -> None:
    given = GivenObjective.of(Halved(0.25))
    assert (GivenObjective.of(ClippedSurrogate(0.01)).clip_range, given.clip_range) == (0.01, 0.2)
    there = GivenObjective.at_address(*json.loads(json.dumps(given.address())))
    assert (there, there.function) == (given, Halved(0.25))
    assert GivenObjective.of(lambda logp, _, advantage: logp * advantage).address() is None
    assert GivenObjective.of(Halved(Tensor([1.0]))).address() is None  # no JSON


# Re-weighting, the critic, the share of clipped samples


def test_trajectory_ratio_by_hand() -> None:
    # game 0: (1/2)/(1/4) * (1/2)/(1/2) = 2; game 1: (1/4)/(1/2) * (1/4)/(3/4) = 1/6
    new, old = numbers(0.5, 0.25, 0.5, 0.25).log().view(2, 2), numbers(0.25, 0.5, 0.5, 0.75).log().view(2, 2)
    assert trajectory_ratio(new, old).tolist() == pytest.approx([2, 1 / 6], rel=1e-12)
    assert trajectory_ratio(old, old).tolist() == [1, 1]


def test_effective_sample_size_by_hand() -> None:
    assert effective_sample_size(numbers(*[0.3] * 8)).item() == pytest.approx(8)  # equal weights: all count
    assert effective_sample_size(numbers(1, 0, 0, 0)).item() == 1
    assert effective_sample_size(numbers(1e9, 1, 2, 3)).item() == pytest.approx(1, abs=1e-7)  # one dominates
    assert effective_sample_size(numbers(1, 2, 3)).item() == pytest.approx(36 / 14)  # (1 + 2 + 3)^2 / (1 + 4 + 9)


def test_value_loss_is_the_squared_error_of_each_sample() -> None:
    assert squared_error(numbers(1, -2, 3), numbers(3, 1, 3)).tolist() == [4, 9, 0]


def test_value_loss_pulls_the_value_to_its_target() -> None:
    value = numbers(1, 5).requires_grad_()
    (slope,) = torch.autograd.grad(squared_error(value, numbers(3, 4)).sum(), value)
    assert slope.tolist() == [-4, 2]  # 2 (V - target)


def test_clipped_value_loss_by_hand() -> None:
    # V_old = 0, R = 3, eps = 1: V = 2 counts as 1, (1 - 3)^2 = 4 > (2 - 3)^2; V = -2 in full, 25 > (-1 - 3)^2
    value, old, returns = numbers(2, -2, 0.5).requires_grad_(), numbers(0, 0, 0), numbers(3, 3, 3)
    loss = clipped_squared_error(value, old, returns, 1.0)
    assert loss.tolist() == [4, 25, 6.25]
    (slope,) = torch.autograd.grad(loss.sum(), value)
    assert slope.tolist() == [0, -10, -5]  # flat once V has moved by more than eps towards R
    assert clipped_squared_error(-value, old, -returns, 1.0).tolist() == [4, 25, 6.25]  # downwards as upwards


def test_clipped_by_hand() -> None:
    ratio = numbers(0.5, 0.79, 0.81, 1.0, 1.0, 1.19, 1.21, 9.0)
    assert is_clipped(ratio, 0.2).mean() == 0.5  # 0.5, 0.79, 1.21 and 9 of eight
    assert is_clipped(ratio, 0.4).mean() == 0.25  # 0.5 and 9
    assert not is_clipped(torch.ones(8), 0.2).any()
