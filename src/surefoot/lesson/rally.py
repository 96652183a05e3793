"""Rally: the smallest task with what makes Pong hard, for `surefoot ladder --quick`.

Pixels alone say where the ball is, two frames where it is going; a point comes nine steps after the ball, and an
episode has five of them, so that most of what is paid is some other action's doing.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE, BALLS, HALF = 10, 5, 1


class Rally(gymnasium.Env[Any, Any]):
    """Five balls fall, one after another, through a field of 10x10 pixels, straight or aslant; walls reflect them.

    Two actions: the paddle, three pixels wide, goes left or right by one. A ball on the paddle is 1 point, any other
    -1. 45 steps; observations uint8 [2, 10, 10], the frame before and the present one.
    """

    def __init__(self, **_: Any) -> None:
        self.observation_space = spaces.Box(0, 255, (2, SIZE, SIZE), np.uint8)
        self.action_space = spaces.Discrete(2)
        self.frames = np.zeros((2, SIZE, SIZE), np.uint8)

    def _serve(self) -> None:
        self.x, self.dx = (int(n) for n in self.np_random.integers((0, -1), (SIZE, 2)))
        self.y = 0

    def _see(self) -> Any:
        self.frames[0] = self.frames[1]
        self.frames[1] = 0
        self.frames[1, SIZE - 1, self.paddle - HALF : self.paddle + HALF + 1] = 255
        self.frames[1, self.y, self.x] = 255
        return self.frames.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """The paddle in the middle, the first ball at the top; both frames are the same."""
        super().reset(seed=seed)
        self.paddle, self.balls = SIZE // 2, 0
        self._serve()
        self._see()
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the paddle (0: left, 1: right) and the ball."""
        self.paddle = min(SIZE - 1 - HALF, max(HALF, self.paddle + (1 if action else -1)))
        if not 0 <= self.x + self.dx < SIZE:
            self.dx = -self.dx
        self.x, self.y = self.x + self.dx, self.y + 1
        reward = 0.0
        if self.y == SIZE - 1:
            reward = 1.0 if abs(self.x - self.paddle) <= HALF else -1.0
            self.balls += 1
            self._serve()
        return self._see(), reward, self.balls == BALLS, False, {}

    def render(self) -> Any:
        """The present frame, larger: uint8 [160, 160, 3]."""
        return self.frames[1].repeat(16, 0).repeat(16, 1)[..., None].repeat(3, 2)
