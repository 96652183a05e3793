"""Atari 2600 games: Pong as in the lesson, in two stacked 80x80 frames, and any game as in the literature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surefoot.envs.console import Console, require_randomness
from surefoot.errors import needs_extra, require, require_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

CROP = (slice(34, -16, 2), slice(None, None, 2))  # the playing field, every second pixel: 80x80
BACKGROUND = (144, 72, 17)

# The Atari 2600's NTSC colours, hue by hue, eight luminances each; ALE's screens hold twice the position as index.
NTSC = bytes.fromhex(
    "000000 4a4a4a 6f6f6f 8e8e8e aaaaaa c0c0c0 d6d6d6 ececec 484800 69690f 86861d a2a22a bbbb35 d2d240 e8e84a fcfc54 "
    "7c2c00 904811 a26221 b47a30 c3903d d2a44a dfb755 ecc860 901c00 a33915 b55328 c66c3a d5824a e39759 f0aa67 fcbc74 "
    "940000 a71a1a b83232 c84848 d65c5c e46f6f f08080 fc9090 840064 97197a a8308f b846a2 c659b3 d46cc3 e07cd2 ec8ce0 "
    "500084 68199a 7d30ad 9246c0 a459d0 b56ce0 c57cee d48cfc 140090 331aa3 4e32b5 6848c6 7f5cd5 956fe3 a980f0 bc90fc "
    "000094 181aa7 2d32b8 4248c8 545cd6 656fe4 7580f0 8490fc 001c88 183b9d 2d57b0 4272c2 548ad2 65a0e1 75b5ef 84c8fc "
    "003064 185080 2d6d98 4288b0 54a0c5 65b7d9 75cceb 84e0fc 004030 18624e 2d8169 429e82 54b899 65d1ae 75e7c2 84fcd4 "
    "004400 1a661a 328432 48a048 5cba5c 6fd26f 80e880 90fc90 143c00 355f18 527e2d 6e9c42 87b754 9ed065 b4e775 c8fc84 "
    "303800 505916 6d762b 88923e a0ab4f b7c25f ccd86e e0ec7c 482c00 694d14 866a26 a28638 bb9f47 d2b656 e8cc63 fce070"
)


@dataclass(frozen=True)
class Pong:
    """Pong in stacked 80x80 frames, two of them: rows 34:-16, every second pixel."""

    actions: tuple[str, ...] = ("NOOP", "LEFT", "RIGHTFIRE")
    """the policy's actions, by ALE's names"""
    frame_skip: tuple[int, ...] = (4,)
    """frame skip; two numbers: drawn uniformly from this range at every step, ends included (2 4: as in Pong-v4)"""
    sticky: float = 0.0
    """probability at each frame that the previous action is repeated (sticky actions)"""
    noop_max: int = 30
    """episodes start with 1 to this many frames of NOOP; 0: none"""
    opening: int = 0
    """episodes start with FIRE and this many random steps, as in the lesson; 0: none"""
    settle: bool = False
    """a step is one of the action and one of NOOP, and its frames are the screens after both, as in the lesson"""
    palette: bool = False
    """frames hold palette indices, which LessonCNN turns into colours; otherwise the mean of RGB"""
    stack: int = 2
    """number of stacked frames; in 1 nothing moves, which a memory makes up for"""

    def __post_init__(self) -> None:
        require_range(self, "stack", low=1, high=64)
        require(len(self.actions) >= 2, "Pong.actions", self.actions, "two or more buttons")
        require_range(self, "opening")
        require_randomness(self)

    def make(self, render: bool = False) -> PongEnv:
        """The environment; it can always be rendered."""
        return PongEnv(self)


@dataclass(frozen=True)
class Atari:
    """An Atari 2600 game with the literature's preprocessing: grayscale, max of two frames, area-resized, stacked.

    The frames are those of gymnasium's AtariPreprocessing and FrameStackObservation. Source: Machado et al. 2018.
    """

    game: str = "pong"
    """ALE's name of the game, as in breakout or beam_rider"""
    frame_skip: tuple[int, ...] = (4,)
    """frame skip; two numbers: drawn uniformly from this range at every step, ends included"""
    sticky: float = 0.0
    """probability at each frame that the previous action is repeated (sticky actions)"""
    noop_max: int = 30
    """episodes start with 1 to this many frames of NOOP; 0: none"""
    all_buttons: bool = False
    """all 18 actions instead of those the game uses"""
    life_loss: bool = False
    """a lost life is a terminal state for learning; scores are always of whole games"""
    size: int = 84
    """height and width of a frame in pixels"""
    stack: int = 4
    """number of stacked frames"""

    def __post_init__(self) -> None:
        require_range(self, "size", "stack", low=1, high=16_384)
        require_randomness(self)

    def make(self, render: bool = False) -> AtariEnv:
        """The environment; it can always be rendered."""
        with needs_extra("atari"):
            import cv2  # noqa: F401 (resizes the frames)
        return AtariEnv(self)


def ids() -> list[str]:
    """The Gymnasium ids of all games in ALE."""
    from ale_py import roms

    return [f"ALE/{rom.title().replace('_', '')}-v5" for rom in roms.get_all_rom_ids()]


