"""What real environments bring: everything that can be learned from is taken, and said once where it is unusual."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import surefoot
from helpers import TINY
from surefoot.envs import ids
from surefoot.envs.actions import action_converter, choices
from surefoot.envs.gym import Gymnasium, describe
from surefoot.envs.gym_env import reward_of
from surefoot.envs.spaces import blank, flat_mask, image_axes, pack, parts
from surefoot.envs.vector import EnvVector
from surefoot.errors import Fault, UserError, note_once
from surefoot.models.distributions import Mixed, head
from surefoot.models.layers import VectorEncoder
from surefoot.models.networks import MLP, NatureCNN
from surefoot.parallel.guard import _say_unraisable
from surefoot.presets import find

BOX = spaces.Box(-9, 9, (2,), np.float32)


class Odd(gymnasium.Env):
    """Ten steps; observation, reward, flags and info are what the subclass or instance says."""

    observation_space: spaces.Space[Any] = BOX
    action_space: spaces.Space[Any] = spaces.Discrete(2)
    reward: Any = 1.0
    last: Any = None

    def see(self) -> Any:
        return np.zeros(2, np.float32)

    def info(self) -> Any:
        return {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), self.info()

    def step(self, action: Any) -> Any:
        self.t += 1
        self.last = action
        return self.see(), self.reward, self.t == 10, False, self.info()


def odd(**members: Any) -> EnvVector:
    """One environment, reset, whose class has these members."""
    note_once.cache_clear()
    envs = EnvVector(describe(type("Odd", (Odd,), members)), 1, range(1))
    envs.reset_all()
    return envs


def step(envs: EnvVector, action: Any = 0) -> tuple[Any, Any]:
    out = np.empty_like(envs.obs)
    return envs.step([action], out), out


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (np.array([1.5]), 1.5),
        (np.array([[1.5]]), 1.5),
        (torch.tensor(1.5, requires_grad=True), 1.5),
        (torch.ones(1), 1.0),
        (np.float16(1.5), 1.5),
        (np.bool_(True), 1.0),
        (True, 1.0),
        (3, 3.0),
        ([2.0], 2.0),
        (Decimal("1.5"), 1.5),
        (np.array([Fraction(3, 2)]), 1.5),
    ],
    ids=str,
)
def test_a_reward_is_any_one_number(value: Any, want: float) -> None:
    assert reward_of(value) == want
    assert type(reward_of(value)) is float
    assert step(odd(reward=value))[0].reward == [want]


@pytest.mark.parametrize(
    "value", [None, "2", b"2", np.array([1.0, 2.0]), [], {"a": 1}, np.array("x"), np.complex64(1j)], ids=repr
)
def test_anything_else_is_no_reward(value: Any) -> None:
    with pytest.raises(Fault, match=r"its reward is .*: a reward is one number"):
        step(odd(reward=value))


class Players:
    """PettingZoo's interface."""

    possible_agents = ("a", "b")

    def observation_space(self, agent: str) -> Any: ...

    action_space = reset = step = observation_space


class Many:
    """A vector of another library's."""

    num_envs, observation_space, action_space = 2, BOX, spaces.Discrete(2)
    reset = step = Players.observation_space


@pytest.mark.parametrize(("kind", "says"), [(Players, "for several players"), (Many, "another library's vector")])
def test_what_is_not_one_environment_is_said(kind: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"gives {kind.__name__}, which is .*{says}"):
        describe(kind).make()


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (0,)), spaces.MultiDiscrete(np.array([], int))], ids=repr)
def test_where_there_is_nothing_to_choose_it_is_said(space: Any) -> None:
    with pytest.raises(UserError, match="there is nothing to choose"):
        odd(action_space=space)


def test_actions_are_numbers_as_the_space_samples_them() -> None:
    envs = odd()
    step(envs, 1)
    assert type(envs.envs[0].env.last) is np.int64  # type: ignore[attr-defined]


def test_numpys_errors_may_be_on() -> None:
    with np.errstate(all="raise"):
        assert odd(see=lambda _: np.array([1e-300, 1])).obs.tolist() == [[0, 1]]


def test_several_rewards_name_a_cure() -> None:
    with pytest.raises(ValueError, match="LinearReward"):
        reward_of(np.ones(3))


@pytest.mark.parametrize(
    "kind", [np.bool_, np.array, lambda x: np.array([x]), torch.tensor, int, np.int64, lambda x: [x], lambda x: (x,)]
)
def test_flags_are_any_truth(kind: Any) -> None:
    def ends(self: Odd, _: Any) -> Any:
        return self.see(), 1.0, kind(True), kind(False), {}

    result, _ = step(odd(step=ends))
    assert (result.terminated, result.truncated) == ([True], [False])


