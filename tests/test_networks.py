"""Networks: shapes, parameters, the folded first layer against the plain one, the flat parameter, the summary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

import surefoot
from surefoot.algorithm.fast_paths import inference_policy, make_actor
from surefoot.config import Config
from surefoot.envs.atari import lesson_table
from surefoot.errors import UserError
from surefoot.fast.packed import PackedActor
from surefoot.models.actor import Actor
from surefoot.models.layers import Palette, Patches, Residual
from surefoot.models.networks import MLP, ImpalaCNN, LessonCNN, NatureCNN, Network, SmallCNN
from surefoot.models.policy import Policy, flatten
from surefoot.models.policy import build_policy as build
from surefoot.presets import CARTPOLE

FRAMES = spaces.Box(0, 255, (2, 80, 80), np.uint8)
VECTOR = spaces.Box(-1, 1, (4,), np.float32)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 2, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def built(network: Network, space: spaces.Box, actions: int) -> Policy:
    torch.manual_seed(0)
    return network.build(space, spaces.Discrete(actions))


@pytest.mark.parametrize(
    ("network", "space", "actions", "parameters"),
    [
        (LessonCNN(), FRAMES, 2, 334_897),
        (LessonCNN(critic=True), FRAMES, 2, 334_897 + 257),
        (LessonCNN(critic=True, separate_critic=True), FRAMES, 2, 2 * 334_897),
        # 16*2*64+16, 32*16*16+32, 2048*256+256, 256*3+3, 256+1
        (SmallCNN(), FRAMES, 3, 2_064 + 8_224 + 524_544 + 771 + 257),
        (SmallCNN(separate_critic=True), FRAMES, 3, 2 * (2_064 + 8_224 + 524_544) + 771 + 257),
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
    assert torch.equal(policy.evaluate(policy.preprocess(obs))[1], value)


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


def test_a_rollout_keeps_pictures_in_the_networks_memory_format() -> None:
    policy = built(LessonCNN(), FRAMES, 2)
    actor = Actor(policy, torch.zeros(3, 2))
    for t in range(3):
        actor.act(t, images(2, t).numpy())
    kept = actor.preprocessed.flatten(0, 1)
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kept, torch.cat([policy.preprocess(images(2, t)) for t in range(3)]))


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


def test_first_weights_leave_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    build(CARTPOLE, spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    assert seeded == []


@pytest.mark.parametrize("network", [SmallCNN(), ImpalaCNN(), SmallCNN(separate_critic=True)], ids=str)
@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16"])
def test_the_policy_that_acts_is_the_policy_that_learns(network: Network, kind: str) -> None:
    """Packed for oneDNN, or not where it cannot be (float64); with heads of PyTorch and, in an actor, of NumPy."""
    policy = built(network, FRAMES, 3)
    if kind == "float64":
        policy = policy.double()
    policy.bf16 = kind == "bfloat16"
    before = {name: p.clone() for name, p in policy.state_dict().items()}
    close = {"rtol": 1e-5, "atol": 1e-6} if kind != "float64" else {"rtol": 1e-12, "atol": 1e-12}
    noise = torch.rand(1, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        learned = policy(images(4))
        packed = inference_policy(policy)
        assert not any(p.requires_grad for p in packed.parameters())
        dist, value, _ = packed(images(4))
        actor = make_actor(policy, noise)
        assert isinstance(actor, PackedActor) is policy.shares
        action = actor.act(0, images(4).numpy())
        done = actor.decisions(images(4).numpy()[None], images(4).numpy())
    for params, v in ((dist.params, value), (done.params[0], done.value[0]), (done.params[0], done.bootstrap_value)):
        torch.testing.assert_close(learned[0].params, params, **close)  # only the order of sums differs
        torch.testing.assert_close(learned[1], v, **close)
    assert done.action[0].tolist() == action == learned[0].sample(noise[0]).tolist()
    for name, p in policy.state_dict().items():
        assert torch.equal(p, before[name])
        assert p.dtype == before[name].dtype


def test_an_actor_for_images_has_gaussians_too() -> None:
    policy = SmallCNN().build(FRAMES, spaces.Box(-1, 1, (2,), np.float32))
    noise = torch.rand(1, 4, 2, generator=torch.Generator().manual_seed(1))
    fast, plain = make_actor(policy, noise), Actor(policy, noise)
    with torch.no_grad():
        actions = [actor.act(0, images(4).numpy()) for actor in (fast, plain)]
        a, b = (actor.decisions(images(4).numpy()[None], images(4).numpy()) for actor in (fast, plain))
    np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-6)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_gradients_in_bfloat16_are_autocasts() -> None:
    policy = built(SmallCNN(), FRAMES, 3)
    policy.bf16 = True
    flatten(policy)
    seen, generator = policy.preprocess(images(16)), torch.Generator().manual_seed(1)
    weights, value_weights = torch.randn(16, 3, generator=generator), torch.randn(16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        features = policy.body(seen).float()
    out, value = policy.actor(features), policy.critic(features)[:, 0]
    expected = torch.autograd.grad((out, value), [*policy.parameters()], (weights, value_weights))
    dist, found = policy.evaluate(seen)
    torch.autograd.backward((dist.logits, found), (weights, value_weights))
    assert torch.equal(dist.logits, out)
    assert torch.equal(found, value)
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


def test_an_mlp_stays_in_single_precision(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.models.policy.bf16_units", lambda: "amx_bf16")
    for network, space in ((MLP(), VECTOR), (SmallCNN(), FRAMES)):
        policy = build(replace(small, network=network, bf16=True), space, spaces.Discrete(2))
        assert policy.bf16 == (space is FRAMES)


def test_actor_and_critic_of_a_pair_know_nothing_of_each_other() -> None:
    policy = built(MLP((8, 8)), VECTOR, 2)
    policy(torch.randn(5, 4))[1].sum().backward()
    for pair in policy.hidden:
        assert pair.weight.grad is not None
        assert not pair.weight.grad[0].any()
        assert pair.weight.grad[1].any()


@pytest.mark.parametrize(
    "network",
    [LessonCNN(critic=True, separate_critic=True), SmallCNN(separate_critic=True), NatureCNN(separate_critic=True)],
    ids=lambda network: type(network).__name__,
)
def test_a_separate_critic_knows_nothing_of_the_policy(network: Network) -> None:
    """What one learns from reaches no parameter of the other's; only shared layers would be reached by both."""
    policy = built(network, FRAMES, 2)
    dist, value, _ = policy(images(3))
    parameters = dict(policy.named_parameters())
    for output in (dist.params, value):
        grads = torch.autograd.grad(output.square().sum(), [*parameters.values()], retain_graph=True, allow_unused=True)
        reached = {name for name, grad in zip(parameters, grads, strict=True) if grad is not None and grad.any()}
        assert reached == {name for name in parameters if name.startswith("critic") is (output is value)}


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


def test_a_picture_too_small_for_convolutions_is_numbers_beside_a_larger_one() -> None:
    small, large = (spaces.Box(0, 255, shape, np.uint8) for shape in ((8, 8, 3), (40, 48, 3)))
    policy = NatureCNN().build(spaces.Dict(a=small, b=large), spaces.Discrete(2))
    rows = torch.zeros(3, 8 * 8 * 3 + 40 * 48 * 3, dtype=torch.uint8)
    rows[1, 5] = rows[2, 500] = 255
    nothing, in_small, in_large = policy(rows)[1].tolist()
    assert len({nothing, in_small, in_large}) == 3
