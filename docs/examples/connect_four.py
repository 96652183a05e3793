"""Connect four for the player who begins, against one who plays at random.

    pip install 'pettingzoo[classic]'; cd docs/examples; surefoot train connect_four:AgainstRandom

Any of PettingZoo's games for two becomes an environment for one in this way. The observation has the action mask.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from pettingzoo.classic import connect_four_v3


class AgainstRandom(gymnasium.Env[Any, Any]):
    """The reward is 1 for a victory, -1 for a defeat."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 2}

    def __init__(self, render_mode: str | None = None) -> None:
        self.game, self.render_mode = connect_four_v3.env(render_mode=render_mode), render_mode
        self.me = self.game.possible_agents[0]
        self.observation_space, self.action_space = (
            self.game.observation_space(self.me),
            self.game.action_space(self.me),
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """An empty board."""
        super().reset(seed=seed)
        self.game.reset(seed=seed)
        return self.game.observe(self.me), {}

    def step(self, action: Any) -> Any:
        """My piece, and, unless that ends the game, the other player's."""
        self.game.step(int(action))
        if not self.game.terminations[self.me]:
            allowed = self.game.observe(self.game.agent_selection)["action_mask"]
            self.game.step(int(self.np_random.choice(np.flatnonzero(allowed))))
        return self.game.observe(self.me), self.game.rewards[self.me], self.game.terminations[self.me], False, {}

    def render(self) -> Any:
        """The board."""
        return self.game.render()

    def close(self) -> None:
        """Close the game."""
        self.game.close()