@pytest.mark.parametrize("flag", ["False", [False, True], {"__all__": False}, []], ids=repr)
def test_what_is_no_flag_is_a_fault(flag: Any) -> None:
    with pytest.raises(Fault, match=r"its terminated is .*: it is one True or False"):
        step(odd(step=lambda self, _: (self.see(), 1.0, flag, False, {})))


def test_a_flag_that_is_none_is_false_and_said() -> None:
    envs = odd(step=lambda self, _: (self.see(), 1.0, None, None, None))
    result, _ = step(envs)
    assert (result.terminated, result.truncated) == ([False], [False])


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_a_step_of_another_interface_is_named(count: int) -> None:
    values = (np.zeros(2), 1.0, False, False, {}, {})[:count]
    with pytest.raises(Fault, match=rf"its step gives {count} values: it must give observation, reward, terminated"):
        step(odd(step=lambda *_: values))


class Tape:
    """An array of another library, on a gradient tape."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.numbers, dtype)


class Capsule:
    """An array of another library, which has DLPack alone."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = np.array(numbers)

    def __dlpack__(self, **how: Any) -> Any:
        return self.numbers.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self.numbers.__dlpack_device__()


@pytest.mark.parametrize(
    "value",
    [
        Capsule([1.0, 2.0]),
        [1.0, 2.0],
        (1, 2),
        np.array([1.0, 2.0]),
        np.array([[1.0, 2.0]]),
        np.array([1, 2]),
        torch.tensor([1.0, 2.0], requires_grad=True),
        [torch.tensor(1.0), torch.tensor(2.0, requires_grad=True)],
        np.array([1, Decimal(2)], object),
        Tape([1.0, 2.0]),
    ],
    ids=lambda x: type(x).__name__ + str(getattr(x, "dtype", "")),
)
def test_observations_are_whatever_is_an_array(value: Any) -> None:
    assert odd(see=lambda _: value).obs.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("space", "value", "says"),
    [
        (BOX, np.float32([1, 9.002]), r"has 9.00\d* at \[1\], beyond the bound 9\.0 of its space"),
        (BOX, np.float32([-9.5, 0]), r"has -9.5 at \[0\], beyond the bound -9"),
        (BOX, np.array([1, 2]), "has int64, but its space float32"),
        (spaces.Dict(a=BOX), {"a": np.float32([0, 99])}, r"its part a has 99.0 at \[1\], beyond the bound 9\.0"),
    ],
    ids=["above", "below", "kind", "part"],
)
def test_what_is_not_as_announced_is_learned_from_and_said_once(
    space: Any, value: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    envs = odd(observation_space=space, see=lambda _: value)
    for _ in range(5):
        step(envs)
    value = {"a": value["a"] + 1} if isinstance(value, dict) else value + 1  # other numbers of the same kind
    step(envs)
    err = capsys.readouterr().err
    assert len(re.findall(says, err)) == 1
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("space", "value", "says"),
    [
        (BOX, np.zeros(3), r"has shape \(3,\), but its space has \(2,\)"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.5, 1]), "float64 that uint8 cannot hold"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 256]), "int64 that uint8 cannot hold"),
        (spaces.Discrete(3), 3, "is 3, which is not in Discrete"),
        (spaces.Discrete(3, start=2), 1, "is 1, which is not in Discrete"),
        (spaces.Discrete(3), 1.7, "is 1.7, which is not in Discrete"),
        (spaces.Dict(a=BOX, b=BOX), {"a": np.zeros(2)}, r"its observation \(dict\) has no part b"),
        (spaces.Dict(a=BOX), np.zeros(2), r"its observation \(ndarray\) has no part a"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], "which is not in MultiDiscrete"),
    ],
    ids=repr,
)
def test_what_cannot_be_one_of_its_space_is_a_fault(space: Any, value: Any, says: str) -> None:
    with pytest.raises(Fault, match=says):
        odd(observation_space=space, see=lambda _: value)


def test_a_reset_may_give_a_list() -> None:
    assert odd(reset=lambda *_, **__: [np.zeros(2), None]).obs.tolist() == [[0, 0]]


def test_no_more_than_two_resets_and_no_step_before_training() -> None:
    counts = {"reset": 0, "step": 0}

    def reset(self: Odd, **given: Any) -> Any:
        counts["reset"] += 1
        return Odd.reset(self, **given)

    def no_step(self: Odd, action: Any) -> Any:
        counts["step"] += 1
        return Odd.step(self, action)

    cfg = find(type("Counted", (Odd,), {"reset": reset, "step": no_step}))
    EnvVector(cfg.env, 1, range(1)).reset_all()
    assert counts == {"reset": 2, "step": 0}  # one to look for masks, in an environment of its own


