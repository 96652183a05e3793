"""An Atari 2600 emulator with counter-based randomness, which can be restored exactly.

ALE's own randomness is not used, since it cannot be restored: no-ops, sticky actions and random frame skips are drawn
from `surefoot.rng`, so that an episode depends only on its seed and actions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from surefoot.errors import require, require_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_FRAMES = 108_000  # half an hour of play: the episode limit of the Atari literature


class Randomness(Protocol):
    """The fields of a description about randomness."""

    @property
    def frame_skip(self) -> tuple[int, ...]:
        """Frame skip; two numbers: drawn uniformly from this range, ends included."""
        ...

    @property
    def sticky(self) -> float:
        """Probability at each frame that the previous action is repeated."""
        ...

    @property
    def noop_max(self) -> int:
        """Episodes start with 1 to this many frames of NOOP; 0: none."""
        ...


def require_randomness(spec: Randomness) -> None:
    """Raise UserError where a field about randomness is out of range."""
    require_range(spec, "frame_skip", low=1, high=16_384)
    require_range(spec, "sticky", high=1)
    require_range(spec, "noop_max")
    skip, name = spec.frame_skip, type(spec).__name__
    two = not isinstance(skip, tuple) or (len(skip) <= 2 and skip[0] <= skip[-1])
    require(two, f"{name}.frame_skip", skip, "one number, or two, the smaller first")


class Console:
    """An emulator with the game `rom`, its actions, and the stacked frames [stack, height, width] of an observation."""

    life_lost = False

    def __init__(self, rom: str, buttons: Sequence[str] | bool, spec: Randomness, shape: tuple[int, ...]) -> None:
        """`buttons`: names of ALE's actions; False: those the game uses; True: all 18. Raises UserError."""
        import ale_py
        import numpy as np
        from gymnasium import spaces

        from surefoot.errors import UserError

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale, self.randomness = ale_py.ALEInterface(), spec
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("frame_skip", 1)  # four calls of one frame take as long as one call of four
        known = ale_py.roms.get_all_rom_ids()
        if rom not in known:
            import difflib

            near = " or ".join(difflib.get_close_matches(rom, known, 3, 0.4)) or ", ".join(sorted(known))
            raise UserError(f"there is no Atari game '{rom}': did you mean {near}?")
        path = str(ale_py.roms.get_rom_path(rom))
        if self.ale.isSupportedROM(path) is None:  # loading it would end the process
            raise UserError(f"ALE has '{rom}' but not as a game for one player: choose another game")
        self.ale.loadROM(path)
        names = {action.name: action for action in self.ale.getLegalActionSet()}
        if isinstance(buttons, bool):
            used = self.ale.getLegalActionSet() if buttons else self.ale.getMinimalActionSet()
            buttons = [action.name for action in used]
        unknown = set(buttons) - set(names)
        if unknown:
            raise UserError(f"there is no action {' or '.join(sorted(unknown))}: choose from {', '.join(names)}")
        self.action_names = tuple(buttons)
        self.buttons = [names[name] for name in buttons]
        self.observation_space: spaces.Space[Any] = spaces.Box(0, 255, shape, np.uint8)
        self.action_space: spaces.Space[Any] = spaces.Discrete(len(self.buttons))
        self.frames = np.zeros(shape, np.uint8)
        self.noop, self.fire = ale_py.Action.NOOP, ale_py.Action.FIRE
        self.last = self.noop
        self.seed = self.steps = 0

    def begin(self, seed: int) -> None:
        """Begin an episode: reset, then a number of no-ops drawn from `seed`."""
        from surefoot.rng import Purpose, stream

        self.ale.reset_game()
        self.seed, self.steps, self.last = seed, 0, self.noop
        self._draw()
        if self.randomness.noop_max:
            for _ in range(stream(seed, Purpose.NOOPS).integers(1, self.randomness.noop_max + 1)):
                self.ale.act(self.noop)

    def _draw(self) -> None:
        """Draw the frame skips and sticky frames of steps 512 k to 512 (k + 1), which depend on seed and k alone."""
        from surefoot.rng import Purpose, stream

        block, skips = self.steps // 512, self.randomness.frame_skip
        self.skips = stream(self.seed, Purpose.FRAME_SKIPS, block).integers(skips[0], skips[-1] + 1, 512).tolist()
        sticks = stream(self.seed, Purpose.STICKY, block).random((512, skips[-1])) < self.randomness.sticky
        self.sticks = sticks.tolist() if self.randomness.sticky else None

    def advance(self, button: Any, before: Array | None = None) -> float:
        """Press a button for the frames of one step; returns their reward.

        A sticky frame has the button of the frame before it, as in ALE. `before` [210, 160] receives the grayscale
        screen of the last frame but one, or zeros where there is none.
        """
        if self.steps % 512 == 0:
            self._draw()
        k = self.steps % 512
        skip, reward, act = self.skips[k], 0, self.ale.act
        if before is not None and skip < 2:
            before[...] = 0
        for frame in range(skip):
            if self.sticks is None or not self.sticks[k][frame]:
                self.last = button
            reward += act(self.last)
            if before is not None and frame == skip - 2:
                self.ale.getScreenGrayscale(before)
        self.steps += 1
        return float(reward)

    @property
    def over(self) -> tuple[bool, bool]:
        """Whether the game is over, and whether half an hour of play is."""
        return self.ale.game_over(), self.ale.getEpisodeFrameNumber() >= MAX_FRAMES

    def render(self) -> Array:
        """The whole screen, uint8 [210, 160, 3]."""
        screen: Array = self.ale.getScreenRGB()
        return screen

    def snapshot(self) -> dict[str, Array]:
        """Emulator state, frames and random counters; `render` after a restore is stale until the next frame."""
        import numpy as np

        state: Any = self.ale.cloneState()
        return {
            "emulator": np.frombuffer(state.__getstate__(), np.uint8),
            "frames": self.frames.copy(),
            "place": np.array([self.seed, self.steps, self.last.value], np.int64),
        }

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Restore a snapshot, always exactly."""
        import ale_py

        state: Any = ale_py.ALEState.__new__(ale_py.ALEState)
        state.__setstate__(saved["emulator"].tobytes())
        self.ale.restoreState(state)
        self.seed, self.steps = (int(x) for x in saved["place"][:2])
        self.last = ale_py.Action(int(saved["place"][2]))
        self._draw()
        self.frames[...] = out[...] = saved["frames"]
        return True

    def close(self) -> None:
        """Nothing to close."""
