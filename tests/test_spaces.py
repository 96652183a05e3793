"""Spaces: what is sampled, what an environment gets, how observations lie in a row, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent as TorchIndependent
from torch.distributions import Normal, kl_divergence

from surefoot.algorithm.rollout import Rollout, collect
from surefoot.envs.actions import action_converter, choices
from surefoot.envs.gym import Gymnasium
from surefoot.envs.spaces import blank, masked, pack, parts
from surefoot.envs.vector import EnvVector
from surefoot.errors import Fault, UserError, note_once
from surefoot.models.distributions import DiagonalGaussian, MultiCategorical, head
from surefoot.models.networks import MLP, ImpalaCNN, NatureCNN, Network
from surefoot.models.policy import Policy
from surefoot.runs.evaluation import evaluate

LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


def gaussian(seed: int) -> tuple[DiagonalGaussian, TorchIndependent]:
    draw = torch.Generator().manual_seed(seed)
    mean, log_std = torch.randn(2, 50, 3, generator=draw, dtype=torch.float64)
    return DiagonalGaussian(torch.cat((mean, log_std), -1)), TorchIndependent(Normal(mean, log_std.exp()), 1)


def test_the_gaussian_is_torchs() -> None:
    (mine, theirs), (other, their_other) = gaussian(0), gaussian(1)
    action = torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(mine.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(mine.entropy(), theirs.entropy())
    torch.testing.assert_close(mine.kl_from(other), kl_divergence(their_other, theirs))  # KL(old || new)
    torch.testing.assert_close(mine.cross_entropy(other), theirs.entropy() + kl_divergence(theirs, their_other))
    assert mine.kl_from(mine).abs().max() < 1e-15


def test_gaussian_samples_are_the_inverse_of_the_cumulative_distribution() -> None:
    noise = (torch.arange(4000) / 4000)[:, None].expand(-1, 3)
    dist = DiagonalGaussian(torch.tensor([1.0, -2.0, 0.0, 0.0, 1.0, -1.0]).expand(4000, 6))
    action = dist.sample(noise)
    back = Normal(dist.mean, dist.log_std.exp()).cdf(action)
    torch.testing.assert_close(back, noise, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(dist.greedy(), dist.mean)


def test_gaussian_samples_are_finite_and_even_at_both_ends_of_the_noise() -> None:
    dist = DiagonalGaussian(torch.zeros(2, 2))
    low, high = dist.sample(torch.tensor([[0.0], [LARGEST]]))[:, 0].tolist()
    assert -6 < low < -5
    assert low == -high


def test_independent_choices_are_the_sum_of_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, old = torch.randn(2, 40, 5, generator=draw, dtype=torch.float64)
    mine, other = MultiCategorical(logits, (2, 3)), MultiCategorical(old, (2, 3))
    theirs = [TorchCategorical(logits=part) for part in (logits[:, :2], logits[:, 2:])]
    others = [TorchCategorical(logits=part) for part in (old[:, :2], old[:, 2:])]
    action = mine.sample(torch.rand(40, 2, generator=draw))
    assert action.max(0).values.tolist() == [1, 2]
    want = theirs[0].log_prob(action[:, 0]) + theirs[1].log_prob(action[:, 1])
    torch.testing.assert_close(mine.log_prob(action), want)
    torch.testing.assert_close(mine.entropy(), sum(t.entropy() for t in theirs))
    torch.testing.assert_close(mine.kl_from(other), sum(map(kl_divergence, others, theirs)))
    again = MultiCategorical(mine.params, (2, 3))  # as a rollout stores it
    torch.testing.assert_close(again.log_prob(action), want)
    assert mine.greedy().tolist() == [
        [int(a.argmax()), int(b.argmax())] for a, b in zip(*logits.split((2, 3), 1), strict=True)
    ]


def test_actions_are_clipped_to_the_bounds_they_are_units_of() -> None:
    act = action_converter(spaces.Box(np.float32([0, -3]), np.float32([10, 3])))
    assert act is not None
    assert act(np.float32([-1, 1])).tolist() == [0, 3]
    assert act(np.float32([0.5, -0.5])).tolist() == [7.5, -1.5]
    assert act(np.float32([-7, 7])).tolist() == [0, 3]
    unit = action_converter(spaces.Box(-1, 1, (2,)))
    assert unit is not None
    assert unit(np.float32([0.3, -2])).tolist() == np.float32([0.3, -1]).tolist()
    square = action_converter(spaces.Box(-2, 2, (2, 2)))
    assert square is not None
    assert square([1, 0, -1, 9]).tolist() == [[2, 0], [-2, 2]]


def test_whole_numbers_arrive_as_the_space_has_them() -> None:
    shifted, many = spaces.Discrete(3, start=5), spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [0, 0]])
    switches = spaces.MultiBinary(4)
    for space, action, want in (
        (shifted, 2, 7),
        (many, [1, 2, 3, 4], [[1, 3], [3, 4]]),
        (switches, [1, 0, 0, 1], [1, 0, 0, 1]),
    ):
        act = action_converter(space)
        assert act is not None
        got = act(action)
        assert space.contains(got)
        assert np.asarray(got).tolist() == want
    assert type(action_converter(spaces.Discrete(3))(2)) is np.int64  # as `sample` gives it
    assert (choices(shifted), choices(many), choices(switches)) == ((3,), (2, 3, 4, 5), (2, 2, 2, 2))
    assert [head(s)[:2] for s in (shifted, many, switches)] == [(3, ()), (14, (4,)), (8, (4,))]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Text(3), "are supported; .*TransformAction"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Sequence(spaces.Discrete(2))), "are supported; .*TransformAction"),
        (spaces.Tuple(()), "are supported; .*TransformAction"),
    ],
    ids=str,
)
def test_actions_that_cannot_be_learned_are_refused(space: spaces.Space[Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        head(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Dict(a=spaces.Dict(b=spaces.Sequence(spaces.Discrete(2)))), "make a Box of it with a wrapper"),
        (spaces.Text(5), "observations are Text"),
        (spaces.Dict(), "empty"),
    ],
    ids=["sequence", "text", "empty"],
)
def test_observations_that_cannot_be_learned_are_refused(space: spaces.Space[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parts(space)


def test_bounds_that_are_no_numbers_can_be_seen_but_not_acted_in() -> None:
    space = spaces.Box(-1, 1, (2,))
    space.low = np.float32([0, np.nan])
    assert len(parts(space)) == 1
    with pytest.raises(UserError, match="lower bounds must not be above"):
        action_converter(space)


EVERYTHING = spaces.Dict(
    picture=spaces.Box(0, 255, (40, 44, 3), np.uint8),
    inner=spaces.Dict(speed=spaces.Box(-9, 9, (2, 2), np.float64), room=spaces.Discrete(4, start=1)),
    doors=spaces.MultiBinary(3),
    action_mask=spaces.Box(0, 1, (5,), np.int8),
)


def everything(rows: int) -> tuple[list[Any], torch.Tensor]:
    EVERYTHING.seed(0)
    seen = [EVERYTHING.sample() for _ in range(rows)]
    row = np.stack([blank(EVERYTHING)] * rows)
    for obs, out in zip(seen, row, strict=True):
        pack(parts(EVERYTHING), obs, out)
    return seen, torch.from_numpy(row)


def test_a_dict_is_taken_apart_as_it_was_laid() -> None:
    from surefoot.models.layers import VectorEncoder, part_of

    seen, rows = everything(6)
    layout = parts(EVERYTHING)
    assert layout[-1].path == ("action_mask",)
    for part in layout:
        for obs, mine in zip(seen, part_of(rows, part), strict=True):
            value = obs
            for key in part.path:
                value = value[key]
            first = part.first.item() if part.sizes else 0
            assert np.array_equal(mine.numpy().reshape(np.shape(value)), np.float32(value) - first)
    width = VectorEncoder(layout)(rows).shape[1]
    assert width == 40 * 44 * 3 + 4 + 4 + 3 + 5


def test_one_hot_bytes_and_switches_are_what_they_should_be() -> None:
    from surefoot.models.layers import VectorEncoder

    space = spaces.Dict(a=spaces.Discrete(3, start=1), b=spaces.Box(0, 255, (2,), np.uint8), c=spaces.MultiBinary(2))
    row = blank(space)
    pack(parts(space), {"a": 3, "b": np.uint8([0, 51]), "c": np.int8([1, 0])}, row)
    assert VectorEncoder(parts(space))(torch.from_numpy(row[None])).tolist() == [pytest.approx([0, 0, 1, 0, 0.2, 1, 0])]


@pytest.mark.parametrize("network", [MLP((8,), running=True), NatureCNN(), ImpalaCNN()], ids=str)
def test_a_dict_is_seen_whole_and_its_mask_is_obeyed(network: Network) -> None:
    """Every part changes what the policy thinks, but the mask only what it may do; forbidden actions never happen."""
    torch.manual_seed(0)
    policy = network.build(EVERYTHING, spaces.Discrete(5))
    policy.actor.weight.data *= 100
    _, rows = everything(64)
    with torch.no_grad():
        dist, value, _ = policy(rows)
        allowed = rows[:, -5:] > 0
        some = allowed.any(1)
        assert (dist.probabilities()[some][~allowed[some]] == 0).all()
        for noise in (torch.zeros(64), torch.full((64,), LARGEST), torch.rand(64)):
            action = dist.sample(noise)
            assert allowed[some].gather(1, action[some, None]).all()
        for figure in (
            dist.entropy(),
            dist.kl_from(policy.distribution(dist.params.roll(1, 0))),
            dist.log_prob(action),
        ):
            assert figure.isfinite().all()
        for part in parts(EVERYTHING):
            other = rows.clone()
            other[:, part.start : part.stop] = rows[:, part.start : part.stop].roll(1, 0)
            assert torch.equal(policy(other)[1], value) == (part.path == ("action_mask",))


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"action_mask has shape \(5,\)"):
        MLP().build(EVERYTHING, spaces.Discrete(4))
    assert masked(EVERYTHING, spaces.Box(-1, 1, (5,))) == 0


@pytest.mark.parametrize("network", [NatureCNN(), ImpalaCNN()], ids=str)
@pytest.mark.parametrize("shape", [(40, 44, 3), (3, 40, 44), (40, 44)], ids=str)
def test_images_may_have_their_channels_first_last_or_not_at_all(shape: tuple[int, ...], network: Network) -> None:
    torch.manual_seed(0)
    space = spaces.Box(0, 255, shape, np.uint8)
    policy = network.build(space, spaces.Discrete(2))
    image = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    assert policy(image)[1].shape == (2,)
    if shape == (40, 44, 3):
        torch.manual_seed(0)
        first = network.build(spaces.Box(0, 255, (3, 40, 44), np.uint8), spaces.Discrete(2))
        first.load_state_dict(policy.state_dict())
        torch.testing.assert_close(first(image.permute(0, 3, 1, 2))[1], policy(image)[1])


def play(env_id: str, num_steps: int = 12) -> tuple[Rollout, EnvVector, Policy]:
    envs = EnvVector(Gymnasium(env_id), 5, range(2))
    envs.reset_all()
    torch.manual_seed(0)
    policy = MLP((8,)).build(envs.observation_space, envs.action_space)
    noise = torch.rand(num_steps, 2, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
    return collect(policy, envs, noise), envs, policy


def test_what_was_sampled_is_learned_from_and_what_fits_is_played() -> None:
    """The world pays 1 for each number within its bounds and shows the action it got."""
    r, _, policy = play("worlds:Target-v0", 40)
    assert r.action.shape == (40, 2, 2)
    assert (r.action.abs() > 1).any()
    with torch.no_grad():
        dist = policy(r.obs.flatten(0, 1))[0]
        torch.testing.assert_close(dist.log_prob(r.action.flatten(0, 1)), r.logp.flatten(), atol=1e-5, rtol=1e-5)
    inside = ~r.ended[:-1]
    played = (2 + 3 * r.action.clamp(-1, 1))[:-1][inside]  # bounds -1 to 5
    torch.testing.assert_close(r.obs[1:, :, 1:][inside], played)


@pytest.mark.parametrize("env_id", ["worlds:Target-v0", "worlds:Switches-v0", "worlds:Doors-v0", "worlds:Nested-v0"])
def test_every_kind_of_game_is_restored_in_the_middle_of_an_episode(env_id: str) -> None:
    _, envs, policy = play(env_id)
    other = EnvVector(Gymnasium(env_id), 5, range(2))
    assert other.restore(envs.snapshot()) == []
    noise = torch.rand(9, 2, *policy.noise_shape, generator=torch.Generator().manual_seed(2))
    a, b = collect(policy, envs, noise), collect(policy, other, noise)
    for name in ("obs", "action", "reward", "terminated", "truncated"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert len(evaluate(policy, Gymnasium(env_id), range(3)).scores) == 3


def test_masks_are_found_obeyed_and_kept() -> None:
    r, envs, policy = play("worlds:Doors-v0", 60)
    assert policy.masks == 4
    allowed = r.obs[..., -4:] > 0
    assert allowed.gather(-1, r.action[..., None]).all()
    assert (~allowed).any()
    assert (r.params[~allowed] < -1e6).all()
    assert envs.envs[0].env.unwrapped.broken == 0


def test_a_mask_that_allows_nothing_allows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    note_once.cache_clear()
    envs = EnvVector(Gymnasium("worlds:Doors-v0"), 5, range(1))
    envs.reset_all()
    envs.envs[0].env.unwrapped.shut = True
    out = envs.obs.copy()
    envs.step([envs.envs[0].env.unwrapped.open], out)
    assert out[0, -4:].tolist() == [1, 1, 1, 1]
    assert capsys.readouterr().err.count("its action mask allows no action") == 1


def test_a_fault_of_a_continuous_game_is_named_without_actions() -> None:
    envs = EnvVector(Gymnasium("worlds:Target-v0"), 5, range(1))
    envs.reset_all()
    with pytest.raises(Fault, match=r"\(episode's seed \d+, step 1\) failed: .*nan"):
        envs.step(np.float32([[np.nan, 0]]), envs.obs.copy())