# Spaces


def encoded(space: spaces.Space[Any], value: Any) -> list[float]:
    layout, row = parts(space), blank(space)
    if layout[0].path:
        pack(layout, value, row)
    else:
        layout[0].fill(value, "it", row)
    return VectorEncoder(layout)(torch.from_numpy(row[None]))[0].tolist()


@pytest.mark.parametrize(
    ("space", "value", "want"),
    [
        (spaces.Box(0, 3, (3,), np.uint8), np.uint8([0, 1, 3]), [0, 1 / 3, 1]),
        (spaces.Box(2, 4, (2,), np.uint8), np.uint8([2, 3]), [0, 0.5]),
        (spaces.Box(0, 255, (1,), np.uint8), np.uint8([51]), [0.2]),
        (spaces.Box(0, 255, (1,), np.int32), np.int32([51]), [0.2]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), [0, 1, 0, 0, 1]),
        (spaces.MultiDiscrete([2, 3], start=[5, 1]), np.array([5, 2]), [1, 0, 0, 1, 0]),
        (spaces.Discrete(10_000), 2_500, [0.25]),
        (spaces.Tuple([spaces.Discrete(2), BOX]), (1, np.float32([3, 4])), [3, 4, 0, 1]),
        (spaces.Dict({0: spaces.Discrete(2), 1: BOX}), {0: 1, 1: np.float32([3, 4])}, [3, 4, 0, 1]),
        (
            spaces.Dict({"a.b": BOX, "a": spaces.Dict(b=spaces.Discrete(2))}),
            {"a.b": [3, 4], "a": {"b": 0}},
            [3, 4, 1, 0],
        ),
        (spaces.Dict(a=BOX, mission=spaces.Text(99)), {"a": [3, 4], "mission": "go"}, [3, 4]),
        (spaces.Tuple([spaces.Tuple([BOX]), spaces.Box(0, 1, (0,))]), (([3, 4],), []), [3, 4]),
    ],
    ids=repr,
)
def test_observations_as_the_network_sees_them(space: Any, value: Any, want: list[float]) -> None:
    assert encoded(space, value) == pytest.approx(want)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((84, 84), (84, 84, 1, False)),
        ((210, 160, 3), (210, 160, 3, True)),
        ((4, 84, 84), (84, 84, 4, False)),
        ((4, 48, 64, 3), (48, 64, 12, True)),
        ((4, 3, 48, 64), (48, 64, 12, False)),
    ],
)
def test_pictures_of_every_layout(
    shape: tuple[int, ...], axes: tuple[int, int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.models.policy.orthogonal", lambda policy: policy)  # any weights do
    assert image_axes(shape) == axes
    torch.manual_seed(0)
    for kind, high in ((np.uint8, 255), (np.float32, 1)):
        space = spaces.Box(0, high, shape, kind)
        assert parts(space)[0].is_image()
        policy = NatureCNN().build(space, spaces.Discrete(2))
        picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8))
        value = policy(picture if kind == np.uint8 else picture.float() / 255)[1]
        if kind == np.float32:
            again = NatureCNN().build(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2))
            again.load_state_dict(policy.state_dict())
            torch.testing.assert_close(again(picture)[1], value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 3, (48, 48), np.uint8),  # a board
        spaces.Box(0, 127, (48, 80), np.uint8),  # characters
        spaces.Box(0, 255, (24, 80), np.uint8),  # a terminal's
        spaces.Box(0, 5976, (48, 79), np.int16),
        spaces.Box(-np.inf, np.inf, (48, 48), np.float32),  # a matrix
        spaces.Box(0, 255, (7, 7, 3), np.uint8),
    ],
    ids=repr,
)
def test_grids_of_codes_are_no_pictures(space: spaces.Space[Any]) -> None:
    assert not parts(space)[0].is_image()


def test_what_will_be_large_is_said_before_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    import os

    wide = spaces.Box(0, 1, (200_000,), np.float32)
    policy = MLP((64,)).build(wide, spaces.Discrete(2))
    assert sum(p.numel() for p in policy.parameters()) > 25_600_000
    err = capsys.readouterr().err
    assert "a layer of 25,600,000 parameters (200,000 inputs times 128 units)" in err
    envs = odd()
    envs.announce(1_000)
    assert capsys.readouterr().err == ""
    envs.announce(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (8 * envs.obs.nbytes) + 1)
    assert "of memory: fewer or smaller ones" in capsys.readouterr().err


