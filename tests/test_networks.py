"""Networks: shapes, parameters, the folded first layer against the plain one, the flat parameter, the summary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

import surefoot
from surefoot.algorithm.state import build
from surefoot.config import Config
from surefoot.envs.atari import lesson_table
from surefoot.errors import UserError
from surefoot.fast.packed import inference_policy
from surefoot.models.distributions import normal
from surefoot.models.networks import MLP, ImpalaCNN, LessonCNN, NatureCNN, Network, SmallCNN
from surefoot.models.policy import Palette, Patches, Policy, Residual, flatten

FRAMES = spaces.Box(0, 255, (2, 80, 80), np.uint8)
VECTOR = spaces.Box(-1, 1, (4,), np.float32)


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 2, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def built(network: Network, space: spaces.Box, actions: int) -> Policy:
    torch.manual_seed(0)
    return network.build(space, spaces.Discrete(actions))


@pytest.mark.parametrize(
    ("network", "space", "actions", "parameters"),
    [
        (LessonCNN(), FRAMES, 2, 334_897),
        (LessonCNN(critic=True), FRAMES, 2, 334_897 + 257),
        # 16*2*64+16, 32*16*16+32, 2048*256+256, 256*3+3, 256+1
        (SmallCNN(), FRAMES, 3, 2_064 + 8_224 + 524_544 + 771 + 257),
        # 2*9*16+16, 4*(16*9*16+16), 16*9*32+32, 9*(32*9*32+32), 32*10*10*256+256, 256*3+3, 256+1
        (ImpalaCNN(), FRAMES, 3, 304 + 9_280 + 4_640 + 83_232 + 819_456 + 771 + 257),
        # twice (4*64+64 + 64*64+64), 64*2+2, 64+1
        (MLP(), VECTOR, 2, 2 * (320 + 4_160) + 130 + 65),
    ],
    ids=str,
)
def test_shapes_and_parameters(network: Network, space: spaces.Box, actions: int, parameters: int) -> None:
    policy = built(network, space, actions)
    assert sum(p.numel() for p in policy.parameters()) == parameters
    obs = images(5) if space is FRAMES else torch.rand(5, 4)
    dist, value, memory = policy(obs)
    assert dist.probabilities().shape == (5, actions)
    assert value.shape == (5,)
    assert memory is None
    assert torch.equal(policy.judge(policy.preprocess(obs))[1], value)


def test_a_policy_without_a_critic_expects_nothing() -> None:
    assert built(LessonCNN(), FRAMES, 2)(images(3))[1].tolist() == [0, 0, 0]


def test_the_first_layer_is_a_plain_convolution_of_scaled_pixels() -> None:
    """8x8 with stride 4 over (pixel - background) / scale, by torch's own convolution on the image itself."""
    policy = built(SmallCNN(background=78, scale=64), FRAMES, 3).double()
    obs = images(2)
    conv = policy.body[0]
    # weights [16, 2*4*4 (channel, row, column in the patch), 2, 2 (patch row, column)] to [16, 2, 8, 8]
    plain = conv.weight.view(16, 2, 4, 4, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(16, 2, 8, 8)
    want = F.conv2d((obs.double() - 78) / 64, plain, conv.bias, stride=4)
    assert torch.allclose(conv(policy.preprocess(obs)), want, atol=1e-12)
    padded = built(ImpalaCNN(), FRAMES, 3).double()
    want = F.conv2d(obs.double() / 255, padded.body[0].weight, padded.body[0].bias, padding=1)
    assert torch.allclose(padded.body[0](padded.preprocess(obs)), want, atol=1e-12)
    exact = built(NatureCNN(), spaces.Box(0, 1, (2, 48, 48)), 3)
    unit = built(NatureCNN(scale=1), spaces.Box(0, 255, (2, 48, 48), np.uint8), 3)
    assert torch.equal(exact(images(2)[..., :48, :48].float())[1], unit(images(2)[..., :48, :48])[1])


def test_a_residual_unit_adds_to_what_it_is_given() -> None:
    """It begins as the identity; with 1 in the middle of both windows it is x + relu(relu(x)); what it got stays."""
    policy = built(ImpalaCNN(), FRAMES, 3)
    units = [layer for layer in policy.body if isinstance(layer, Residual)]
    assert len(units) == 6
    given = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    x = given.clone()
    assert torch.equal(units[0](x), given)
    for layer in (units[0].first, units[0].last):
        torch.nn.init.dirac_(layer.weight)
    assert torch.allclose(units[0](x), given + given.clamp(min=0))
    assert torch.equal(x, given)


@pytest.mark.parametrize("network", [SmallCNN(), ImpalaCNN()], ids=str)
def test_bfloat16_is_close_and_leaves_the_heads_exact(network: Network) -> None:
    policy = built(network, FRAMES, 3)
    exact, value, _ = policy(images(8))
    policy.bf16 = True
    rough, rough_value, _ = policy(images(8))
    assert rough.params.dtype == rough_value.dtype == torch.float32
    assert 0 < (value - rough_value).abs().max() < 0.05 * value.abs().max() + 0.02
    assert (exact.params - rough.params).abs().max() < 0.01


@pytest.mark.parametrize("network", [SmallCNN(), ImpalaCNN()], ids=str)
@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16"])
def test_whoever_plays_plays_the_same_policy(network: Network, kind: str) -> None:
    """Laid out by oneDNN, or not where it cannot (float64); with heads of PyTorch and of NumPy."""
    policy = built(network, FRAMES, 3)
    if kind == "float64":
        policy = policy.double()
    policy.bf16 = kind == "bfloat16"
    before = {name: p.clone() for name, p in policy.state_dict().items()}
    with torch.no_grad():
        learned = policy(images(16))
        for arrays in (False, True):
            played = inference_policy(policy, arrays)
            assert not any(p.requires_grad for p in played.parameters())
            dist, value, _ = played(images(16))
            assert isinstance(value, np.ndarray) == arrays
            close = {"rtol": 1e-5, "atol": 1e-6} if kind != "float64" else {"rtol": 1e-12, "atol": 1e-12}
            torch.testing.assert_close(learned[0].params, torch.as_tensor(dist.params), **close)  # only sums' order
            torch.testing.assert_close(learned[1], torch.as_tensor(value), **close)
    for name, p in policy.state_dict().items():
        assert torch.equal(p, before[name])
        assert p.dtype == before[name].dtype


def test_whoever_plays_images_may_act_in_numbers() -> None:
    """A Gaussian's deviations go with the heads of NumPy."""
    policy = SmallCNN().build(FRAMES, spaces.Box(-1, 1, (2,), np.float32))
    dist, value, _ = inference_policy(policy, arrays=True)(images(4))
    with torch.no_grad():
        learned = policy(images(4))
    torch.testing.assert_close(learned[0].params, torch.as_tensor(dist.params))
    torch.testing.assert_close(learned[1], torch.as_tensor(value))


def test_gradients_in_bfloat16_are_autocasts() -> None:
    """Bit for bit, though the large ones skip single precision on their way."""
    policy = built(SmallCNN(), FRAMES, 3)
    policy.bf16 = True
    flatten(policy)
    seen, generator = policy.preprocess(images(16)), torch.Generator().manual_seed(1)
    slope, value_slope = torch.randn(16, 3, generator=generator), torch.randn(16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        features = policy.body(seen).float()
    out, value = policy.actor(features), policy.critic(features)[:, 0]
    expected = torch.autograd.grad((out, value), [*policy.parameters()], (slope, value_slope))
    new, judged, pull = policy.traced(seen)
    pull(slope, value_slope, add=False)
    assert torch.equal(new.logits, out)
    assert torch.equal(judged, value)
    for p, gradient in zip(policy.parameters(), expected, strict=True):
        assert torch.equal(p.grad, gradient)


def test_patches_are_the_same_moved_by_words_and_by_pixels() -> None:
    obs = images(3)
    for size in (4, 8):
        for some in (obs, obs[:, :1, :45, :44].contiguous()):
            assert torch.equal(Patches(size)(some).float(), Patches(size)(some.float()))
    assert Patches(3)(obs).shape == (3, 26, 26, 18)


def test_the_palette_gives_exact_colours() -> None:
    layer = Palette(lesson_table())
    out = layer(images(2))
    assert out.shape == (2, 2, 80, 80)
    assert torch.equal(out[1, 0, 5, 7], torch.tensor(lesson_table()[int(images(2)[1, 0, 5, 7])]).float())


def test_the_flat_parameter_is_the_policy() -> None:
    policy = built(MLP((8,)), VECTOR, 2)
    before = [p.detach().clone() for p in policy.parameters()]
    flat = flatten(policy)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert torch.equal(flat[: 4 * 8].view(8, 4), policy.body[0].weight[0])  # matrices first
    policy(torch.ones(3, 4))[1].sum().backward()
    assert flat.grad is not None
    assert flat.grad.norm() > 0
    with torch.no_grad():
        flat.zero_()
    assert all((p == 0).all() for p in policy.parameters())


@pytest.mark.parametrize(
    ("network", "space"),
    [
        (MLP((8, 5)), spaces.Discrete(3)),
        (MLP((8,)), spaces.Box(-1, 1, (2,))),
        (MLP((8, 6, 4), running=True), spaces.MultiDiscrete([2, 3])),
    ],
    ids=str,
)
def test_an_mlps_written_out_chain_rule_is_autograds(network: MLP, space: spaces.Space[Any]) -> None:
    """The same distribution and value, and the same gradient of something of both, added to what is there."""
    torch.manual_seed(0)
    policy = network.build(VECTOR, space).double()
    flat = flatten(policy)
    assert flat.grad is not None
    seen = torch.randn(7, 4, dtype=torch.float64)
    obs, gradients = policy.preprocess(seen), []
    for way in ("autograd", "tensors", "arrays"):
        flat.grad.fill_(0.5)
        dist, value, _ = policy.judge(obs)
        action = dist.sample(torch.full((7, *policy.draws), 0.3)).detach()
        noise = torch.full((7, *policy.draws), 0.3)
        drawn = normal(noise) if policy.log_std is not None else noise
        acting = torch.from_numpy(policy.acting()(seen.numpy(), drawn.numpy()))
        torch.testing.assert_close(acting, dist.sample(noise), rtol=0, atol=1e-12)
        if way == "autograd":
            (dist.log_prob(action) * value).sum().backward()
        else:
            given, taken = (obs, action) if way == "tensors" else (obs.numpy(), action.numpy())
            with torch.no_grad():
                dist, value, pull = policy.traced(given)
                pull(dist.score(taken, value), dist.log_prob(taken))
                added = flat.grad.clone()
                flat.grad.fill_(float("nan"))  # as after an update that was skipped
                policy.traced(given)[2](dist.score(taken, value), dist.log_prob(taken), add=False)
                torch.testing.assert_close(flat.grad + 0.5, added, rtol=0, atol=1e-12)
                flat.grad.copy_(added)
        gradients.append(flat.grad.clone())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-12)
    assert (gradients[0] != 0.5).all()


def test_an_mlp_stays_in_single_precision(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.algorithm.state.bf16_units", lambda: "amx_bf16")
    for network, space in ((MLP(), VECTOR), (SmallCNN(), FRAMES)):
        policy = build(replace(small, network=network, bf16=True), space, spaces.Discrete(2))
        assert policy.bf16 == (space is FRAMES)


def test_actor_and_critic_of_a_pair_know_nothing_of_each_other() -> None:
    policy = built(MLP((8, 8)), VECTOR, 2)
    policy(torch.randn(5, 4))[1].sum().backward()
    for pair in policy.pairs:
        assert pair.weight.grad is not None
        assert not pair.weight.grad[0].any()
        assert pair.weight.grad[1].any()


def test_spaces_that_do_not_fit_are_refused() -> None:
    for network, space, actions in (
        (LessonCNN(), FRAMES, 3),
        (LessonCNN(), VECTOR, 2),
        (SmallCNN(), VECTOR, 2),
        (ImpalaCNN(), VECTOR, 2),
        (SmallCNN(kernel=(6, 4)), FRAMES, 3),
        (SmallCNN(kernel=(80, 4), stride=(80, 2)), FRAMES, 3),
    ):
        with pytest.raises(UserError, match=type(network).__name__):
            built(network, space, actions)


def test_the_summary_counts_and_points_out_growth() -> None:
    lesson = surefoot.summary("pong-lesson")
    assert "334,897 parameters" in lesson
    assert "no layer has more outputs" in lesson
    from dataclasses import replace

    from surefoot.presets import PONG

    grown = surefoot.summary(replace(PONG, network=SmallCNN(filters=(64, 32))))
    assert "have more outputs than inputs" in grown
    assert "12,800 inputs, 23,104 outputs" in grown  # 64 x 19 x 19


def test_continuous_actions_begin_with_the_deviation_that_was_asked_for() -> None:
    policy = MLP((8,), std=0.25).build(VECTOR, spaces.Box(-1, 1, (3,)))
    dist, _, _ = policy(torch.zeros(5, *VECTOR.shape))
    assert dist.log_std.exp().tolist() == [[pytest.approx(0.25)] * 3] * 5
