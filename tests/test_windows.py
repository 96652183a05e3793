"""Windows: images come back from them exactly, nothing is in them twice, and a network learns the same from them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import surefoot
import surefoot.fast.windows as module
from helpers import TINY
from surefoot.algorithm.schedules import FixedRate
from surefoot.fast.windows import Windows, distinct_windows, windows_of
from surefoot.models.networks import ImpalaCNN, NatureCNN, SmallCNN
from surefoot.models.optimizers import Adam
from surefoot.models.policy import Policy, flatten
from surefoot.presets import PONG

FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def scenes(count: int = 40, channels: int = 4, size: int = 84, dtype: Any = np.uint8) -> Tensor:
    """Images of a still background before which something moves."""
    generator = np.random.default_rng(5)
    images = np.repeat(generator.integers(0, 3, (1, channels, size, size)), count, 0)
    for image in images:
        y, x = generator.integers(0, size - 5, 2)
        image[:, y : y + 4, x : x + 4] = 200
    return torch.from_numpy(images.astype(dtype))


def whole(seen: Windows) -> Tensor:
    """The patches of every place, windows of windows written out: [B, height, width, K..., C]."""
    rows = seen.rows
    for table in seen.tables:
        rows = rows[torch.from_numpy(table)]
    return rows


def cut(patches: Tensor, *shape: module.Shape) -> Tensor:
    """The same by PyTorch's unfold."""
    x = patches  # [B, height, width, (K, ...) C]
    for kernel, stride in shape:
        x = x.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [B, h, w, ..., kernel]
        x = x.flatten(-2).movedim(-1, 3)
    return x


def policy_of(network: Any, actions: int = 4) -> Policy:
    torch.manual_seed(3)
    return network.build(FRAMES, spaces.Discrete(actions))


@pytest.mark.long
@pytest.mark.parametrize(
    ("channels", "dtype"), [(64, np.uint8), (48, np.uint8), (9, np.uint8), (6, np.uint8), (4, np.float32)]
)
def test_images_come_back_exactly_and_nothing_is_there_twice(channels: int, dtype: Any) -> None:
    patches = scenes(30, channels, 20, dtype).permute(0, 2, 3, 1)
    shape = ((2, 2), (1, 1)), ((4, 3), (2, 1)), ((3, 3), (1, 1))
    for depth in (1, 2, 3):
        found = distinct_windows([patches[:25], patches[25:]], shape[:depth])
        assert found is not None
        for which in (slice(None), slice(3, 9), np.array([29, 4, 4, 0])):
            some = found[which]
            assert torch.equal(whole(some), cut(patches[which], *shape[: len(found.tables) - 1]))
            assert len(some) == len(patches[which])
        for rows in (found.rows.numpy(), *found.tables[:-1]):
            assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("values", [(0, 1), (0, 255), (1, 2), (0, 128)], ids=str)
def test_patches_that_are_nearly_alike_are_told_apart(values: tuple[int, int], dtype: Any) -> None:
    """All that have two values in 16 places, in words whose other bits are 0."""
    every = np.array(values)[np.arange(2**16)[:, None] >> np.arange(16) & 1].astype(dtype)
    patches = torch.from_numpy(np.concatenate((every, every)).reshape(-1, 2, 2, 16))
    table, number = module._numbered(patches.numpy().reshape(-1, 16).view(np.uint64), np.ones((1, 2**17), np.bool_))
    assert len(table) == 2**16
    assert np.array_equal(table[number[0]], patches.numpy().reshape(-1, 16).view(np.uint64))


def test_a_selection_holds_only_what_it_shows_in_round_numbers() -> None:
    found = distinct_windows([scenes(30, 8, 20).permute(0, 2, 3, 1)], [((2, 2), (1, 1)), ((4, 4), (2, 2))])
    assert found is not None
    some = found[:2]
    for rows, above in zip((some.rows, *some.tables[:-1]), some.tables, strict=True):
        assert len(rows) % module.ROUND == 0
        assert above.max() < len(rows) < above.max() + 1 + module.ROUND
        assert len(np.unique(above)) == above.max() + 1


def test_rows_that_meet_in_one_slot_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of slots is that of rows, twice; here all that differ meet in a few."""
    patches = scenes(30, 8, 20).permute(0, 2, 3, 1)
    usual = distinct_windows([patches], [((2, 2), (1, 1))])
    monkeypatch.setattr(module, "MIX", (np.uint64(0x10001),))
    crowded = distinct_windows([patches], [((2, 2), (1, 1))])
    assert usual is not None
    assert crowded is not None
    assert torch.equal(whole(crowded), whole(usual))
    assert [*map(len, crowded.tables)] == [*map(len, usual.tables)]


def test_what_differs_everywhere_is_convolved_as_images() -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randint(0, 256, (20, 4, 84, 84), generator=generator, dtype=torch.uint8)
    policy = policy_of(NatureCNN())
    assert windows_of(policy, policy.preprocess(noise)) is None


@pytest.mark.parametrize(
    ("network", "size"),
    [(ImpalaCNN(), 84), (SmallCNN((4, 4), hidden=8), 600), (SmallCNN(kernel=(8, 4), stride=(1, 2)), 84)],
    ids=str,
)
def test_windows_that_would_take_more_than_images_are_not_made(
    network: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pads; each of them is large; there are many, and each has many patches."""
    monkeypatch.setattr(module, "MOST", 1 << 18)
    policy = network.build(spaces.Box(0, 255, (4, size, size), np.uint8), spaces.Discrete(3))
    assert windows_of(policy, policy.preprocess(scenes(8, 4, size))) is None