ROBOT = spaces.Dict(
    gear=spaces.Discrete(3, start=-1),
    arm=spaces.Tuple([spaces.Box(0, 10, (2,), np.float32), spaces.MultiBinary(2)]),
    dial=spaces.Box(-4, 4, (1,), np.int64),
)


def test_actions_of_several_kinds_at_once() -> None:
    """Choices come first in a policy's row: gear, two switches; then the arm's two numbers and the dial."""
    top = head(ROBOT)
    assert (choices(ROBOT), top.outputs, top.noise_shape, top.numbers) == ((3, 2, 2), 10, (6,), 3)
    act = action_converter(ROBOT)
    assert act is not None
    got = act(np.float32([2, 1, 0, -1, 0.5, 0.3]))
    assert ROBOT.contains(got)
    assert got["gear"] == 1
    assert got["arm"][0].tolist() == [0, 7.5]
    assert got["arm"][1].tolist() == [1, 0]
    assert got["dial"].tolist() == [1]


@pytest.mark.parametrize(
    ("space", "action", "want"),
    [
        (spaces.Box(0, 5, (2,), np.int64), [-1, 0.25], [0, 3]),
        (spaces.Box(-np.inf, np.inf, (2,)), [-3, 0.25], [-3, 0.25]),
        (spaces.Box(np.float32([0, 0]), np.float32([1, np.inf])), [0, -3], [0.5, 0]),
        (spaces.Box(np.float32([-np.inf, 2]), np.float32([1, 2])), [0.5, 7], [0.5, 2]),
        (spaces.Box(-3.4e38, 3.4e38, (1,)), [2], [2]),
        (spaces.Box(-3.63038313e01, 1.48764012e-02, (1,), np.float64), [2], [1.48764012e-02]),  # not a bit beyond
        (spaces.Box(0, np.iinfo(np.int64).max, (1,), np.int64), [1], [2**63 - 1024]),
        (spaces.Tuple([spaces.Discrete(3)]), [2], (2,)),
    ],
    ids=repr,
)
def test_bounds_of_every_kind(space: spaces.Space[Any], action: Any, want: Any) -> None:
    act = action_converter(space)
    assert act is not None
    got = act(np.array(action))
    assert space.contains(got)
    assert (got if isinstance(want, tuple) else got.tolist()) == want


def test_the_distribution_of_choices_and_numbers_is_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(7, 5 + 2 * 2, generator=generator) for _ in range(2)]
    a, b = (Mixed(p, (2, 3)) for p in params)
    normal = [torch.distributions.Normal(p[:, 5:7], p[:, 7:].exp()) for p in params]
    kinds = [[torch.distributions.Categorical(logits=part) for part in p[:, :5].split((2, 3), 1)] for p in params]
    action = a.sample(torch.rand(7, 4, generator=generator))
    assert action.shape == (7, 4)
    logp = sum(kind.log_prob(action[:, d]) for d, kind in enumerate(kinds[0])) + normal[0].log_prob(action[:, 2:]).sum(
        1
    )
    torch.testing.assert_close(a.log_prob(action), logp)
    torch.testing.assert_close(a.entropy(), sum(k.entropy() for k in kinds[0]) + normal[0].entropy().sum(1))
    kl = torch.distributions.kl_divergence
    both = sum(kl(q, p) for p, q in zip(*kinds, strict=True)) + kl(normal[1], normal[0]).sum(1)
    torch.testing.assert_close(a.kl_from(b), both)
    torch.testing.assert_close(Mixed(a.params, (2, 3), stored=True).log_prob(action), logp)


class Machine(Odd):
    """Pays for gear 1, for the arm's first number near 7, and for the dial at -2: every part of the action counts."""

    action_space = ROBOT

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        assert ROBOT.contains(action)
        near = -abs(float(action["arm"][0][0]) - 7) / 3 - abs(int(action["dial"][0]) + 2) / 2
        return obs, near + float(action["gear"] == 1) + float(action["arm"][1][0]), *rest


@pytest.mark.long
def test_actions_of_several_kinds_are_learned(tmp_path: Path) -> None:
    """At random -2.6 a step or so; the best is 2 a step. Resumed, the run ends at the same bits."""
    fields: dict[str, Any] = {
        "num_envs": 4,
        "num_steps": (64,),
        "minibatch_size": 64,
        "quiet": True,
        "eval_episodes": 10,
    }
    run = surefoot.train(Machine, run_dir=tmp_path / "a", total_steps=12_288, num_epochs=8, **fields)
    assert run.evaluation is not None
    assert run.evaluation.mean > 0
    tiny = {**fields, "eval_episodes": 0, "num_epochs": 1}
    surefoot.train(Machine, run_dir=tmp_path / "b", total_steps=512, **tiny)
    surefoot.train(Machine, run_dir=tmp_path / "c", total_steps=256, **tiny)
    surefoot.resume(tmp_path / "c", total_steps=512, quiet=True)
    b, c = (surefoot.load_policy(tmp_path / name, env=Machine)[0].state_dict() for name in "bc")
    assert all(torch.equal(b[name], c[name]) for name in b)


