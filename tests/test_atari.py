"""Pong through ALE: the lesson's pixels, no-ops, sticky actions, random skips, exact snapshots."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from surefoot.envs.atari import BACKGROUND, CROP, Atari, Pong, lesson_table, palette
from surefoot.presets import LESSON_GAME
from surefoot.rng import Purpose, stream


@functools.cache
def made(spec: Any) -> Any:
    """Loading a ROM takes long; an episode does not depend on what was played before."""
    return spec.make()


def played(spec: Pong, seed: int, actions: list[int]) -> tuple[np.ndarray, list[float]]:
    game = made(spec)
    out = np.zeros((2, 80, 80), np.uint8)
    game.reset(seed, out)
    rewards = [game.step(a, out)[0] for a in actions]
    return out, rewards


def test_the_lessons_pixels_are_exact() -> None:
    """The table on palette indices gives what the lesson computes from RGB, at every pixel of real screens."""
    game = made(LESSON_GAME)
    out = np.zeros((2, 80, 80), np.uint8)
    game.reset(3, out)
    table = lesson_table()
    seen = set()
    for step in range(300):
        game.step(step // 7 % 2, out)
        rgb = game.render()[CROP].astype(np.float64)
        want = np.mean(rgb - np.array([144, 72, 17]), axis=-1) / 255.0
        assert np.abs(table[out[1]] - want).max() < 1e-12
        seen |= set(np.unique(want).tolist())
    assert len(seen) >= 4
    assert any((value * 255) % 1 for value in seen)  # thirds: no whole gray level
    assert table[0] == pytest.approx(-233 / 765)  # black lies below the background
    assert out[1].shape == (80, 80)


def test_the_palette_is_the_consoles() -> None:
    game = made(Pong())
    out = np.zeros((2, 80, 80), np.uint8)
    game.reset(0, out)
    for action in (0, 1, 2) * 40:
        game.step(action, out)
    index, rgb = game.ale.getScreen(), game.ale.getScreenRGB()
    assert np.array_equal(palette()[index], rgb)
    assert BACKGROUND in {tuple(c) for c in rgb.reshape(-1, 3).tolist()}


def test_gray_frames_are_the_mean_of_rgb_and_the_older_comes_first() -> None:
    game = made(Pong())
    out = np.zeros((2, 80, 80), np.uint8)
    game.reset(1, out)
    assert np.array_equal(out[0], out[1])
    for _ in range(60):
        before = out[1].copy()
        game.step(2, out)
        assert np.array_equal(out[0], before)
    want = np.rint(game.render()[CROP].astype(float).mean(-1))
    assert np.array_equal(out[1], want)


def test_more_or_fewer_frames_are_stacked_with_the_newest_last() -> None:
    games = [Pong(stack=count).make() for count in (1, 2, 3)]
    seen = [np.zeros((count, 80, 80), np.uint8) for count in (1, 2, 3)]
    for game, out in zip(games, seen, strict=True):
        game.reset(5, out)
    assert (seen[2] == seen[0]).all()  # before the first step there is one screen
    for action in (1, 2, 2, 0):
        for game, out in zip(games, seen, strict=True):
            game.step(action, out)
        assert np.array_equal(seen[2][1:], seen[1])
        assert np.array_equal(seen[1][1:], seen[0])
    assert (seen[2][0] != seen[2][1]).any()


def test_the_lessons_decision_is_a_button_then_none_and_adds_both_rewards() -> None:
    """Compared with a plain emulator driven by hand: FIRE, five random decisions, then button and NOOP in turn."""
    import ale_py

    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", 0)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("frame_skip", 4)
    ale.loadROM(str(ale_py.roms.get_rom_path("pong")))
    ale.reset_game()
    buttons = (ale_py.Action.LEFTFIRE, ale_py.Action.RIGHTFIRE)
    ale.act(ale_py.Action.FIRE)
    for action in stream(11, Purpose.OPENINGS).integers(2, size=5):
        ale.act(buttons[action])
        ale.act(ale_py.Action.NOOP)
    actions = [i // 5 % 2 for i in range(150)]
    rewards = []
    for action in actions:
        first = ale.act(buttons[action])
        frame1 = ale.getScreen()[CROP].copy()
        rewards.append(first + ale.act(ale_py.Action.NOOP))
        frame2 = ale.getScreen()[CROP].copy()
    out, got = played(LESSON_GAME, 11, actions)
    assert got == rewards
    assert sum(rewards) < 0
    assert np.array_equal(out, np.stack((frame1, frame2)))


def test_an_episode_depends_only_on_its_seed_and_actions() -> None:
    actions = np.random.default_rng(0).integers(3, size=200).tolist()
    for spec in (Pong(), Pong(sticky=0.25), Pong(frame_skip=(2, 4)), LESSON_GAME):
        moves = [a % len(spec.actions) for a in actions]
        a, b = played(spec, 5, moves), played(spec, 5, moves)
        assert np.array_equal(a[0], b[0])
        assert a[1] == b[1]
        assert len({played(spec, seed, moves[:3])[0].tobytes() for seed in range(8)}) >= 2


BREAKOUT = Atari("breakout", frame_skip=(2, 4), sticky=0.25, life_loss=True)


@pytest.mark.parametrize("spec", [Pong(), Pong(sticky=0.25), Pong(frame_skip=(2, 4)), LESSON_GAME, BREAKOUT], ids=str)
def test_a_restored_game_goes_on_bit_for_bit(spec: Pong | Atari) -> None:
    """Across a block of 512 steps of noise, into another object that has played something else."""
    game, other = made(spec), spec.make()
    out, there = np.zeros((2, *game.observation_space.shape), np.uint8)
    game.reset(9, out)
    other.reset(10, there)
    moves = np.random.default_rng(1).integers(2, size=620)
    if spec == LESSON_GAME:
        moves = moves[:340]  # two steps a decision; its losing game ends at about 380
    elif spec == BREAKOUT:
        moves = np.where(np.arange(620) % 150, 2 + moves, 1)  # FIRE every 150 decisions: its ball is soon lost
    half, lives = len(moves) * 2 // 3, set()
    for move in moves[:half]:
        game.step(move, out)
    saved = game.snapshot()
    other.step(0, there)
    assert other.restore(saved, there)
    assert np.array_equal(out, there)
    assert other.last == game.last  # what a sticky frame holds
    for move in moves[half:]:
        assert game.step(move, out) == other.step(move, there)
        assert np.array_equal(out, there)
        assert game.life_lost == other.life_lost
        lives.add(getattr(game, "lives", 0))
    assert lives == ({1, 2} if spec == BREAKOUT else {0})


def test_noops_are_between_one_and_thirty() -> None:
    frames = set()
    game, out = made(Pong()), np.zeros((2, 80, 80), np.uint8)
    for seed in range(60):
        game.reset(seed, out)
        frames.add(game.ale.getEpisodeFrameNumber())
    assert min(frames) >= 1
    assert max(frames) <= 30
    assert len(frames) > 15
    still, _ = Pong(noop_max=0).make(), None
    still.reset(0, out)
    assert still.ale.getEpisodeFrameNumber() == 0


def test_sticky_actions_hold_the_last_button_a_quarter_of_the_time() -> None:
    game, out = made(Pong(sticky=0.25)), np.zeros((2, 80, 80), np.uint8)
    game.reset(0, out)
    held = np.array(game.sticks)
    assert held.shape == (512, 4)
    assert abs(held.mean() - 0.25) < 0.03
    # the effect is real: the same buttons, sticky or not, lead to different screens
    moves = [0, 1, 2, 1, 2] * 12
    assert not np.array_equal(played(Pong(sticky=0.25), 2, moves)[0], played(Pong(), 2, moves)[0])


class StderrForwarder:
    """An emulator that keeps the buttons it gets."""

    def __init__(self, ale: Any) -> None:
        self.ale, self.buttons = ale, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ale, name)

    def act(self, button: Any) -> int:
        self.buttons += button.name[0]
        return self.ale.act(button)


def test_a_sticky_frame_has_the_button_of_the_frame_before_it() -> None:
    """And the next one the button that is asked for, as in ALE."""
    game, out = made(Pong(sticky=0.25)), np.zeros((2, 80, 80), np.uint8)
    game.reset(0, out)
    game.step(0, out)
    decisions = [
        ("LEFT", "0000", "LLLL"),
        ("RIGHTFIRE", "1010", "LRRR"),
        ("LEFT", "1111", "RRRR"),
        ("LEFT", "1101", "RRLL"),
        ("NOOP", "0110", "NNNN"),
    ]
    game.sticks = [[]] + [[stick == "1" for stick in sticks] for _, sticks, _ in decisions]
    for name, _, expected in decisions:
        game.ale = heard = StderrForwarder(game.ale)
        game.step(game.action_names.index(name), out)
        assert heard.buttons == expected


@pytest.mark.parametrize(("skips", "expected"), [((2, 4), {2, 3, 4}), ((3,), {3})])
def test_frame_skips_stay_in_their_range(skips: tuple[int, ...], expected: set[int]) -> None:
    game, out = Pong(frame_skip=skips, noop_max=0).make(), np.zeros((2, 80, 80), np.uint8)
    game.reset(0, out)
    seen, last = [], 0
    for _ in range(100):
        game.step(0, out)
        now = game.ale.getEpisodeFrameNumber()
        seen.append(now - last)
        last = now
    assert set(seen) == expected


def test_a_whole_game_is_played_to_21() -> None:
    game, out = made(Pong()), np.zeros((2, 80, 80), np.uint8)
    game.reset(4, out)
    score, over, steps = 0.0, False, 0
    while not over:
        reward, terminated, truncated = game.step(0, out)
        score, over, steps = score + reward, terminated or truncated, steps + 1
    assert terminated
    assert score == -21
    assert 500 < steps < 1500
