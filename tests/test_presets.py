"""The presets: the ladder's single changes, the lesson's numbers, JSON there and back, and bad values refused."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import surefoot
from surefoot.algorithm.advantages import GAE, EpisodeReturn, FutureReturn, OverBatch, OverGames, Unnormalized
from surefoot.algorithm.objectives import (
    SPO,
    AdaptivePenalty,
    ClippedSurrogate,
    DualClip,
    Entropy,
    FixedPenalty,
    OldPolicyCrossEntropy,
    Reinforce,
    Surrogate,
    TrustRegion,
)
from surefoot.algorithm.rewards import ScaledReward
from surefoot.algorithm.schedules import AdaptiveRate, FixedRate, LinearRate
from surefoot.commands.cli import Train, parse
from surefoot.config import Config
from surefoot.envs.atari import Atari, Pong
from surefoot.errors import UserError
from surefoot.models.memory import GRU, LSTM
from surefoot.models.networks import MLP, LessonCNN, NatureCNN, SmallCNN
from surefoot.models.optimizers import Adam, Muon
from surefoot.presets import LADDER, LESSON, LESSON_REINFORCE, PONG, PRESETS, TUNED, VECTORS, find


def changed(a: Config, b: Config) -> set[str]:
    """The fields in which two Configs differ; where they come from does not count."""
    return {f.name for f in fields(Config) if getattr(a, f.name) != getattr(b, f.name)} - {"task"}


def parameters(cfg: Config) -> int:
    game = cfg.env.make()
    policy = cfg.network.build(game.observation_space, game.action_space)
    game.close()
    return sum(p.numel() for p in policy.parameters())


# The ladder


@pytest.mark.parametrize(
    ("rung", "declared"),
    [
        (0, {"normalize"}),
        (1, {"advantage"}),
        (2, {"objective", "num_epochs"}),
        (3, {"objective"}),
        (4, {"advantage", "normalize", "value_coef", "fit_value_bias"}),
    ],
)
def test_a_rung_changes_what_it_declares_and_nothing_else(rung: int, declared: set[str]) -> None:
    assert changed(LADDER[rung], LADDER[rung + 1]) == declared


def test_the_rungs_are_what_their_names_say() -> None:
    assert [cfg.task for cfg in LADDER] == ["reinforce", "normalized", "future", "surrogate", "clipped", "ppo"]
    kinds = [(type(c.advantage), type(c.normalize), type(c.objective), c.num_epochs, c.value_coef > 0) for c in LADDER]
    assert kinds == [
        (EpisodeReturn, Unnormalized, Reinforce, 1, False),
        (EpisodeReturn, OverGames, Reinforce, 1, False),
        (FutureReturn, OverGames, Reinforce, 1, False),
        (FutureReturn, OverGames, Surrogate, 4, False),
        (FutureReturn, OverGames, ClippedSurrogate, 4, False),
        (GAE, OverBatch, ClippedSurrogate, 4, True),
    ]
    assert {cfg.advantage.gamma for cfg in LADDER} == {0.995}


def test_the_lessons_two_tasks_differ_in_objective_and_epochs_only() -> None:
    assert changed(LESSON, LESSON_REINFORCE) == {"objective", "num_epochs"}


def test_presets_are_found_under_the_task_they_carry() -> None:
    assert len(PRESETS) == 11 + len(TUNED) == 24
    for name, cfg in PRESETS.items():
        assert cfg.task == name
    assert PRESETS["pong-lesson"] is LESSON
    assert PRESETS["pong-reinforce"] is LESSON_REINFORCE


@pytest.mark.parametrize("cfg", PRESETS.values(), ids=PRESETS)
def test_the_command_line_has_every_preset(cfg: Config) -> None:
    command = parse(["train", cfg.task])
    assert isinstance(command, Train)
    assert command.config == cfg


@pytest.mark.parametrize(
    "cfg",
    [
        LADDER[0],
        LESSON,
        *(pytest.param(cfg, marks=pytest.mark.long) for cfg in (*LADDER[1:], LESSON_REINFORCE)),
        find("BeamRiderNoFrameskip-v4"),
    ],
    ids=lambda cfg: cfg.task,
)
def test_every_console_task_trains(cfg: Config, tmp_path: Path) -> None:
    quick = replace(
        cfg, num_envs=2, num_steps=(8,), minibatch_size=min(8, cfg.minibatch_size), total_iterations=2, eval_episodes=0
    )
    assert surefoot.train(quick, run_dir=tmp_path / "a", ranks=1, quiet=True).steps == 2 * 2 * 8


# The lesson's numbers


def test_the_lessons_numbers() -> None:
    for cfg in (LESSON, LESSON_REINFORCE):
        assert (cfg.num_envs, cfg.num_steps, cfg.total_iterations, cfg.total_steps) == (8, (320,), 500, 0)
        assert cfg.from_reset
        assert cfg.minibatch_size == 0
        assert cfg.advantage == FutureReturn(gamma=0.995)
        assert cfg.normalize == OverGames()
        assert cfg.learning_rate == FixedRate(1e-4)
        assert cfg.entropy == OldPolicyCrossEntropy(coef=0.01, decay=0.995)
        assert cfg.value_coef == 0
        assert cfg.network == LessonCNN(critic=False)
        assert cfg.env.actions == ("LEFTFIRE", "RIGHTFIRE")
    assert LESSON.objective == ClippedSurrogate(clip_range=0.1, decay=0.999)
    assert LESSON_REINFORCE.objective == Reinforce()
    assert (LESSON.num_epochs, LESSON_REINFORCE.num_epochs) == (4, 1)


def test_the_lessons_network_has_its_parameters() -> None:
    # 2*4*36 = 288; 4*16*36 + 16 = 2,320; 1,296*256 + 256 = 332,032; 256 + 1 = 257; together 334,897
    assert parameters(LESSON) == 288 + 2_320 + 332_032 + 257 == 334_897


def test_the_ladders_network_is_the_lessons_with_a_critic() -> None:
    assert parameters(LADDER[0]) == 334_897 + 257


# JSON


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    cfg = PRESETS[name]
    text = json.dumps(cfg.to_json(), allow_nan=False)
    again = Config.from_json(json.loads(text))
    assert again == cfg
    assert {f.name: type(getattr(again, f.name)) for f in fields(Config)} == {
        f.name: type(getattr(cfg, f.name)) for f in fields(Config)
    }


def test_infinity_survives_json_as_null() -> None:
    plain = PONG.to_json()
    assert plain["max_seconds"] is None
    assert Config.from_json(plain).max_seconds == math.inf
    finite = replace(PONG, max_seconds=90.0, stop_at=-3.0)
    assert Config.from_json(json.loads(json.dumps(finite.to_json()))) == finite


def test_a_chosen_part_names_its_type() -> None:
    plain = LESSON.to_json()
    assert plain["network"] == {"type": "LessonCNN", "critic": False, "separate_critic": False}
    assert plain["objective"] == {"type": "ClippedSurrogate", "clip_range": 0.1, "decay": 0.999, "end_factor": 1.0}
    assert plain["num_steps"] == [320]


def test_what_json_leaves_out_has_its_default() -> None:
    assert Config.from_json({}) == Config()
    assert Config.from_json({"num_envs": 4, "learning_rate": {"type": "LinearRate"}}) == Config(
        num_envs=4, learning_rate=LinearRate()
    )


def test_a_whole_number_is_read_as_a_float_where_a_float_belongs() -> None:
    cfg = Config.from_json({"value_coef": 1})
    assert cfg.value_coef == 1.0
    assert type(cfg.value_coef) is float


# Bad values


NAN = math.nan
BAD: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("num_envs", lambda: {"num_envs": 0}),
    ("num_epochs", lambda: {"num_epochs": 0}),
    ("seed", lambda: {"seed": -1}),
    ("seed", lambda: {"seed": 2**63}),
    ("minibatch_size", lambda: {"minibatch_size": -1}),
    ("minibatch_size", lambda: {"minibatch_size": 500}),  # no divisor of 32 * 64 = 2,048
    ("minibatch_size", lambda: {"minibatch_size": 4096}),  # more than there is
    ("minibatch_size", lambda: {"minibatch_size": 16}),  # a divisor, but 128 parts of a game's 64 decisions
    ("minibatch_size", lambda: {"minibatch_size": 1024, "num_steps": (64, 63)}),  # fits the first stage only
    ("minibatch_size", lambda: {"minibatch_size": 512, "from_reset": True}),
    ("num_steps", lambda: {"num_steps": ()}),
    ("num_steps", lambda: {"num_steps": (64, 0)}),
    ("total_steps", lambda: {"total_steps": -1}),
    ("total_steps", lambda: {"total_steps": 0, "total_iterations": 0}),
    ("total_iterations", lambda: {"total_iterations": -1}),
    ("eval_episodes", lambda: {"eval_episodes": -1}),
    ("value_coef", lambda: {"value_coef": NAN}),
    ("value_coef", lambda: {"value_coef": -0.5}),
    ("max_grad_norm", lambda: {"max_grad_norm": 0.0}),
    ("max_grad_norm", lambda: {"max_grad_norm": NAN}),
    ("ema_decay", lambda: {"ema_decay": 1.0}),
    ("noise_color", lambda: {"noise_color": 2.5}),
    ("noise_until", lambda: {"noise_until": -0.1}),
    ("noise_until", lambda: {"noise_until": 1.1}),
    ("noise_rarity", lambda: {"noise_rarity": -1}),
    ("Adam.eps", lambda: {"optimizer": Adam(eps=0.0)}),
    ("Muon.momentum", lambda: {"optimizer": Muon(momentum=1.0)}),
    ("max_seconds", lambda: {"max_seconds": NAN}),
    ("save_every", lambda: {"save_every": 0.0}),
    ("stop_at", lambda: {"stop_at": NAN}),
    ("initial", lambda: {"learning_rate": FixedRate(NAN)}),
    ("initial", lambda: {"learning_rate": LinearRate(0.0)}),
    ("initial", lambda: {"learning_rate": FixedRate(math.inf)}),
    ("value_clip", lambda: {"value_clip": 0.0}),
    ("target_kl", lambda: {"target_kl": NAN}),
    ("limit", lambda: {"reward": ScaledReward(-1.0)}),
    ("desired_kl", lambda: {"learning_rate": AdaptiveRate(desired_kl=0.0)}),
    ("gamma", lambda: {"advantage": GAE(gamma=1.1)}),
    ("gamma", lambda: {"advantage": FutureReturn(gamma=NAN)}),
    ("gae_lambda", lambda: {"advantage": GAE(gae_lambda=-0.1)}),
    ("clip_range", lambda: {"objective": ClippedSurrogate(clip_range=-0.1)}),
    ("decay", lambda: {"objective": ClippedSurrogate(decay=1.5)}),
    ("coef", lambda: {"entropy": Entropy(coef=NAN)}),
    ("coef", lambda: {"kl_penalty": FixedPenalty(-1.0)}),
    ("desired_kl", lambda: {"kl_penalty": AdaptivePenalty(desired_kl=0.0)}),
    ("dual_clip", lambda: {"objective": DualClip(dual_clip=1.0)}),
    ("ratio_range", lambda: {"objective": SPO(0.0)}),
    ("max_kl", lambda: {"objective": TrustRegion(max_kl=0.0), "learning_rate": FixedRate()}),
    ("cg_steps", lambda: {"objective": TrustRegion(cg_steps=0), "learning_rate": FixedRate()}),
    ("frame_skip", lambda: {"env": Pong(frame_skip=(4, 2))}),
    ("frame_skip", lambda: {"env": Pong(frame_skip=(0, 4))}),
    ("frame_skip", lambda: {"env": Pong(frame_skip=())}),
    ("frame_skip", lambda: {"env": Pong(frame_skip=(2, 3, 4))}),
    ("sticky", lambda: {"env": Pong(sticky=1.5)}),
    ("noop_max", lambda: {"env": Pong(noop_max=-1)}),
    ("scale", lambda: {"network": SmallCNN(scale=0.0)}),
    ("std", lambda: {"network": MLP(std=0.0)}),
    ("stride", lambda: {"network": SmallCNN(stride=(4, 0))}),
    ("hidden", lambda: {"network": MLP(hidden=())}),
    ("hidden", lambda: {"network": MLP(hidden=(64, 2**40))}),
]


@pytest.mark.parametrize(("name", "values"), BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)])
def test_a_bad_value_is_refused_by_its_name(name: str, values: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=rf"^(\w+\.)?{name} is "):
        Config(**values())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GAE(gamma=1.1), "GAE.gamma is 1.1; allowed is at least 0 and at most 1"),
        (lambda: AdaptiveRate(end_factor=0.0), "AdaptiveRate.end_factor is 0.0; allowed is above 0, finite"),
        (lambda: OverBatch(memory=1.0), "OverBatch.memory is 1.0; allowed is at least 0 and below 1"),
        (lambda: OverBatch(floor=-0.1), "OverBatch.floor is -0.1; allowed is at least 0, finite"),
        (lambda: Atari(size=20_000), "Atari.size is 20000; allowed is at least 1 and at most 16384"),
        (lambda: MLP(hidden=(64, 0)), "MLP.hidden is (64, 0); allowed is at least 1 and at most 16384"),
        (lambda: ScaledReward(limit=math.inf), "ScaledReward.limit is inf; allowed is above 0, finite"),
        (lambda: Pong(actions=("NOOP",)), "Pong.actions is ('NOOP',); allowed is two or more buttons"),
    ],
)
def test_a_part_checks_its_own_ranges(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == says


@pytest.mark.parametrize(
    "values",
    [lambda: {"network": MLP(hidden="64")}, lambda: {"advantage": GAE(gamma="0.9")}, lambda: {"num_steps": "64"}],
)
def test_a_value_of_the_wrong_type_is_a_users_mistake(values: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(UserError):
        Config(**values())


@pytest.mark.parametrize(
    "values",
    [
        {"num_envs": 1, "num_epochs": 1, "num_steps": (1,)},
        {"seed": 2**63 - 1},
        {"minibatch_size": 2048},
        {"minibatch_size": 32},  # one decision of each of the 32 games
        {"minibatch_size": 512, "num_steps": (16, 64)},
        {"from_reset": True},
        {"total_steps": 0, "total_iterations": 1},
        {"advantage": GAE(gamma=1.0, gae_lambda=0.0)},
        {"env": Pong(frame_skip=(2, 2))},
        {"env": Pong(frame_skip=(4,))},
        {"entropy": Entropy(0.0)},
        {"stop_at": -5.0},
    ],
)
def test_values_on_the_right_side_of_the_border_are_taken(values: dict[str, Any]) -> None:
    cfg = Config(**values)
    assert all(getattr(cfg, name) == value for name, value in values.items())


def test_minibatches_counts_the_updates_of_one_pass() -> None:
    assert Config(minibatch_size=512).minibatches(64) == 4  # 32 * 64 / 512
    assert Config(minibatch_size=0).minibatches(64) == 1


# Bad JSON


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"env": {"type": "Pong", "nonsense": 1}}, "config.env.*nonsense"),
        ({"num_envs": "8"}, "config.num_envs"),
        ({"num_envs": 8.0}, "config.num_envs"),
        ({"num_envs": True}, "config.num_envs"),
        ({"num_envs": None}, "config.num_envs"),
        ({"from_reset": 1}, "config.from_reset"),
        ({"value_coef": "0.5"}, "config.value_coef"),
        ({"value_coef": True}, "config.value_coef"),
        ({"num_steps": 64}, "config.num_steps"),
        ({"num_steps": [64, "64"]}, "config.num_steps"),
        ({"device": 0}, "config.device"),
        ({"advantage": {"type": "Nonsense"}}, "config.advantage.*Nonsense.*EpisodeReturn"),
        ({"advantage": {"type": "OverGames"}}, "config.advantage.*OverGames"),
        ({"advantage": {"gamma": 0.9}}, "config.advantage"),
        ({"advantage": {"type": None}}, "config.advantage"),
        ({"advantage": "GAE"}, "config.advantage"),
        ({"advantage": {"type": "GAE", "gamma": "0.9"}}, "config.advantage.gamma"),
        ({"advantage": {"type": "GAE", "gamma": 1.1}}, "gamma"),
        ({"advantage": {"type": "GAE", "gamma": None}}, "gamma"),
        ({"env": {"type": "Pong", "actions": "FIRE"}}, "config.env.actions"),
        ({"env": {"type": "Pong", "actions": [1]}}, "config.env.actions"),
        ({"type": "Config"}, "type"),
        ([], "config"),
        (None, "config"),
        ("pong", "config"),
        (3, "config"),
    ],
)
def test_bad_json_is_refused_with_the_place_of_the_mistake(data: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Config.from_json(data)


@pytest.mark.parametrize("name", [[], {}, [["GAE"]]])
def test_a_type_that_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match=r"config\.advantage"):
        Config.from_json({"advantage": {"type": name}})


@pytest.mark.parametrize("number", [10**400, -(10**400)], ids=["large", "small"])
def test_a_whole_number_too_large_for_a_float_is_refused(number: int) -> None:
    with pytest.raises(UserError, match="learning_rate"):
        Config.from_json({"learning_rate": {"type": "FixedRate", "initial": number}})


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON tree, as the keys that lead to it."""
    found = [path]
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            found += places(tree[key], (*path, key))
    return found