# Masks


class Shop(Odd):
    """Two choices of 2 and 3; the second of each is forbidden. Where the mask is given, `where` says."""

    action_space = spaces.MultiDiscrete([2, 3])
    mask: Any = (np.array([1, 0]), np.array([1, 0, 1]))
    forbidden = 0

    def step(self, action: Any) -> Any:
        Shop.forbidden += int(action[0] == 1) + int(action[1] == 1)
        return super().step(action)


class ByInfo(Shop):
    def info(self) -> Any:
        return {"action_mask": self.mask} if self.t < 10 else {}


class ByInfoOfOneRow(Shop):
    def info(self) -> Any:
        over = self.t == 10
        return {"action_mask": np.zeros(5, bool) if over else np.concatenate(self.mask)}


class ByMethod(Shop):
    def action_masks(self) -> Any:
        return list(np.concatenate(self.mask))


class ByObservation(Shop):
    observation_space = spaces.Dict(seen=BOX, action_mask=spaces.MultiBinary(5))

    def see(self) -> Any:
        return {"seen": np.zeros(2, np.float32), "action_mask": np.concatenate(self.mask).astype(np.int8)}


class OneOfEach(ByObservation):
    observation_space = spaces.Dict(
        seen=BOX, action_mask=spaces.Tuple((spaces.MultiBinary(2), spaces.Box(0, 1, (3,), bool)))
    )

    def see(self) -> Any:
        return {"seen": np.zeros(2, np.float32), "action_mask": (self.mask[0].astype(np.int8), self.mask[1] > 0)}


class WithoutABase:
    """What an environment has, without being one of Gymnasium's."""

    observation_space, action_space, mask = BOX, Shop.action_space, Shop.mask
    action_masks = ByMethod.action_masks

    def reset(self, *, seed: Any = None) -> Any:
        self.t = 0
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        Shop.forbidden += int(action[0] == 1) + int(action[1] == 1)
        return np.zeros(2), 1.0, self.t == 10, False, {}


@pytest.mark.parametrize("kind", [ByInfo, ByInfoOfOneRow, ByMethod, ByObservation, OneOfEach, WithoutABase])
def test_masks_are_found_wherever_the_field_puts_them(kind: Any, tmp_path: Path) -> None:
    Shop.forbidden = 0
    run = surefoot.train(kind, run_dir=tmp_path / "a", quiet=True, network=MLP((8,)), **TINY)
    assert run.evaluation is not None
    assert Shop.forbidden == 0


@pytest.mark.parametrize("mode", AutoresetMode)
def test_masks_by_method_hold_in_a_sync_vector(mode: AutoresetMode) -> None:
    envs = EnvVector(describe(lambda num_envs: SyncVectorEnv([ByMethod] * num_envs, autoreset_mode=mode)), 1, range(2))
    envs.reset_all()
    for _ in range(25):
        result = envs.step(np.zeros((2, 2), int), np.empty_like(envs.obs))
        if not (envs.next_step and any(result.terminated)):  # after an end everything is allowed
            assert envs.obs[:, -5:].tolist() == [[1, 0, 1, 0, 1]] * 2


class Closing(ByMethod):
    """Has masks as long as it is open."""

    closed = False

    def action_masks(self) -> Any:
        assert not self.closed
        return super().action_masks()

    def close(self) -> None:
        self.closed = True


def test_the_masks_of_an_environment_made_anew_are_its_own() -> None:
    envs = EnvVector(replace(describe(Closing), remake=True), 1, range(1))
    envs.reset_all()
    envs.reset_all(1)
    assert envs.obs[0, -5:].tolist() == [1, 0, 1, 0, 1]


def test_a_mask_of_the_wrong_size_is_a_fault() -> None:
    with pytest.raises(ValueError, match="its action mask has 4 numbers where there are 5 alternatives"):
        flat_mask([1, 1, 1, 0], 5)
    assert flat_mask((np.array([1, 0]), np.array([0, 2, 1])), 5).tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("mask", [[-np.inf, 0, 0], [np.nan, 1, 1], [-1, 1, 1]], ids=repr)
