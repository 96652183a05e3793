"""Atari as the literature plays it: frame by frame what Gymnasium's wrappers make; lives, signs, every game."""

from __future__ import annotations

from dataclasses import replace

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

import surefoot
from surefoot.algorithm.rewards import SignReward
from surefoot.algorithm.rollout import collect
from surefoot.envs.atari import Atari
from surefoot.envs.vector import EnvVector
from surefoot.errors import UserError
from surefoot.presets import find
from surefoot.rng import Purpose, stream
from surefoot.runs.evaluation import evaluate

gymnasium.register_envs(ale_py)


@pytest.mark.parametrize(
    ("id", "spec"),
    [
        ("Pong", Atari("pong")),
        pytest.param("Breakout", Atari("breakout"), marks=pytest.mark.long),
        pytest.param("MsPacman", Atari("ms_pacman"), marks=pytest.mark.long),
        pytest.param("Breakout", Atari("breakout", frame_skip=(1,), all_buttons=True), marks=pytest.mark.long),
        pytest.param("Seaquest", Atari("seaquest", size=64), marks=pytest.mark.long),  # 32 lines of 105, twice
        pytest.param("Freeway", Atari("freeway", size=100), marks=pytest.mark.long),  # not to be had in bands
        pytest.param("Klax", Atari("klax"), marks=pytest.mark.long),  # 250 lines
    ],
)
def test_it_agrees_frame_by_frame_with_gymnasiums_wrappers(
    id: str, spec: Atari, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same no-ops and actions: equal observations, rewards and endings, over the end of a game."""
    plain = {"frameskip": 1, "repeat_action_probability": 0.0}
    env = gymnasium.make(f"ALE/{id}-v5", full_action_space=spec.all_buttons, **plain)
    frames = AtariPreprocessing(env, frame_skip=spec.frame_skip[0], screen_size=spec.size)
    wrapped = FrameStackObservation(frames, 4)
    mine = spec.make()
    out = np.zeros((4, spec.size, spec.size), np.uint8)
    assert wrapped.observation_space == mine.observation_space
    assert wrapped.action_space == mine.action_space
    actions = np.random.default_rng(3).integers(mine.action_space.n, size=2400 // spec.frame_skip[0]).tolist()
    seed, endings = 7, 0
    for action in [None, *actions]:
        if action is None:
            noops = int(stream(seed, Purpose.NOOPS).integers(1, 31))
            monkeypatch.setattr(env.unwrapped, "_np_random", Fixed(noops))
            theirs, _ = wrapped.reset()
            mine.reset(seed, out)
            assert np.array_equal(out, theirs)
            continue
        theirs, reward, terminated, truncated, _ = wrapped.step(action)
        assert mine.step(action, out) == (reward, terminated, truncated)
        if terminated or truncated:  # the last picture of a game that ends within a step is left to the wrapper
            endings += 1
            seed += 1
            monkeypatch.setattr(env.unwrapped, "_np_random", Fixed(int(stream(seed, Purpose.NOOPS).integers(1, 31))))
            theirs, _ = wrapped.reset()
            mine.reset(seed, out)
        assert np.array_equal(out, theirs)
    assert endings or id in ("Pong", "Freeway")


class Fixed:
    """A generator for the wrapper's no-ops."""

    def __init__(self, number: int) -> None:
        self.number = number

    def integers(self, *_: int) -> int:
        return self.number


def test_a_lost_life_ends_for_learning_and_not_for_scores() -> None:
    envs = EnvVector(Atari("breakout", life_loss=True), 1, range(1))
    envs.reset_all()
    out = np.empty_like(envs.obs)
    lives, scores, went_on = [], [], 0
    for t in range(400):
        before = envs.envs[0].lives  # type: ignore[attr-defined]
        steps = envs.step([(1, 2, 3)[t % 3]], out)
        if steps.terminated[0]:
            lives.append(before)
            went_on += envs.envs[0].life_lost
        scores += [e.score for e in envs.take_finished()]
    assert lives[:5] == [5, 4, 3, 2, 1]  # each life is an ending
    assert len(scores) == len(lives) // 5  # and five of them a game
    assert went_on == len(lives) - len(scores)
    whole = EnvVector(Atari("breakout"), 1, range(1))
    whole.reset_all()
    plain = []
    for t in range(400):
        whole.step([(1, 2, 3)[t % 3]], out)
        plain += [e.score for e in whole.take_finished()]
    assert plain == scores


def test_signs_are_learned_and_scores_stay_raw() -> None:
    """Ms. Pac-Man pays tens: the rollout has them, what is learned has their sign."""
    cfg = find("ALE/MsPacman-v5")
    assert isinstance(cfg.reward, SignReward)
    torch.manual_seed(0)
    envs = EnvVector(cfg.env, 1, range(2))
    envs.reset_all()
    policy = cfg.network.build(envs.observation_space, envs.action_space)
    rollout = collect(policy, envs, torch.rand(96, 2))  # a tune of 64 decisions comes first
    assert rollout.reward.max() >= 10
    assert set(cfg.reward(rollout.reward).unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.long
def test_an_evaluation_plays_whole_games_whatever_learning_calls_an_ending() -> None:
    short = Atari("breakout", life_loss=True)
    env = short.make()
    torch.manual_seed(0)
    policy = find("BreakoutNoFrameskip-v4").network.build(env.observation_space, env.action_space)
    with_lives, whole = (evaluate(policy, env, range(2)) for env in (short, Atari("breakout")))
    assert with_lives.scores == whole.scores
    assert with_lives.lengths == whole.lengths


@pytest.mark.parametrize(
    ("id", "env"),
    [
        ("ALE/Pong-v5", Atari("pong", sticky=0.25)),
        ("ALE/BeamRider-v5", Atari("beam_rider", sticky=0.25)),
        ("BreakoutNoFrameskip-v4", Atari("breakout")),
        ("ALE/TicTacToe3D-v5", Atari("tic_tac_toe_3d", sticky=0.25)),
    ],
)
def test_ids_name_games(id: str, env: Atari) -> None:
    assert find(id).env == replace(env, life_loss=True)


def test_every_id_that_gymnasium_knows_is_the_game_it_says() -> None:
    known = [spec for name, spec in gymnasium.registry.items() if name.startswith("ALE/") or "NoFrameskip-v4" in name]
    assert len(known) > 100
    for spec in known:
        env = find(spec.id).env
        assert (env.game, env.sticky) == (spec.kwargs["game"], spec.kwargs["repeat_action_probability"])


def test_an_unknown_game_is_refused_with_its_nearest_names() -> None:
    with pytest.raises(UserError, match="did you mean breakout"):
        Atari("brakout").make()
    with pytest.raises(UserError, match="not as a game for one player"):  # a game for two
        Atari("combat").make()


@pytest.mark.slow
def test_all_games_that_ale_ships_load_and_play() -> None:
    out = np.zeros((4, 84, 84), np.uint8)
    for spec in [spec for name, spec in gymnasium.registry.items() if name.startswith("ALE/")]:
        rom = spec.kwargs["game"]
        env = Atari(rom).make()
        env.reset(1, out)
        for t in range(20):
            env.step(t % env.action_space.n, out)
        assert out.any() or rom in ("video_chess",), rom


@pytest.mark.long
def test_a_run_on_an_atari_id_trains_and_is_evaluated(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = surefoot.train(
        *("ALE/Breakout-v5",), total_steps=256, num_envs=2, num_steps=(64,), minibatch_size=64, eval_episodes=1,
        run_dir=tmp_path / "a", ranks=1, quiet=True,
    )  # fmt: skip
    assert run.evaluation is not None
    assert run.evaluation.scores[0] >= 0