def mutate(tree: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """A copy with the place at `path` replaced, deleted, or joined by a new one."""
    if not path:
        return value
    tree = copy.deepcopy(tree)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if how == "delete":
        del parent[path[-1]]
    elif how == "add":
        if isinstance(parent, list):
            parent.append(value)
        else:
            parent["abc"] = value
    else:
        parent[path[-1]] = value
    return tree


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 600),
    st.sampled_from([2**63, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from(["", "GAE", "Pong", "Entropy", "0.5"]),
)
JSON = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.sampled_from(["type", "gamma", "num_envs", "x"]), SCALARS, max_size=2),
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    tree: Any = PRESETS[draw(st.sampled_from(sorted(PRESETS)))].to_json()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(tree)))
        tree = mutate(tree, path, draw(st.sampled_from(["replace", "delete", "add"])), draw(JSON))
    return tree


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(mutated())
@example({"num_steps": [math.inf]})
@example({"stop_at": -math.inf})
@example({"minibatch_size": 2**63, "num_envs": 2**63})
def test_any_json_gives_a_config_or_a_users_mistake(tree: Any) -> None:
    data = json.loads(json.dumps(tree))
    try:
        cfg = Config.from_json(data)
    except UserError:
        return  # any other exception fails the test
    assert isinstance(cfg, Config)
    hash(cfg)  # frozen all the way down: no list is left in it