def test_what_is_added_to_logits_is_no_mask(mask: Any) -> None:
    with pytest.raises(ValueError, match="1 stands for what is allowed, and 0 for what is not"):
        flat_mask(mask, 3)


# Names


IDS = "door/Odd.test-v0", "door/Odd.test-v3", "Door.Plain", "DoorOdd-v1"


def test_a_name_needs_no_version_and_may_have_dots_and_a_namespace() -> None:
    for name in IDS:
        gymnasium.register(name, Odd)
    try:
        assert find("door/Odd.test").env == Gymnasium("door/Odd.test-v3")
        assert find("Door.Plain").env == Gymnasium("Door.Plain")
        assert find("CartPole").task == "CartPole-v1"
        assert find("makers:door/Odd.test").env.make().action_space.n == 2
        assert find("ALE/Pong").env == find("ALE/Pong-v5").env
        with pytest.raises(UserError, match=r"did you mean DoorOdd-v1\? PACKAGE:ID imports first"):
            find("DorOdd-v1")
    finally:
        for name in IDS:
            del gymnasium.registry[name]


def test_a_package_that_is_installed_is_found_by_the_id_it_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a real package has it: metadata that needs Gymnasium, a module that registers, the id in its source."""
    package, facts = tmp_path / "clowder", tmp_path / "clowder-1.0.dist-info"
    for folder in (package, facts):
        folder.mkdir()
    source = "import gymnasium\nfrom worlds import Catch\ngymnasium.register('Clowder-v2', Catch)\n"
    (package / "__init__.py").write_text(source)
    (facts / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: clowder\nVersion: 1.0\nRequires-Dist: gymnasium>=0.29\n"
    )
    (facts / "RECORD").write_text("clowder/__init__.py,,\nclowder-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert find("Clowder-v2").env == Gymnasium("clowder:Clowder-v2")
        assert find("Clowder").env == Gymnasium("clowder:Clowder-v2")  # also now that it has been imported
        (package / "envs.py").write_text(source.replace("Clowder-v2", "Purrbox-v0"))
        with (facts / "RECORD").open("a") as record:
            record.write("clowder/envs.py,,\n")
        assert find("Purrbox-v0").env == Gymnasium("clowder.envs:Purrbox-v0")  # a module that must be imported itself
        (package / "wild.py").write_text("import gymnasium\ngymnasium.register('Hisspit-v0', hiss)\n")
        with (facts / "RECORD").open("a") as record:
            record.write("clowder/wild.py,,\n")
        late = source.replace("Clowder-v2", "Mewling-v1").replace("\n", "\n    ")
        (package / "late.py").write_text(f"def register_envs():\n    {late}")
        with (facts / "RECORD").open("a") as record:
            record.write("clowder/late.py,,\n")
        (facts / "entry_points.txt").write_text("[gymnasium.envs]\n__root__ = clowder.late:register_envs\n")
        ids.ask.cache_clear()  # as in a new process
        assert find("Mewling-v1").env.make().action_space.n == 3
        with pytest.raises(UserError, match=r"the import of clowder fails: NameError"):
            find("Hisspit-v0")
        pride = "def register_envs():\n    gymnasium.register('Pride/' + 'roar'.title() + '-v0', Catch)\n"
        (package / "pride.py").write_text(f"import gymnasium\nfrom worlds import Catch\n{pride}")
        (facts / "entry_points.txt").write_text("[gymnasium.envs]\nPride = clowder.pride:register_envs\n")
        ids.ask.cache_clear()
        assert find("Pride/Roar").env == Gymnasium("clowder.pride:Pride/Roar-v0")  # its source does not have the name
    finally:
        gymnasium.registry.pop("Purrbox-v0", None)
        gymnasium.registry.pop("Clowder-v2", None)
        gymnasium.registry.pop("Mewling-v1", None)
        gymnasium.registry.pop("Pride/Roar-v0", None)


def test_a_spec_of_gymnasiums_is_an_environment_too() -> None:
    spec = gymnasium.spec("FrozenLake-v1")
    assert find(spec).env == Gymnasium("FrozenLake-v1")
    changed = deepcopy(spec)
    changed.kwargs["map_name"] = "8x8"
    made = find(changed).env
    assert made.id.startswith("gymnasium.envs.registration:make#")
    assert made.make().env.observation_space.n == 64


def test_a_file_is_named_as_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kennel").mkdir()
    for name in ("barking.py", "kennel/inside.py"):
        (tmp_path / name).write_text("from worlds import Catch\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("barking.py:Catch", "./barking.py:Catch", "barking:Catch"):
        assert find(name).env == Gymnasium("barking:Catch")
    assert find("./kennel/inside.py:Catch").env == Gymnasium("kennel.inside:Catch")
    for name, meant in (
        ("barking", "barking:FUNCTION"),
        ("barking.py", "barking:FUNCTION"),
        ("barking.Catch", "barking:Catch"),
    ):
        with pytest.raises(UserError, match=rf"no environment '{name}'.*: did you mean {meant}\?"):
            find(name)


def test_a_function_that_gives_the_same_object_is_refused_for_several() -> None:
    one = Odd()
    with pytest.raises(Fault, match=r"gives the same environment again, which is open: .* train with --num-envs 1"):
        EnvVector(describe(lambda: gymnasium.wrappers.TimeLimit(one, 5)), 1, range(2))
    assert len(EnvVector(describe(lambda: one), 1, range(1))) == 1


def test_an_evaluation_between_does_not_play_in_trainings_only_object(tmp_path: Path) -> None:
    """It closes it first, and afterwards training's episode is where it was."""
    one, over = Odd(), [True]

    def reset(**how: Any) -> Any:
        over[0] = False
        return Odd.reset(one, **how)

    def step(action: Any) -> Any:
        assert not over[0]
        obs, reward, over[0], cut, info = Odd.step(one, action)
        return obs, reward, over[0], cut, info

    one.reset, one.step = reset, step  # type: ignore[method-assign]
    more = TINY | {"num_envs": 1, "eval_every": 16, "eval_games": 2, "total_steps": 64}
    run = surefoot.train(lambda: one, run_dir=tmp_path / "a", quiet=True, **more)
    assert {row["return_mean"] for row in run.metrics} <= {None, 10.0}


