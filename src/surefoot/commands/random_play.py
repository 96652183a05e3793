"""Playing at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from surefoot.envs.actions import choices, numbers
from surefoot.envs.interface import Environment
from surefoot.envs.spaces import blank, masked, parts


class RandomPlayer:
    """Random actions of an environment, among those that its mask allows."""

    def __init__(self, env: Environment) -> None:
        self.env, self.obs, self.over = env, blank(env.observation_space), False
        self.sizes, self.numbers = choices(env.action_space), numbers(env.action_space)
        self.single = len(self.sizes) == 1 and not self.numbers and type(env.action_space).__name__ == "Discrete"
        self.mask = parts(env.observation_space)[-1].start if masked(env.observation_space, env.action_space) else -1

    def action(self, rng: np.random.Generator) -> Any:
        """A random action, as a policy gives it."""
        chosen, start = list[int](), self.mask
        for size in self.sizes:
            allowed = np.flatnonzero(self.obs[start : start + size]) if self.mask >= 0 else np.zeros(0)
            chosen.append(int(rng.choice(allowed) if len(allowed) else rng.integers(size)))
            start += size
        if self.single:
            return chosen[0]
        return np.array([*chosen, *rng.normal(size=self.numbers)]) if self.numbers else np.array(chosen)