# Environments without a preset


@pytest.mark.parametrize(("envs", "settings"), [(1, (1024, 64)), (3, (256, 48)), (8, (128, 64)), (12, (128, 96))])
def test_fewer_environments_play_longer_rollouts(envs: int, settings: tuple[int, int]) -> None:
    typed = parse(["train", "MountainCar-v0", "--num-envs", str(envs)])
    assert isinstance(typed, Train)
    for cfg in (typed.config, find("MountainCar-v0", num_envs=envs)):
        assert (cfg.num_envs, *cfg.num_steps, cfg.minibatch_size) == (envs, *settings)


def test_vectors_are_explored_unless_the_noise_is_chosen() -> None:
    cfg = find("MountainCar-v0")
    assert cfg == replace(VECTORS, task=cfg.task, env=cfg.env)
    assert find("Walker2d-v5").noise_color == find("ALE/Pong-v5").noise_color == 0
    for words, until, rarity in (
        (["--noise-color", "1"], 1.0, 0),
        (["--noise-color=1", "--noise-until", "0.5"], 0.5, 0),
    ):
        typed = parse(["train", "MountainCar-v0", *words])
        assert isinstance(typed, Train)
        assert (typed.config.noise_color, typed.config.noise_until, typed.config.noise_rarity) == (1, until, rarity)
    assert find("MountainCar-v0", noise_color=1.0) == replace(cfg, noise_until=1.0, noise_rarity=0)
    assert find(cfg, noise_color=0.5) == replace(cfg, noise_color=0.5)