def test_what_a_destructor_raises_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    note_once.cache_clear()
    _say_unraisable(SimpleNamespace(object=Odd.reset, exc_value=AttributeError("no viewer"), exc_type=AttributeError))
    assert capsys.readouterr().err == "surefoot: Odd.reset fails and is left at that: AttributeError: no viewer\n"


def test_a_packages_entry_points_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every environment: it reads the metadata of every package that is installed."""
    looked = list[str]()
    monkeypatch.setattr(ids.metadata, "entry_points", lambda group: looked.append(group) or ())
    ids.ask.cache_clear()
    for _ in range(3):
        find("worlds:Catch-v0").env.make().close()
    assert looked == ["gymnasium.envs"]


def test_wrappers_by_name() -> None:
    from surefoot.commands.cli import parse

    env = find("Blackjack-v1", wrappers=("FlattenObservation", "TimeLimit:max_episode_steps=3")).env.make()
    assert isinstance(env.env, gymnasium.wrappers.TimeLimit)
    assert isinstance(env.observation_space, spaces.MultiBinary | spaces.Box)
    camera = find("makers:Camera", wrappers=("ResizeObservation:shape=40x44", "GrayscaleObservation")).env.make()
    assert camera.observation_space["top"].shape == (40, 44)
    obs = camera.env.reset(seed=1)[0]
    assert obs["top"].shape == (40, 44)
    assert obs["arm"].shape == (6,)
    pytest.importorskip("Box2D")
    command: Any = parse(["train", "CarRacing-v3", "--env.wrappers", "ResizeObservation:shape=48x40", "--seed", "3"])
    assert command.config.env.make().observation_space.shape == (48, 40, 3)
    assert type(command.config.network).__name__ == "NatureCNN"
    assert not command.config.env.remake
    command = parse(["train", "CartPole-v1", "--env.remake"])
    assert command.config.env.remake
    for wrong, says in (("NoSuch", "there is no wrapper 'NoSuch'"), ("TimeLimit:steps=3", "does not fit .*'steps'")):
        with pytest.raises(UserError, match=says):
            find("CartPole-v1", wrappers=(wrong,)).env.make()


# Old interfaces and hidden state


class OldBox:
    low, high, shape, dtype = np.full(2, -9.0), np.full(2, 9.0), (2,), np.dtype(np.float32)


class Gym21:
    """`done`, `seed()`, no info at reset: the interface up to Gym 0.21."""

    observation_space = type("Box", (OldBox,), {})()
    action_space = type("Discrete", (), {"n": 2})()
    metadata: ClassVar[dict[str, Any]] = {"render.modes": ["rgb_array"], "video.frames_per_second": 7}

    def seed(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)

    def reset(self) -> Any:
        self.t = 0
        return self.draw.random(2)

    def step(self, action: int) -> Any:
        self.t += 1
        return self.draw.random(2), 1.0, self.t == 5, {"TimeLimit.truncated": self.t == 5}

    def render(self, mode: str = "human") -> Any:
        return np.zeros((8, 8, 3), np.uint8) if mode == "rgb_array" else None


class Gym26(Gym21):
    """Five values and a seeded reset, but not Gymnasium's class; spaces of its own, as Crafter without Gym has them."""

    observation_space = type("BoxSpace", (OldBox,), {"low": -9.0, "high": 9.0})()
    action_space = type("DiscreteSpace", (), {"n": 2})()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed(seed or 0)
        return super().reset(), {}

    def step(self, action: int) -> Any:
        obs, reward, over, info = super().step(action)
        return obs, reward, False, over, info