def palette() -> Array:
    """Colours of ALE's palette indices, float64 [256, 3]."""
    import numpy as np

    return np.frombuffer(NTSC, np.uint8).reshape(128, 3).repeat(2, 0).astype(np.float64)


def lesson_table() -> Array:
    """The lesson's pixel for each palette index: mean over RGB of (colour - background), / 255; float64 [256]."""
    import numpy as np

    table: Array = (palette() - np.array(BACKGROUND)).mean(1) / 255
    return table


class PongEnv(Console):
    """One emulator with the lesson's preprocessing; observations uint8 [stack, 80, 80], oldest frame first."""

    def __init__(self, spec: Pong) -> None:
        import numpy as np

        super().__init__("pong", spec.actions, spec, (spec.stack, 80, 80))
        self.spec = spec
        self.gray = bytes(np.rint(palette().mean(1)).astype(np.uint8))

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode: no-ops, then the random opening, both drawn from `seed`."""
        from surefoot.rng import Purpose, stream

        self.begin(seed)
        for _ in range(self.spec.stack):
            self._append_screen()
        if self.spec.opening:
            self.advance(self.fire)
            for action in stream(seed, Purpose.OPENINGS).integers(len(self.buttons), size=self.spec.opening):
                self.step(int(action), out)
        out[...] = self.frames

    def step(self, action: int, out: Array) -> tuple[float, bool, bool]:
        """One step; terminated when a player has 21 points, truncated after half an hour of play."""
        reward = self.advance(self.buttons[action])
        self._append_screen()
        if self.spec.settle:
            reward += self.advance(self.noop)
            self._append_screen()
        out[...] = self.frames
        return reward, *self.over

    def _append_screen(self) -> None:
        """Append the current screen to the frames."""
        import numpy as np

        screen = self.ale.getScreen()[CROP]
        self.frames[:-1] = self.frames[1:]
        if self.spec.palette:
            self.frames[-1] = screen
        else:  # bytes.translate is the fastest table look-up: 5 microseconds
            self.frames[-1] = np.frombuffer(screen.tobytes().translate(self.gray), np.uint8).reshape(80, 80)


class AtariEnv(Console):
    """One emulator with the literature's preprocessing; observations uint8 [stack, size, size], oldest frame first."""

    def __init__(self, spec: Atari) -> None:
        import numpy as np

        super().__init__(spec.game, spec.all_buttons, spec, (spec.stack, spec.size, spec.size))
        self.spec = spec
        height, width = self.ale.getScreenDims()
        self.before, self.screen = np.zeros((2, height, width), np.uint8)
        bands = math.gcd(height, spec.size)  # such as 42 of 5 lines that become 2; one band where scaling is inexact
        bands = 1 if spec.size > width or (rows := spec.size // bands) & rows - 1 else bands
        self.pooled = np.zeros((2, bands, height // bands * width), np.uint8)
        self.resized = np.zeros((spec.size, spec.size), np.uint8)
        self.lives = 0

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode; all frames show its first screen."""
        self.begin(seed)
        if self.ale.game_over():  # during the no-ops
            self.ale.reset_game()
        self.lives = self.ale.lives()
        self.before[...] = 0
        self._append_screen()
        self.frames[...] = self.frames[-1]
        out[...] = self.frames

    def step(self, action: int, out: Array) -> tuple[float, bool, bool]:
        """One step; terminated at the end of the game (or of a life), truncated after half an hour of play."""
        reward = self.advance(self.buttons[action], self.before)
        self._append_screen()
        out[...] = self.frames
        over, late = self.over
        lives, self.lives = self.lives, self.ale.lives()
        self.life_lost = self.spec.life_loss and 0 < self.lives < lives and not over and not late
        return reward, over or self.life_lost, late

    def _append_screen(self) -> None:
        """Append the current screen, max-pooled with the one before, to the frames."""
        import cv2
        import numpy as np

        self.ale.getScreenGrayscale(self.screen)
        self.frames[:-1] = self.frames[1:]
        old, new = self.pooled
        self.pooled = self.pooled[::-1]
        np.maximum(self.screen, self.before, out=new.reshape(self.screen.shape))
        bands = np.flatnonzero((new.view(np.int64) != old.view(np.int64)).any(1))
        if len(bands):  # only the bands that changed are resized: the same pixels in a third of the time
            lines, size = new[bands].reshape(-1, self.screen.shape[1]), self.spec.size
            resized = cv2.resize(lines, (size, size * len(bands) // len(new)), interpolation=cv2.INTER_AREA)
            self.resized.reshape(len(new), -1)[bands] = resized.reshape(len(bands), -1)
        self.frames[-1] = self.resized

    def snapshot(self) -> dict[str, Array]:
        """The emulator's state and the lives."""
        import numpy as np

        return super().snapshot() | {"lives": np.array([self.lives], np.int64)}

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Restore a snapshot, always exactly."""
        self.lives = int(saved["lives"][0])
        return super().restore(saved, out)