def test_one_environment_of_pictures_needs_no_further_option() -> None:
    pytest.importorskip("Box2D")
    cfg = find("CarRacing-v3", num_envs=1)
    assert (cfg.num_envs, *cfg.num_steps, cfg.minibatch_size) == (1, 1024, 256)


@pytest.mark.parametrize(
    ("task", "options", "minibatch", "sequence"),
    [
        ("MountainCar-v0", {}, 256, 32),  # 8 environments, 128 steps
        ("cartpole", {}, 256, 32),  # 8 environments, 64 steps
        ("ALE/Breakout-v5", {}, 1024, 32),  # as without a memory
        ("MountainCar-v0", {"num_envs": 1}, 64, 64),
        ("MountainCar-v0", {"num_steps": (8,)}, 64, 8),  # a rollout has no longer ones
        ("MountainCar-v0", {"num_steps": (120,)}, 320, 40),  # the least part from 32 on
        ("MountainCar-v0", {"num_envs": 64}, 64 * 32, 32),
        ("CartPole-v1", {"num_envs": 2}, 64, 32),
        ("CartPole-v1", {"num_envs": 3, "num_steps": (30, 60)}, 90, 30),
        ("MountainCar-v0", {"minibatch_size": 32}, 32, 4),  # as asked for
    ],
)
def test_a_memory_learns_from_sequences_that_are_long_enough(
    task: str, options: dict[str, Any], minibatch: int, sequence: int
) -> None:
    words = [f"--{name.replace('_', '-')} {re.sub('[(),]', '', str(value))}" for name, value in options.items()]
    typed = parse(["train", task, "memory:gru", *" ".join(words).split()])
    assert isinstance(typed, Train)
    for cfg in (typed.config, find(task, memory=GRU(), **options)):
        assert (cfg.minibatch_size, cfg.sequence(cfg.num_steps[0])) == (minibatch, sequence)