def test_a_layer_deeper_down_may_see_too_much_that_differs() -> None:
    """Then it and the rest get images of what the first has made."""
    policy = policy_of(NatureCNN()).double()
    busy, generator = scenes(), np.random.default_rng(1)
    for image in busy.numpy():
        image[:, ::14, ::14] = generator.integers(0, 2, (4, 6, 6))
    found = windows_of(policy, policy.preprocess(busy))
    assert found is not None
    assert len(found.tables) == 2
    assert (
        max(off(outputs_and_gradients(policy, found), outputs_and_gradients(policy, policy.preprocess(busy)))) < 1e-10
    )


def outputs_and_gradients(policy: Policy, seen: Tensor | Windows) -> list[Tensor]:
    """Parameters of distributions, values and gradients, for a loss that is the same for all."""
    policy = copy.deepcopy(policy)
    flatten(policy)
    generator = torch.Generator().manual_seed(4)
    weights = (torch.randn(len(seen), *n, generator=generator, dtype=torch.float64) for n in ((4,), ()))
    dist, value = policy.evaluate(seen)
    sum((w.to(x.dtype) * x).sum() for w, x in zip(weights, (dist.logits, value), strict=True)).backward()
    return [dist.params.detach(), value.detach(), *(p.grad for p in policy.parameters())]


def off(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """How far each is from what it should be, relative."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("network", [SmallCNN(), NatureCNN()], ids=str)
def test_a_network_finds_and_learns_the_same(network: Any) -> None:
    """In double precision; in others it is not further from that by windows than by images."""
    policy, images = policy_of(network), scenes()
    found, patches = windows_of(policy, policy.preprocess(images)), policy.preprocess(images)
    assert found is not None
    assert len(found.tables) == 1 + sum(isinstance(layer, nn.Conv2d) for layer in policy.body)
    exact = outputs_and_gradients(copy.deepcopy(policy).double(), patches)
    assert max(off(outputs_and_gradients(copy.deepcopy(policy).double(), found), exact)) < 1e-10
    for policy.bf16 in (False, True):
        by_windows, by_images = (off(outputs_and_gradients(policy, seen), exact) for seen in (found, patches))
        assert all(a < max(1.5 * b, 1e-5) for a, b in zip(by_windows, by_images, strict=True))


def test_gradients_of_what_is_everywhere_are_summed_in_single_precision() -> None:
    """In bfloat16 1 + 1 + ... stops at 256."""
    rows = torch.ones(2, 1, dtype=torch.bfloat16, requires_grad=True)
    table = np.zeros((300, 70), np.intp)
    table[0, 0] = 1
    module.spread(rows, table).sum().backward()
    assert rows.grad.tolist() == [[float(torch.tensor(300 * 70 - 1.0).bfloat16())], [1.0]]


@pytest.mark.long
def test_a_run_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real Pong, values recomputed in the second epoch.

    Its background is not taken off: what sees 0 everywhere is on or off as sums are rounded, until biases are learned.
    """
    cfg = replace(
        PONG,
        network=SmallCNN(filters=(4, 4), hidden=8, background=0.0, scale=255.0),
        num_envs=2,
        num_steps=(32,),
        minibatch_size=32,
        num_epochs=2,
        learning_rate=FixedRate(1e-3),
        optimizer=Adam(eps=1e-3),
        bf16=False,
        total_steps=64,
        eval_episodes=0,
    )
    surefoot.train(cfg, run_dir=tmp_path / "windows", ranks=1, quiet=True)
    used, real = list[bool](), module.windows_of
    monkeypatch.setattr(module, "windows_of", lambda policy, *parts: used.append(real(policy, *parts) is not None))
    surefoot.train(cfg, run_dir=tmp_path / "images", ranks=1, quiet=True)
    assert used == [True]
    a, b = (surefoot.load_policy(tmp_path / name)[0].state_dict() for name in ("windows", "images"))
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=1e-4, atol=1e-6)


def test_images_with_choices_and_numbers_to_do_are_learned_from(tmp_path: Path) -> None:
    class Both(gymnasium.Env):  # type: ignore[type-arg]
        observation_space = spaces.Box(0, 255, (40, 40, 1), np.uint8)
        action_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,))))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros((40, 40, 1), np.uint8), {}

        def step(self, action: Any) -> Any:
            return np.zeros((40, 40, 1), np.uint8), float(action[0] * action[1][0]), True, False, {}

    run = surefoot.train(Both, run_dir=tmp_path / "a", quiet=True, **TINY)
    assert run.metrics[-1]["grad_norm"] > 0
