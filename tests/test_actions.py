"""Bernoulli and Categorical: sampling from given noise, log probabilities, entropy, divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from surefoot.models.distributions import Bernoulli, Categorical

LOGITS = [-30.0, -3.0, -0.5, 0.0, 0.2, 1.7, 30.0]
LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def some_logits(rows: int, actions: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, actions, generator=draw, dtype=torch.float64)


# Probabilities


def test_bernoulli_probabilities_by_hand() -> None:
    # logit log 3: P(1) = 3 / (1 + 3); action 0 comes first
    assert Bernoulli(numbers(math.log(3))).probabilities()[0].tolist() == pytest.approx([0.25, 0.75])


def test_categorical_probabilities_by_hand() -> None:
    # e^logit = 1, 3, 4 times any constant: eighths
    logits = numbers(1, 3, 4).log() + 12.3
    assert Categorical(logits).probabilities().tolist() == pytest.approx([0.125, 0.375, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_sum_to_1(dtype: torch.dtype) -> None:
    two = Bernoulli(torch.tensor(LOGITS, dtype=dtype)).probabilities()
    many = Categorical(some_logits(20, 6).to(dtype)).probabilities()
    assert two.shape == (len(LOGITS), 2)
    assert many.shape == (20, 6)
    for probabilities in (two, many):
        assert (probabilities >= 0).all()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(probabilities), dtype=dtype))


# Sampling


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize("logit", LOGITS)
def test_bernoulli_frequencies_on_an_even_grid_are_its_probabilities(logit: float, size: int) -> None:
    noise = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    dist = Bernoulli(torch.full((size,), logit, dtype=torch.float64))
    action = dist.sample(noise)
    assert action.dtype == torch.int64
    for a in (0, 1):
        share = action.tolist().count(a) / size
        assert abs(share - float(dist.probabilities()[0, a])) <= 1 / size


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize("actions", [2, 3, 6, 18])
def test_categorical_frequencies_on_an_even_grid_are_its_probabilities(actions: int, size: int) -> None:
    noise = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    for seed in range(5):
        dist = Categorical(some_logits(1, actions, seed).expand(size, actions))
        action = dist.sample(noise)
        assert action.dtype == torch.int64
        for a in range(actions):
            share = action.tolist().count(a) / size
            assert abs(share - float(dist.probabilities()[0, a])) <= 1 / size + 1e-12


def test_categorical_sample_by_hand() -> None:
    # cumulative 1/8, 1/2, 1: an action owns the noise from the sum before it up to, but not with, its own
    noise = numbers(0, 0.1249, 0.1251, 0.4999, 0.5001, 0.9999)
    dist = Categorical(numbers(1, 3, 4).log().expand(6, 3))
    assert dist.sample(noise).tolist() == [0, 0, 1, 1, 2, 2]


def test_bernoulli_sample_by_hand() -> None:
    # P(1) = 3/4: action 1 owns the noise from 0 to 3/4
    noise = numbers(0, 0.7499, 0.7501, 0.9999)
    assert Bernoulli(numbers(math.log(3)).expand(4)).sample(noise).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("edge", [0.0, LARGEST])
def test_noise_at_both_ends_gives_legal_actions(edge: float) -> None:
    draw = torch.Generator().manual_seed(1)
    for actions in (1, 2, 3, 6, 18):
        logits = 4 * torch.randn(2000, actions, generator=draw)  # float32: some cumulative sums end below 1
        noise = torch.full((2000,), edge)
        assert noise.dtype == torch.float32
        assert (noise < 1).all()
        action = Categorical(logits).sample(noise)
        assert int(action.min()) >= 0
        assert int(action.max()) < actions
        Categorical(logits).log_prob(action)  # an action past the end would not be found
    action = Bernoulli(torch.tensor(LOGITS)).sample(torch.full((len(LOGITS),), edge))
    assert set(action.tolist()) <= {0, 1}


def test_the_ends_of_the_noise_belong_to_the_first_and_the_last_action() -> None:
    logits = torch.zeros(1, 4)
    assert Categorical(logits).sample(torch.tensor([0.0])).tolist() == [0]
    assert Categorical(logits).sample(torch.tensor([LARGEST])).tolist() == [3]


@pytest.mark.parametrize("impossible", [(0,), (1,), (3,), (0, 1), (2, 3), (0, 3)])
def test_impossible_actions_are_never_sampled(impossible: tuple[int, ...]) -> None:
    noise = torch.arange(1000, dtype=torch.float32) / 1000  # begins with exactly 0
    logits = torch.zeros(1000, 4)
    logits[:, list(impossible)] = -1e9
    sampled = set(Categorical(logits).sample(noise).tolist())
    assert sampled == {0, 1, 2, 3} - set(impossible)


def test_bernoullis_impossible_action_is_never_sampled() -> None:
    noise = torch.cat((torch.arange(1000, dtype=torch.float32) / 1000, torch.tensor([LARGEST])))
    assert not Bernoulli(torch.full((1001,), -1e9)).sample(noise).any()
    assert Bernoulli(torch.full((1001,), 1e9)).sample(noise).all()


def test_greedy_is_the_likeliest_action() -> None:
    assert Bernoulli(numbers(-0.1, 0.1, 30)).greedy().tolist() == [0, 1, 1]
    logits = some_logits(50, 5)
    dist = Categorical(logits)
    for row, action in zip(dist.probabilities().tolist(), dist.greedy().tolist(), strict=True):
        assert row[action] == max(row)


# Log probability


def test_log_prob_is_the_log_of_the_probability() -> None:
    two, many = Bernoulli(numbers(*LOGITS)), Categorical(some_logits(7, 5))
    for dist, actions in ((two, 2), (many, 5)):
        probabilities = dist.probabilities().tolist()
        for a in range(actions):
            logp = dist.log_prob(torch.full((7,), a)).tolist()
            for row in range(7):
                assert logp[row] == pytest.approx(math.log(probabilities[row][a]), rel=1e-9, abs=1e-12)


def test_log_prob_stays_finite_far_out() -> None:
    # where the probability itself has become 0 in float32
    assert Bernoulli(torch.tensor([200.0, -200.0])).log_prob(torch.tensor([0, 1])).tolist() == [-200, -200]
    assert Categorical(torch.tensor([[0.0, 200.0]])).log_prob(torch.tensor([0])).tolist() == [-200]


def test_a_distribution_made_from_stored_params_is_the_same() -> None:
    action = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    for dist in (Bernoulli(numbers(*LOGITS)), Categorical(some_logits(7, 3))):
        again = type(dist)(dist.params)
        torch.testing.assert_close(again.log_prob(action), dist.log_prob(action), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(again.kl_from(dist), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-13)


def test_shapes_of_a_rollout_are_kept() -> None:
    logits = some_logits(12, 3).view(4, 3, 3)
    dist, action = Categorical(logits), torch.ones(4, 3, dtype=torch.int64)
    assert dist.log_prob(action).shape == dist.entropy().shape == dist.kl_from(dist).shape == (4, 3)
    assert dist.sample(torch.zeros(4, 3)).shape == (4, 3)
    assert dist.log_prob(action)[2, 1] == Categorical(logits[2, 1]).log_prob(action[2, 1])


# Entropy and divergence


def test_bernoulli_is_the_categorical_with_logits_0_and_l() -> None:
    new, old = numbers(*LOGITS), numbers(*reversed(LOGITS)) / 10 + 0.3
    two, two_old = Bernoulli(new), Bernoulli(old)
    many = Categorical(torch.stack((torch.zeros_like(new), new), -1))
    many_old = Categorical(torch.stack((torch.zeros_like(old), old), -1))
    for action in (0, 1):
        chosen = torch.full((len(LOGITS),), action)
        torch.testing.assert_close(two.log_prob(chosen), many.log_prob(chosen), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(two.probabilities(), many.probabilities(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(two.entropy(), many.entropy(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(two.kl_from(two_old), many.kl_from(many_old), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(two.cross_entropy(two_old), many.cross_entropy(many_old), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("actions", [1, 2, 3, 18])
def test_entropy_of_the_uniform_policy_is_log_a_and_of_no_other_is_more(actions: int) -> None:
    uniform = Categorical(torch.full((1, actions), 3.3, dtype=torch.float64))
    assert uniform.entropy().item() == pytest.approx(math.log(actions), abs=1e-12)
    others = Categorical(some_logits(50, actions)).entropy()
    assert (others <= math.log(actions) + 1e-12).all()
    assert (others >= -1e-12).all()


def test_entropy_by_hand() -> None:
    assert Bernoulli(numbers(0)).entropy().item() == pytest.approx(math.log(2))
    # 1/4, 3/4: (log 4) / 4 + 3 (log 4/3) / 4
    expected = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert Bernoulli(numbers(math.log(3))).entropy().item() == pytest.approx(expected)
    # 1/2, 1/4, 1/4: (log 2) / 2 + (log 4) / 2 = 1.5 log 2
    assert Categorical(numbers(2, 1, 1).log()).entropy().item() == pytest.approx(1.5 * math.log(2))
    assert Bernoulli(numbers(100)).entropy().item() == pytest.approx(0, abs=1e-12)


def test_kl_by_hand_weights_with_the_old_policy() -> None:
    # old 1/2, 1/2, new 1/4, 3/4: (log 2 + log 2/3) / 2 = log(4/3) / 2; the other way round it would be 0.1308
    expected = 0.5 * math.log(4 / 3)
    assert Bernoulli(numbers(math.log(3))).kl_from(Bernoulli(numbers(0))).item() == pytest.approx(expected)
    old, new = Categorical(numbers(0, 0)), Categorical(numbers(1, 3).log())
    assert new.kl_from(old).item() == pytest.approx(expected)
    assert old.kl_from(new).item() == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))


def test_cross_entropy_by_hand_weights_with_the_new_policy() -> None:
    # new 1/4, 3/4, old 1/8, 7/8 (chosen so that no other order gives the same number)
    expected = 0.25 * math.log(8) + 0.75 * math.log(8 / 7)
    new, old = numbers(1, 3).log(), numbers(1, 7).log()
    assert Categorical(new).cross_entropy(Categorical(old)).item() == pytest.approx(expected)
    two = Bernoulli(numbers(math.log(3))).cross_entropy(Bernoulli(numbers(math.log(7))))
    assert two.item() == pytest.approx(expected)


def pairs() -> list[tuple[Bernoulli, Bernoulli] | tuple[Categorical, Categorical]]:
    draws = [some_logits(200, 4, seed) for seed in (1, 2)]
    near = draws[0] + 1e-4 * draws[1]
    return [
        (Bernoulli(draws[0][:, 0]), Bernoulli(draws[1][:, 0])),
        (Bernoulli(draws[0][:, 0]), Bernoulli(near[:, 0])),
        (Categorical(draws[0]), Categorical(draws[1])),
        (Categorical(draws[0]), Categorical(near)),
    ]


def test_kl_is_0_from_itself_and_above_0_from_every_other() -> None:
    for new, old in pairs():
        torch.testing.assert_close(new.kl_from(new), torch.zeros(200, dtype=torch.float64), rtol=0, atol=1e-13)
        assert (new.kl_from(old) > -1e-15).all()
        assert (new.kl_from(old).mean() > 1e-11).all()


def test_cross_entropy_is_divergence_plus_entropy() -> None:
    # H(new, old) = KL(new || old) + H(new); our kl is named from the new one: old.kl_from(new) is KL(new || old)
    for new, old in pairs():
        torch.testing.assert_close(new.cross_entropy(old), old.kl_from(new) + new.entropy(), rtol=1e-12, atol=1e-13)
        written = []
        for p, q in zip(new.probabilities().tolist(), old.probabilities().tolist(), strict=True):
            written.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        torch.testing.assert_close(old.kl_from(new), numbers(*written), rtol=1e-7, atol=1e-13)
