"""Returns, TD errors and GAE against their written sums, the laws that join them, and normalisation."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.algorithm.advantages import (
    GAE,
    EpisodeReturn,
    FutureReturn,
    OverBatch,
    OverGames,
    Unnormalized,
    centered,
    compute_advantages,
    discounted_sum,
    episode_return,
    future_return,
    future_return_from_start,
    gae,
    normalize_over_batch,
    normalize_over_games,
    td_error,
)
from surefoot.algorithm.rewards import RawReward, ScaledReward, SignReward
from surefoot.algorithm.rollout import Rollout
from surefoot.parallel.ranks import Alone

SHAPES = [(1, 1), (1, 4), (2, 1), (7, 3), (23, 5)]
GAMMAS = [0.0, 0.5, 0.99, 1.0]
LAMBDAS = [0.0, 0.3, 0.95, 1.0]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Data:
    """Random rewards, values and endings of T decisions in N games; value and next_value are unrelated on purpose."""

    def __init__(self, steps: int, num_envs: int, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(1000 * steps + num_envs + seed)

        def normal() -> Tensor:
            return torch.randn(steps, num_envs, generator=draw, dtype=torch.float64)

        self.reward, self.value, self.next_value = normal(), normal(), normal()
        self.terminated = torch.rand(steps, num_envs, generator=draw) < 0.2
        self.truncated = torch.rand(steps, num_envs, generator=draw) < 0.2
        self.ended = self.terminated | self.truncated

    def gae(self, gamma: float, gae_lambda: float) -> Tensor:
        return gae(self.reward, self.value, self.next_value, self.terminated, self.ended, gamma, gae_lambda)

    def td(self, gamma: float) -> Tensor:
        return td_error(self.reward, self.value, self.next_value, self.terminated, gamma)


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def flags(*marks: int) -> Tensor:
    return torch.tensor(marks, dtype=torch.bool)[:, None]


def last_step(ended: list[bool], t: int) -> int:
    """The last decision of the episode (or of the rollout) that t belongs to."""
    while t < len(ended) - 1 and not ended[t]:
        t += 1
    return t


def first_step(ended: list[bool], t: int) -> int:
    """The first decision of the episode (or of the rollout) that t belongs to."""
    while t > 0 and not ended[t - 1]:
        t -= 1
    return t


def assert_is(actual: Tensor, written: list[list[float]]) -> None:
    """`written` holds one list per game."""
    torch.testing.assert_close(actual, torch.tensor(written, dtype=torch.float64).T.contiguous(), **EXACT)


# Written sums


@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_discounted_sum_is_the_sum_of_products_of_decays(steps: int, num_envs: int) -> None:
    draw = torch.Generator().manual_seed(steps)
    x = torch.randn(steps, num_envs, generator=draw, dtype=torch.float64)
    decay = torch.rand(steps, num_envs, generator=draw, dtype=torch.float64)
    decay[torch.rand(steps, num_envs, generator=draw) < 0.2] = 0.0
    written = []
    for n in range(num_envs):
        sums = []
        for t in range(steps):
            total = 0.0
            for k in range(t, steps):
                factor = 1.0
                for j in range(t, k):
                    factor *= float(decay[j, n])
                total += factor * float(x[k, n])
            sums.append(total)
        written.append(sums)
    assert_is(discounted_sum(x, decay), written)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_future_return_is_the_written_sum(steps: int, num_envs: int, gamma: float) -> None:
    data = Data(steps, num_envs)
    written = []
    for n in range(num_envs):
        r, ended = data.reward[:, n].tolist(), data.ended[:, n].tolist()
        written.append([sum(gamma ** (k - t) * r[k] for k in range(t, last_step(ended, t) + 1)) for t in range(steps)])
    assert_is(future_return(data.reward, data.ended, gamma), written)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_future_return_from_start_is_the_written_sum(steps: int, num_envs: int, gamma: float) -> None:
    reward = Data(steps, num_envs).reward
    written = []
    for n in range(num_envs):
        r = reward[:, n].tolist()
        written.append([sum(gamma**k * r[k] for k in range(t, steps)) for t in range(steps)])
    assert_is(future_return_from_start(reward, gamma), written)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_episode_return_is_the_written_sum_from_the_episodes_first_step(
    steps: int, num_envs: int, gamma: float
) -> None:
    data = Data(steps, num_envs)
    before = data.reward.clone()
    written = []
    for n in range(num_envs):
        r, ended = data.reward[:, n].tolist(), data.ended[:, n].tolist()
        totals = []
        for t in range(steps):
            first, last = first_step(ended, t), last_step(ended, t)
            totals.append(sum(gamma ** (k - first) * r[k] for k in range(first, last + 1)))
        written.append(totals)
    assert_is(episode_return(data.reward, data.ended, gamma), written)
    assert torch.equal(data.reward, before)  # the totals are carried along in a tensor of their own


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_td_error_is_the_written_surprise(steps: int, num_envs: int, gamma: float) -> None:
    data = Data(steps, num_envs)
    written = []
    for n in range(num_envs):
        errors = []
        for t in range(steps):
            afterwards = 0.0 if data.terminated[t, n] else float(data.next_value[t, n])
            errors.append(float(data.reward[t, n]) + gamma * afterwards - float(data.value[t, n]))
        written.append(errors)
    assert_is(data.td(gamma), written)


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_gae_is_the_written_sum_of_surprises(steps: int, num_envs: int, gamma: float, gae_lambda: float) -> None:
    data = Data(steps, num_envs)
    written = []
    for n in range(num_envs):
        ended, delta = data.ended[:, n].tolist(), []
        for t in range(steps):
            afterwards = 0.0 if data.terminated[t, n] else float(data.next_value[t, n])
            delta.append(float(data.reward[t, n]) + gamma * afterwards - float(data.value[t, n]))
        sums = []
        for t in range(steps):
            sums.append(sum((gamma * gae_lambda) ** (k - t) * delta[k] for k in range(t, last_step(ended, t) + 1)))
        written.append(sums)
    assert_is(data.gae(gamma, gae_lambda), written)


# Hand numbers


def test_discounted_sum_by_hand() -> None:
    # 4; 2 + 0 * 4 = 2; 1 + 0.5 * 2 = 2
    assert discounted_sum(column(1, 2, 4), column(0.5, 0, 0.9))[:, 0].tolist() == [2, 2, 4]


def test_returns_by_hand() -> None:
    reward, ended = column(1, 0, 2, 8, 4), flags(0, 0, 1, 0, 0)
    # first episode 1, 0, 2: 1 + 0 / 2 + 2 / 4 = 1.5, 0 + 2 / 2 = 1, 2; then 8 + 4 / 2 = 10, 4
    assert future_return(reward, ended, 0.5)[:, 0].tolist() == [1.5, 1, 2, 10, 4]
    # every decision of an episode has the return of its first
    assert episode_return(reward, ended, 0.5)[:, 0].tolist() == [1.5, 1.5, 1.5, 10, 10]
    # one trajectory, counted from its start: terms 1, 0, 2 / 4, 8 / 8, 4 / 16 = 1, 0, 0.5, 1, 0.25, summed from the end
    assert future_return_from_start(reward, 0.5)[:, 0].tolist() == [2.75, 1.75, 1.75, 1.25, 0.25]


def test_td_error_and_gae_by_hand() -> None:
    reward, value, next_value = column(1, 0, 2), column(3, 2, 1), column(2, 1, 7)
    end = flags(0, 0, 1)
    # 1 + 2 / 2 - 3 = -1; 0 + 1 / 2 - 2 = -1.5; terminated: 2 + 0 - 1 = 1
    assert td_error(reward, value, next_value, end, 0.5)[:, 0].tolist() == [-1, -1.5, 1]
    # gamma lambda = 1 / 4: 1; -1.5 + 1 / 4 = -1.25; -1 - 1.25 / 4 = -1.3125
    assert gae(reward, value, next_value, end, end, 0.5, 0.5)[:, 0].tolist() == [-1.3125, -1.25, 1]


# Endings


def test_truncation_bootstraps_and_termination_does_not() -> None:
    reward, value, next_value, end, no = column(1, 5), column(2, 3), column(4, 8), flags(1, 0), flags(0, 0)
    # truncated: 1 + 0.5 * 4 - 2 = 1; and the next episode's 5 + 0.5 * 8 - 3 = 6 does not flow back
    assert gae(reward, value, next_value, no, end, 0.5, 1.0)[:, 0].tolist() == [1, 6]
    # terminated: 1 - 2 = -1
    assert gae(reward, value, next_value, end, end, 0.5, 1.0)[:, 0].tolist() == [-1, 6]
    assert td_error(reward, value, next_value, no, 0.5)[:, 0].tolist() == [1, 6]
    assert td_error(reward, value, next_value, end, 0.5)[:, 0].tolist() == [-1, 6]


def test_terminated_and_truncated_at_once_is_terminated() -> None:
    data = Data(12, 4)
    both = rollout(data, terminated=data.terminated, truncated=data.truncated | data.terminated)
    only = rollout(data, terminated=data.terminated, truncated=data.truncated & ~data.terminated)
    assert data.terminated.any()
    assert (data.truncated & ~data.terminated).any()
    for credit in (EpisodeReturn(0.9), FutureReturn(0.9), GAE(0.9, 0.8)):
        for a, b in zip(credit(both), credit(only), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
def test_episodes_of_one_decision_depend_on_nothing_else(gae_lambda: float) -> None:
    data = Data(6, 3)
    data.ended[:] = True
    data.terminated[::2], data.terminated[1::2] = True, False
    assert torch.equal(future_return(data.reward, data.ended, 0.9), data.reward)
    assert torch.equal(episode_return(data.reward, data.ended, 0.9), data.reward)
    advantage = data.gae(0.5, gae_lambda)
    for t in range(6):
        for n in range(3):
            after = 0.0 if t % 2 == 0 else 0.5 * float(data.next_value[t, n])
            expected = float(data.reward[t, n]) + after - float(data.value[t, n])
            assert float(advantage[t, n]) == pytest.approx(expected, abs=1e-15)


WEIGHTS = {
    "future return": lambda d: future_return(d.reward, d.ended, 0.9),
    "episode return": lambda d: episode_return(d.reward, d.ended, 0.9),
    "td error": lambda d: d.td(0.9),
    "gae": lambda d: d.gae(0.9, 0.8),
}


@pytest.mark.parametrize("truncation", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_nothing_leaks_over_an_ending(name: str, truncation: bool) -> None:
    def weights(changed: int | None) -> Tensor:
        data = Data(8, 2)
        data.terminated[:], data.ended[:] = False, False
        data.ended[3, 0] = True  # game 0 ends after four decisions, game 1 never
        data.terminated[3, 0] = not truncation
        if changed is not None:
            data.reward[changed, 0] += 100
            data.value[changed, 0] -= 10
        return WEIGHTS[name](data)

    untouched = weights(None)
    for changed in range(8):
        moved = (weights(changed) != untouched).any(1)
        mine = slice(0, 4) if changed < 4 else slice(4, 8)
        other = slice(4, 8) if changed < 4 else slice(0, 4)
        assert not moved[other].any()  # neither back into the episode before nor on into the next
        assert moved[mine].any()
        assert torch.equal(weights(changed)[:, 1], untouched[:, 1])  # nor into another game


@pytest.mark.parametrize("name", ["future return", "td error", "gae"])
def test_the_past_is_not_this_actions_doing(name: str) -> None:
    data = Data(8, 2)
    data.terminated[:], data.ended[:] = False, False
    before = WEIGHTS[name](data).clone()
    data.reward[4] += 100
    after = WEIGHTS[name](data)
    assert torch.equal(after[5:], before[5:])
    torch.testing.assert_close(after[4], before[4] + 100, **EXACT)


# Laws


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_gae_without_critic_and_lambda_1_is_the_future_return(steps: int, num_envs: int, gamma: float) -> None:
    data = Data(steps, num_envs)
    data.value.zero_(), data.next_value.zero_()
    torch.testing.assert_close(data.gae(gamma, 1.0), future_return(data.reward, data.ended, gamma), **EXACT)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("steps", "num_envs"), SHAPES)
def test_gae_with_lambda_0_is_the_td_error(steps: int, num_envs: int, gamma: float) -> None:
    data = Data(steps, num_envs)
    assert torch.equal(data.gae(gamma, 0.0), data.td(gamma))


def test_gae_with_lambda_1_is_future_return_minus_value_whatever_the_critic_says() -> None:
    data = Data(9, 4)
    data.terminated = data.ended.clone()
    data.terminated[-1] = data.ended[-1] = True
    data.next_value[:-1] = data.value[1:]  # the true successor's value: then all inner values cancel
    future = future_return(data.reward, data.ended, 0.9)
    torch.testing.assert_close(data.gae(0.9, 1.0) + data.value, future, **EXACT)


def test_without_discount_an_episodes_return_is_its_plain_sum() -> None:
    reward, ended = column(1, 2, 4, 8, 16), flags(0, 1, 0, 0, 1)
    assert episode_return(reward, ended, 1.0)[:, 0].tolist() == [3, 3, 28, 28, 28]  # 1 + 2; 4 + 8 + 16
    assert future_return(reward, ended, 0.0)[:, 0].tolist() == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.995])
def test_counting_from_the_start_is_gamma_to_the_t_times_the_future_return(gamma: float) -> None:
    reward = Data(20, 6).reward
    future = future_return(reward, torch.zeros(20, 6, dtype=torch.bool), gamma)
    from_start = future_return_from_start(reward, gamma)
    for t in range(20):
        torch.testing.assert_close(from_start[t], gamma**t * future[t], **EXACT)


def test_counting_from_the_start_ranks_steps_wrongly_until_each_step_is_normalised() -> None:
    # gamma 0.5, game 0 with rewards 0.2, 1: its second action deserves more (1 against 0.2 + 0.5 = 0.7),
    # counted from the start it gets less (0.5 against 0.7)
    reward = torch.tensor([[0.2, -1.0, 0.3], [1.0, 0.5, 0.0]], dtype=torch.float64)
    future = future_return(reward, torch.zeros(2, 3, dtype=torch.bool), 0.5)
    from_start = future_return_from_start(reward, 0.5)
    assert future[1, 0] > future[0, 0]
    assert from_start[1, 0] < from_start[0, 0]
    assert not torch.allclose(from_start, future, atol=0.1)
    torch.testing.assert_close(normalize_over_games(from_start), normalize_over_games(future), **EXACT)
    # only the comparison within a step removes the factor: over the whole batch they still differ
    assert not torch.allclose(normalize_over_batch(from_start), normalize_over_batch(future), atol=0.1)


def test_counting_from_the_start_agrees_after_normalisation_on_long_games() -> None:
    reward = Data(320, 8).reward
    future = future_return(reward, torch.zeros(320, 8, dtype=torch.bool), 0.995)
    from_start = future_return_from_start(reward, 0.995)
    assert float((from_start[-1] / future[-1]).max()) < 0.21  # 0.995^319 = 0.202
    torch.testing.assert_close(normalize_over_games(from_start), normalize_over_games(future), rtol=1e-9, atol=1e-9)


# Normalisation


@pytest.mark.parametrize(("steps", "num_envs"), [(1, 2), (5, 8), (40, 32)])
def test_every_row_has_mean_0_and_mean_square_1_and_keeps_its_order(steps: int, num_envs: int) -> None:
    weight = 50 + 3 * Data(steps, num_envs).reward
    normal = normalize_over_games(weight)
    for t in range(steps):
        row = normal[t].tolist()
        assert sum(row) / num_envs == pytest.approx(0, abs=1e-12)
        assert sum(x * x for x in row) / num_envs == pytest.approx(1, abs=1e-12)
        assert torch.equal(normal[t].argsort(), weight[t].argsort())


@pytest.mark.parametrize(("steps", "num_envs"), [(1, 2), (5, 8), (40, 32), (6, 1)])
def test_over_the_batch_all_numbers_together_have_mean_0_and_mean_square_1(steps: int, num_envs: int) -> None:
    weight = 50 + 3 * Data(steps, num_envs).reward
    normal = normalize_over_batch(weight)
    every = normal.flatten().tolist()
    assert normal.shape == weight.shape
    assert sum(every) / len(every) == pytest.approx(0, abs=1e-12)
    assert sum(x * x for x in every) / len(every) == pytest.approx(1, abs=1e-12)
    assert torch.equal(normal.flatten().argsort(), weight.flatten().argsort())


def test_normalisation_by_hand() -> None:
    # row 1, 3: mean 2, sigma 1; row 0, 8: mean 4, sigma 4
    weight = torch.tensor([[1.0, 3.0], [0.0, 8.0]], dtype=torch.float64)
    assert normalize_over_games(weight).tolist() == [[-1, 1], [-1, 1]]
    # all of 1, 3, 0, 8: mean 3, squares 4 + 0 + 9 + 25 = 38, sigma = sqrt(38 / 4)
    sigma = 9.5**0.5
    expected = [[-2 / sigma, 0], [-3 / sigma, 5 / sigma]]
    torch.testing.assert_close(normalize_over_batch(weight), torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_with_a_memory_a_quiet_rollout_stays_quiet_and_a_loud_one_is_normalised() -> None:
    weight = Data(40, 8).reward
    normal, remembers = normalize_over_batch(weight), OverBatch(memory=0.9)
    sigma = float(weight.std(correction=0))
    assert torch.equal(remembers(weight), normal)  # the first
    torch.testing.assert_close(remembers(weight, 10 * sigma), normal / 10, **EXACT)
    torch.testing.assert_close(remembers(weight, sigma / 10), normal, **EXACT)
    assert not remembers(torch.full((3, 2), 0.1), 1.0).any()
    torch.testing.assert_close(OverBatch(floor=10 * sigma)(weight), normal / 10, **EXACT)
    torch.testing.assert_close(OverBatch(floor=10 * sigma)(weight, 20 * sigma), normal / 20, **EXACT)
    torch.testing.assert_close(OverBatch(floor=sigma / 10)(weight), normal, **EXACT)


def test_the_memory_of_a_deviation_starts_with_the_first_and_fades() -> None:
    remembers = OverBatch(memory=0.9)
    loud, silent = torch.tensor([[2.0, 4.0]]), torch.tensor([[3.0, 3.0]])  # sigma 1 and 0
    spread = remembers.update_std(0.0, loud)
    assert spread == 1
    for _ in range(5):
        spread = remembers.update_std(spread, silent)
    assert spread == pytest.approx(0.9**2.5)
    assert remembers.update_std(spread, 10 * loud) == pytest.approx((0.9**6 + 10) ** 0.5)
    assert remembers.update_std(spread, torch.tensor([[math.nan, 1.0]])) == spread
    assert OverBatch().update_std(0.0, loud) == 0  # has none


def test_over_games_compares_only_within_a_step_and_over_batch_with_everything() -> None:
    weight = Data(4, 6).reward
    other = weight.clone()
    other[2] = other[2].flip(0) * 7 + 1
    games, batch = normalize_over_games(weight), normalize_over_batch(weight)
    assert torch.equal(normalize_over_games(other)[[0, 1, 3]], games[[0, 1, 3]])
    assert not torch.allclose(normalize_over_batch(other)[[0, 1, 3]], batch[[0, 1, 3]], atol=1e-3)


@pytest.mark.parametrize("normalize", [normalize_over_games, normalize_over_batch])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [0.1, 1 / 3, 7.7, -0.3, 0.0])
@pytest.mark.parametrize("num_envs", [1, 6, 8, 32])
def test_equal_games_get_exactly_0_also_where_their_mean_is_rounded(normalize, dtype, number, num_envs) -> None:
    weight = torch.full((3, num_envs), number, dtype=dtype)
    assert torch.equal(normalize(weight), torch.zeros(3, num_envs, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_envs", [6, 8, 32])
def test_a_row_of_equal_games_is_0_beside_rows_that_differ(num_envs: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(num_envs)
    weight = torch.randn(4, num_envs, generator=draw).to(dtype)
    weight[1], weight[3] = 0.1, 0.0
    normal = normalize_over_games(weight)
    assert not normal[[1, 3]].any()
    alone = normalize_over_games(weight[[0, 2]])
    assert torch.equal(normal[[0, 2]], alone)
    torch.testing.assert_close(alone.square().mean(1), torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("normalize", [normalize_over_games, normalize_over_batch])
@pytest.mark.parametrize("scale", [1.0, -7.7, 1e-9, 1e9])
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 2e-6])
def test_small_but_real_differences_are_normalised(normalize, spread: float, scale: float) -> None:
    weight = scale * torch.tensor([[1.0, 1 + spread, 1.0, 1 + spread]], dtype=torch.float64)
    sign = 1 if scale > 0 else -1
    expected = sign * torch.tensor([[-1.0, 1, -1, 1]], dtype=torch.float64)
    torch.testing.assert_close(normalize(weight), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("normalize", [normalize_over_games, normalize_over_batch])
@pytest.mark.parametrize("scale", [1.0, -7.7, 1e-9, 1e9])
def test_differences_of_rounding_are_not_normalised(normalize, scale: float) -> None:
    weight = scale * torch.tensor([[1.0, 1 + 5e-7, 1.0, 1 - 4e-7]], dtype=torch.float64)
    assert not normalize(weight).any()


def test_one_unlike_game_among_zeros_is_seen() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, -1e-12]], dtype=torch.float64)
    # mean -1/4, sigma sqrt(3)/4 of the unit: 1 / sqrt(3) three times, -sqrt(3) once
    expected = torch.tensor([[3**-0.5] * 3 + [-(3**0.5)]], dtype=torch.float64)
    torch.testing.assert_close(normalize_over_games(weight), expected, **EXACT)


# What a Config chooses


def rollout(data: Data, terminated: Tensor, truncated: Tensor) -> Rollout:
    shape = data.reward.shape
    return Rollout(
        obs=torch.zeros(*shape, 2),
        preprocessed=torch.zeros(*shape, 2),
        action=torch.zeros(shape, dtype=torch.int64),
        logp=torch.zeros(shape, dtype=torch.float64),
        params=torch.zeros(shape, dtype=torch.float64),
        reward=data.reward,
        terminated=terminated,
        truncated=truncated,
        value=data.value,
        next_value=data.next_value,
        bootstrap_obs=torch.zeros(0, 2),
        bootstrap_index=torch.zeros(2, 0, dtype=torch.int64),
        episodes=[],
        env_s=0.0,
        act_s=0.0,
    )


def small_rollout() -> Rollout:
    """Environment 0: 1, 0, 2 terminated, then 8. Environment 1: 0, 4 truncated, then 2, 6."""
    data = Data(4, 2)
    data.reward = torch.tensor([[1, 0], [0, 4], [2, 2], [8, 6]], dtype=torch.float64)
    data.value = torch.tensor([[1, 2], [1, 1], [4, 1], [2, 2]], dtype=torch.float64)
    data.next_value = torch.tensor([[1, 1], [4, 6], [0, 2], [2, 4]], dtype=torch.float64)
    terminated = torch.tensor([[0, 0], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    truncated = torch.tensor([[0, 0], [0, 1], [0, 0], [0, 0]], dtype=torch.bool)
    return rollout(data, terminated, truncated)


def test_episode_return_credit_by_hand() -> None:
    weight, target = EpisodeReturn(gamma=0.5)(small_rollout())
    # game 0: 1 + 0 + 2 / 4 = 1.5, then 8; game 1: 0 + 4 / 2 = 2, then 2 + 6 / 2 = 5
    assert weight.tolist() == [[1.5, 2], [1.5, 2], [1.5, 5], [8, 5]]
    assert torch.equal(target, weight)


def test_future_return_credit_by_hand() -> None:
    weight, target = FutureReturn(gamma=0.5)(small_rollout())
    assert weight.tolist() == [[1.5, 2], [1, 4], [2, 5], [8, 6]]
    assert torch.equal(target, weight)


def test_gae_credit_by_hand() -> None:
    weight, target = GAE(gamma=0.5, gae_lambda=0.5)(small_rollout())
    # surprises, game 0: 1 + .5 - 1 = .5; 0 + 2 - 1 = 1; terminated 2 - 4 = -2; 8 + 1 - 2 = 7
    # surprises, game 1: 0 + .5 - 2 = -1.5; truncated 4 + 3 - 1 = 6; 2 + 1 - 1 = 2; 6 + 2 - 2 = 6
    # sums with 1/4, game 0: 1 - 2 / 4 = .5 and .5 + .5 / 4 = .625; game 1: 2 + 6 / 4 = 3.5 and -1.5 + 6 / 4 = 0
    assert weight.tolist() == [[0.625, 0], [0.5, 6], [-2, 3.5], [7, 6]]
    # the critic's target is the advantage plus V
    assert target.tolist() == [[1.625, 2], [1.5, 7], [2, 4.5], [9, 8]]


def test_gae_credit_by_hand_tells_gamma_from_lambda() -> None:
    weight, target = GAE(gamma=0.5, gae_lambda=0.25)(small_rollout())
    # the surprises are those above; sums with 1/8, game 0: 1 - 2 / 8 = .75, .5 + .75 / 8 = .59375; game 1:
    # 2 + 6 / 8 = 2.75, -1.5 + 6 / 8 = -.75
    assert weight.tolist() == [[0.59375, -0.75], [0.75, 6], [-2, 2.75], [7, 6]]
    assert target.tolist() == [[1.59375, 1.25], [1.75, 7], [2, 3.75], [9, 8]]


def test_centering_moves_values_by_a_constant_and_no_advantage() -> None:
    """Over terminations and truncations: rewards less 0.75 a step, values less 0.75 / (1 - 0.5) = 1.5."""
    r = small_rollout()
    reward = centered(r.reward, r.terminated, 0.75, 0.5)
    assert reward.tolist() == [[0.25, -0.75], [-0.75, 3.25], [0.5, 1.25], [7.25, 5.25]]  # 2 - 1.5 where it terminated
    next_value = (r.next_value - 1.5).masked_fill(r.terminated, 0.0)
    moved = replace(r, reward=reward, value=r.value - 1.5, next_value=next_value)
    advantage, target = GAE(gamma=0.5, gae_lambda=0.25)(r)
    again, less = GAE(gamma=0.5, gae_lambda=0.25)(moved)
    torch.testing.assert_close(again, advantage)
    torch.testing.assert_close(less, target - 1.5)
    cfg: Any = SimpleNamespace(reward=ScaledReward(), advantage=GAE(0.5, 0.25), normalize=Unnormalized())
    state: Any = SimpleNamespace(return_std=2.0, advantage_std=0.0, reward_shift=0.75)
    want = GAE(0.5, 0.25)(replace(r, reward=reward / 2))[0]
    torch.testing.assert_close(compute_advantages(r, cfg, state, Alone())[0], want)
    # (r - c) / std alone is clipped: with std 0.25 it is 1, -3, 5, 29; the third is less by 0.75 / 0.25 since it ends
    state.return_std, cfg.reward, cfg.advantage = 0.25, ScaledReward(limit=6.0), GAE(0.5, 0.0)
    delta = compute_advantages(r, cfg, state, Alone())[0][:, 0]
    assert delta.tolist() == [1 + 0.5 - 1, -3 + 2 - 1, 5 - 3 - 4, 6 + 1 - 2]


def test_what_is_learned_from_a_rollout_by_hand() -> None:
    """Scaled rewards, their returns, advantages over the std of earlier rollouts, and the next such std."""
    cfg: Any = SimpleNamespace(reward=ScaledReward(), advantage=FutureReturn(0.5), normalize=OverBatch(memory=0.9))
    state: Any = SimpleNamespace(return_std=2.0, advantage_std=10.0, reward_shift=None)
    advantage, returns, std = compute_advantages(small_rollout(), cfg, state, Alone())
    # half of the returns above: their mean is 14.75 / 8, the mean of their squares 38.0625 / 8
    half = [[0.75, 1], [0.5, 2], [1, 2.5], [4, 3]]
    assert returns.tolist() == half
    # their own std, 1.17, is less than 10
    assert advantage.tolist() == [[pytest.approx((x - 1.84375) / 10) for x in row] for row in half]
    assert std == pytest.approx((0.9 * 100 + 0.1 * (38.0625 / 8 - 1.84375**2)) ** 0.5)
    cfg.advantage, cfg.reward = GAE(0.5, 0.5), RawReward()  # as above: the critic's targets are not the advantages
    targets = [[1.625, 2], [1.5, 7], [2, 4.5], [9, 8]]
    assert compute_advantages(small_rollout(), cfg, state, Alone())[1].tolist() == targets
    cfg.advantage, cfg.reward = FutureReturn(0.5), SignReward()
    assert compute_advantages(small_rollout(), cfg, state, Alone())[1][:, 0].tolist() == [1.25, 0.5, 1, 1]


def test_a_rank_normalises_over_the_environments_of_all() -> None:
    class Second(Alone):
        """The second of two ranks; the first one's advantages are larger by 100 in its first environment."""

        def __init__(self) -> None:
            super().__init__()
            self.rank, self.count = 1, 2

        def gather_columns(self, columns: Tensor) -> Tensor:
            return torch.cat((columns + torch.tensor([100.0, 0.0], dtype=torch.float64), columns), 1)

    cfg: Any = SimpleNamespace(reward=RawReward(), advantage=FutureReturn(0.5), normalize=OverGames())
    advantage, returns, _ = compute_advantages(
        small_rollout(), cfg, SimpleNamespace(return_std=1.0, advantage_std=0.0, reward_shift=None), Second()
    )
    assert returns[0].tolist() == [1.5, 2]
    # the first step's are 101.5 and 2 there, 1.5 and 2 here: mean 26.75, so that all of these are below it
    row = [101.5, 2, 1.5, 2]
    sigma = (sum((x - 26.75) ** 2 for x in row) / 4) ** 0.5
    assert advantage[0].tolist() == pytest.approx([(1.5 - 26.75) / sigma, (2 - 26.75) / sigma])


def test_the_normalizers_a_config_can_choose_do_what_they_say() -> None:
    weight = torch.tensor([[1.0, 3.0], [0.0, 8.0]], dtype=torch.float64)
    assert torch.equal(Unnormalized()(weight), weight)
    assert OverGames()(weight).tolist() == [[-1, 1], [-1, 1]]
    assert float(OverBatch()(weight)[0, 1]) == 0  # 3 is the mean of all four
    assert float(OverBatch()(weight)[1, 1]) == pytest.approx(5 / 9.5**0.5)