def test_trpo_has_a_critic_that_shares_no_layer_with_the_policy() -> None:
    """Where nobody chooses a network: what they shared would be the policy's alone."""
    chosen = find("pong", objective=TrustRegion(), learning_rate=FixedRate(1e-3))
    typed = parse(["train", "pong", "objective:trust-region", "learning-rate:fixed-rate"])
    assert isinstance(typed, Train)
    assert chosen.network == typed.config.network == replace(find("pong").network, separate_critic=True)
    named = parse(["train", "pong", "network:small-cnn", "objective:trust-region", "learning-rate:fixed-rate"])
    assert isinstance(named, Train)
    assert named.config.network == find("pong").network
    given = find("pong", objective=TrustRegion(), learning_rate=FixedRate(1e-3), network=NatureCNN())
    assert given.network == NatureCNN()
    assert find("CartPole-v1", objective=TrustRegion(), learning_rate=FixedRate(1e-3)).network == MLP()
    remembers = find("pong", objective=TrustRegion(), learning_rate=FixedRate(1e-3), memory=GRU())
    assert remembers.network == find("pong").network  # a memory sees what is the critic's own


def test_minibatches_grow_to_hold_sequences_of_the_length_asked_for() -> None:
    lines = ("--memory.length 64 --num-steps 256", "--num_steps=256 --memory.length=64")
    typed = [parse(["train", "MountainCar-v0", "memory:lstm", *line.split()]) for line in lines]
    for cfg in (*[t.config for t in typed], find("MountainCar-v0", memory=LSTM(length=64), num_steps=256)):
        assert (cfg.minibatch_size, cfg.sequence(256)) == (8 * 64, 64)
    with pytest.raises(UserError, match="length is 48; allowed is 0, or a divisor of 128"):
        find("MountainCar-v0", memory=GRU(length=48))