@pytest.mark.parametrize("kind", [Gym21, Gym26])
def test_environments_of_the_old_gym_are_taken(kind: type[Gym21], tmp_path: Path) -> None:
    envs = EnvVector(describe(kind), 1, range(2))
    envs.reset_all()
    first = envs.obs.copy()
    flags = [envs.step([0, 1], np.empty_like(envs.obs)) for _ in range(5)]
    assert [f.truncated for f in flags] == [[False, False]] * 4 + [[True, True]]
    assert not any(any(f.terminated) for f in flags)
    envs.reset_all()
    assert np.array_equal(envs.obs, first)
    assert envs.envs[0].env.metadata["render_fps"] == 7
    assert surefoot.train(kind(), run_dir=tmp_path / "a", quiet=True, network=MLP((8,)), **TINY).evaluation is not None


class OnlyOne(Odd):
    """An emulator of which a process has one at a time."""

    made: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        super().__init__()
        if self.made:
            raise RuntimeError("one emulator per process")
        self.made.add(1)

    def close(self) -> None:
        self.made.clear()


def test_where_only_one_can_be_made_the_sentence_says_how_to_train_with_one() -> None:
    with pytest.raises(Fault, match=r"one emulator per process; one was made .* --num-envs 1 --ranks 1"):
        EnvVector(describe(OnlyOne), 1, range(2))
    assert not OnlyOne.made
    EnvVector(describe(OnlyOne), 1, range(1)).close()


class Global(Odd):
    """Draws from the global generators, as many packages do."""

    def see(self) -> Any:
        return np.float32([random.random(), np.random.random()])


def test_global_random_numbers_are_seeded_for_every_episode() -> None:
    a, b = (EnvVector(describe(Global), 1, range(1)) for _ in range(2))
    seen = []
    for envs in (a, b):
        envs.reset_all()
        seen.append([envs.obs.copy(), step(envs)[1]])
    assert np.array_equal(*np.array(seen))
    a.reset_all(1)
    assert not np.array_equal(a.obs, seen[0][0])


def test_a_world_that_is_kept_is_made_anew() -> None:
    """BipedalWalker keeps its physics from one episode to the next: without `remake` some of these differ."""
    pytest.importorskip("Box2D")
    used = Gymnasium("BipedalWalker-v3").make()
    out = used.obs.copy()

    def play(env: Any, seed: int) -> list[bytes]:
        env.reset(seed, out)
        actions = np.random.default_rng(seed).uniform(-1, 1, (200, 4)).astype(np.float32)
        seen = []
        for action in actions:
            _, terminated, _ = env.step(action, out)
            seen.append(out.tobytes())
            if terminated:
                break
        return seen

    play(used, 100)
    for seed in (8, 10, 11):
        assert play(used, seed) == play(Gymnasium("BipedalWalker-v3").make(), seed)


class Forgetful(Odd):
    """Carries a count from one episode to the next."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episodes += 1
        return super().reset(seed=seed)

    def see(self) -> Any:
        return np.full(2, self.episodes, np.float32)


class Sharing(Odd):
    """Draws from a generator that all of its kind share."""

    rng = random.Random(0)

    def see(self) -> Any:
        return np.full(2, self.rng.random(), np.float32)


@pytest.mark.parametrize(
    ("kind", "remake", "said"),
    [(Odd, False, 0), (Global, False, 1), (Sharing, True, 1), (Forgetful, False, 1), (Forgetful, True, 0)],
)
def test_whether_episodes_replay_is_found_out_and_said(
    kind: type[Odd], remake: bool, said: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {**TINY, "num_envs": 2, "num_steps": (19,), "minibatch_size": 38, "total_steps": 76}
    cfg = find(kind)
    cfg = replace(cfg, env=replace(cfg.env, remake=remake))
    surefoot.train(cfg, run_dir=tmp_path / "a", quiet=True, network=MLP((8,)), **fields)
    assert capsys.readouterr().err.count("with the same seed and actions, was another") == said
