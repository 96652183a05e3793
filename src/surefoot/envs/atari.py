"""Atari Pong through the Arcade Learning Environment, seen as the lesson sees it: two stacked 80x80 frames.

ALE's own randomness is unused (it cannot be restored exactly): no-ops, sticky actions and random frame skips come
from `noise`, so that an episode depends only on its seed and actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_FRAMES = 108_000  # half an hour of play: the episode limit of the Atari literature
CROP = (slice(34, -16, 2), slice(None, None, 2))  # the field without score and frame, every second pixel: 80x80
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
    """Pong in two stacked 80x80 frames: rows 34:-16, every second pixel."""

    actions: tuple[str, ...] = ("NOOP", "LEFT", "RIGHTFIRE")
    """the buttons the policy may press, by ALE's names"""
    frame_skip: tuple[int, int] = (4, 4)
    """frames per step, drawn uniformly from this range (ends included); 2 4 is the task Pong-v4"""
    sticky: float = 0.0
    """probability, each frame, that the console still sees the previous button"""
    noop_max: int = 30
    """an episode starts with 1 to this many frames without a button; 0: none"""
    opening: int = 0
    """the lesson's start: FIRE, then this many random decisions; 0: none"""
    settle: bool = False
    """the lesson's decision: the button for one step, then no button for one step, and both screens are the frames"""
    palette: bool = False
    """frames hold palette indices, for exact colours in the network (LessonCNN); otherwise the mean of RGB"""

    def make(self, render: bool = False) -> PongGame:
        """A game of this kind; it can always be rendered."""
        return PongGame(self)


def palette() -> Array:
    """Colours of ALE's palette indices, float64 [256, 3]."""
    import numpy as np

    return np.frombuffer(NTSC, np.uint8).reshape(128, 3).repeat(2, 0).astype(np.float64)


def lesson_table() -> Array:
    """The lesson's pixel for each palette index: mean over RGB of (colour - background), / 255; float64 [256]."""
    import numpy as np

    table: Array = (palette() - np.array(BACKGROUND)).mean(1) / 255
    return table


class PongGame:
    """One emulator with the lesson's preprocessing; observations uint8 [2, 80, 80], older frame first."""

    def __init__(self, spec: Pong) -> None:
        import ale_py
        import numpy as np
        from gymnasium import spaces

        from surefoot.errors import UserError

        self.spec = spec
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("frame_skip", 1)  # measured: four calls of one frame cost what one call of four costs
        self.ale.loadROM(str(ale_py.roms.get_rom_path("pong")))
        known = {action.name: action for action in self.ale.getLegalActionSet()}
        unknown = set(spec.actions) - set(known)
        if unknown:
            raise UserError(f"there is no button {' or '.join(sorted(unknown))}: choose from {', '.join(known)}")
        self.buttons = [known[name] for name in spec.actions]
        self.noop, self.fire = known["NOOP"], known["FIRE"]
        self.gray = bytes(np.rint(palette().mean(1)).astype(np.uint8))
        self.observation_space: spaces.Box = spaces.Box(0, 255, (2, 80, 80), np.uint8)
        self.action_space = spaces.Discrete(len(self.buttons))
        self.action_names = spec.actions
        self.frames = np.zeros((2, 80, 80), np.uint8)
        self.last = self.noop
        self.seed = self.steps = 0

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode: no-ops, then the lesson's opening, both drawn from `seed`."""
        from surefoot.noise import Purpose, stream

        self.ale.reset_game()
        self.seed, self.steps, self.last = seed, 0, self.noop
        self._draw()
        if self.spec.noop_max:
            for _ in range(stream(seed, Purpose.NOOPS).integers(1, self.spec.noop_max + 1)):
                self.ale.act(self.noop)
        self._look()
        self._look()
        if self.spec.opening:
            self._advance(self.fire)
            for action in stream(seed, Purpose.OPENINGS).integers(len(self.buttons), size=self.spec.opening):
                self.step(int(action), out)
        out[...] = self.frames

    def step(self, action: int, out: Array) -> tuple[float, bool, bool]:
        """One decision; terminated when somebody has 21 points, truncated after half an hour of play."""
        reward = self._advance(self.buttons[action])
        self._look()
        if self.spec.settle:
            reward += self._advance(self.noop)
            self._look()
        out[...] = self.frames
        return reward, self.ale.game_over(), self.ale.getEpisodeFrameNumber() >= MAX_FRAMES

    def _draw(self) -> None:
        """The next block of this episode's noise: steps 512 k to 512 (k + 1) need nothing that came before them."""
        from surefoot.noise import Purpose, stream

        block, (low, high) = self.steps // 512, self.spec.frame_skip
        self.skips = stream(self.seed, Purpose.FRAME_SKIPS, block).integers(low, high + 1, 512).tolist()
        sticks = stream(self.seed, Purpose.STICKY, block).random((512, high)) < self.spec.sticky
        self.sticks = sticks.tolist() if self.spec.sticky else None

    def _advance(self, button: Any) -> float:
        """Hold a button for one step's frames; returns the points they brought."""
        if self.steps % 512 == 0:
            self._draw()
        k = self.steps % 512
        reward, act = 0, self.ale.act
        if self.sticks is None:
            for _ in range(self.skips[k]):
                reward += act(button)
        else:
            for frame in range(self.skips[k]):
                self.last = self.last if self.sticks[k][frame] else button
                reward += act(self.last)
        self.steps += 1
        return float(reward)

    def _look(self) -> None:
        """Push the present screen onto the two frames."""
        import numpy as np

        screen = self.ale.getScreen()[CROP]
        self.frames[0] = self.frames[1]
        if self.spec.palette:
            self.frames[1] = screen
        else:  # bytes.translate is the fastest table look-up there is here: 5 microseconds
            self.frames[1] = np.frombuffer(screen.tobytes().translate(self.gray), np.uint8).reshape(80, 80)

    def render(self) -> Array:
        """The whole screen, uint8 [210, 160, 3]."""
        screen: Array = self.ale.getScreenRGB()
        return screen

    def snapshot(self) -> dict[str, Array]:
        """The emulator's state, the frames (a restored screen is stale until the next frame), and the noise's place."""
        import numpy as np

        state: Any = self.ale.cloneState()
        return {
            "emulator": np.frombuffer(state.__getstate__(), np.uint8),
            "frames": self.frames.copy(),
            "place": np.array([self.seed, self.steps, self.last.value], np.int64),
        }

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Exact, always."""
        import ale_py

        state: Any = ale_py.ALEState.__new__(ale_py.ALEState)
        state.__setstate__(saved["emulator"].tobytes())
        self.ale.restoreState(state)
        self.frames[...] = out[...] = saved["frames"]
        self.seed, self.steps = (int(x) for x in saved["place"][:2])
        self.last = ale_py.Action(int(saved["place"][2]))
        self._draw()
        return True

    def close(self) -> None:
        """Nothing to let go of."""
