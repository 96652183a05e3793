"""Any Gymnasium environment with vector observations and discrete actions, restored by replaying its episode."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_REPLAY = 100_000  # decisions: a longer episode is not restored, a new one begins


@dataclass(frozen=True)
class Gymnasium:
    """An environment by its Gymnasium id."""

    id: str = "CartPole-v1"
    """as for gymnasium.make; `module:Name-v0` imports the module first"""

    def make(self, render: bool = False) -> GymnasiumGame:
        """An environment of this kind; `render`: one whose pictures can be taken."""
        return GymnasiumGame(self, render)


class GymnasiumGame:
    """One Gymnasium environment; observations float32 or uint8 as its Box says."""

    goes_on = False

    def __init__(self, spec: Gymnasium, render: bool) -> None:
        import difflib

        import gymnasium
        import numpy as np
        from gymnasium import spaces

        from surefoot.errors import UserError

        try:
            self.env = gymnasium.make(spec.id)
            if render and "rgb_array" in (self.env.metadata.get("render_modes") or ()):
                self.env.close()
                self.env = gymnasium.make(spec.id, render_mode="rgb_array")
            elif render:
                raise UserError(f"'{spec.id}' cannot be filmed: it has no render_mode 'rgb_array'")
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"environment '{spec.id}' needs a package that is missing: {error}") from error
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            near = difflib.get_close_matches(spec.id, gymnasium.registry, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else "; see gymnasium.registry for the known ids"
            raise UserError(f"no environment '{spec.id}' ({str(error).rstrip('.')}){hint}") from error
        observation, action = self.env.observation_space, self.env.action_space
        if not isinstance(observation, spaces.Box) or len(observation.shape) != 1:
            raise UserError(f"'{spec.id}' observes {observation}: only one-dimensional Box spaces can be learned yet")
        if not isinstance(action, spaces.Discrete) or action.start != 0:
            raise UserError(f"'{spec.id}' acts in {action}: only Discrete spaces that start at 0 can be learned yet")
        self.observation_space, self.action_space = observation, action
        self.action_names = tuple(str(a) for a in range(int(action.n)))
        self.seed, self.actions, self.steps, self.score = 0, array("q"), 0, 0.0
        self.obs = np.zeros(observation.shape, observation.dtype)

    def reset(self, seed: int, out: Array) -> None:
        """Begin an episode with Gymnasium's own seeded reset."""
        self.seed, self.actions, self.steps, self.score = seed, array("q"), 0, 0.0
        self._see(self.env.reset(seed=seed)[0], out)

    def step(self, action: int, out: Array) -> tuple[float, bool, bool]:
        """One step of the environment."""
        self.steps += 1
        if self.steps <= MAX_REPLAY:
            self.actions.append(action)
        obs, reward, terminated, truncated, _ = self.env.step(action)
        self._see(obs, out)
        self.score += float(reward)
        return float(reward), bool(terminated), bool(truncated)

    def _see(self, obs: Any, out: Array) -> None:
        """Take an observation over; raises where its shape or type is not the announced one."""
        import numpy as np

        if np.shape(obs) != self.obs.shape:
            raise ValueError(f"its observation has shape {np.shape(obs)}, announced was {self.obs.shape}")
        np.copyto(self.obs, obs, casting="same_kind")
        out[...] = self.obs

    def render(self) -> Array:
        """The present picture, uint8 [height, width, 3]."""
        import gymnasium
        import numpy as np

        from surefoot.errors import UserError

        try:
            return np.asarray(self.env.render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"the environment cannot be filmed: {error}") from error

    def snapshot(self) -> dict[str, Array]:
        """The episode's seed, the actions since, and where they led."""
        import numpy as np

        place, actions = np.array([self.seed, self.steps], np.int64), np.array(self.actions, np.int64)
        return {"place": place, "actions": actions, "obs": self.obs.copy(), "total": np.array([self.score])}

    def restore(self, saved: dict[str, Array], out: Array) -> bool:
        """Play the episode again; False where it is too long, or where observation or score come out otherwise."""
        seed, steps = (int(x) for x in saved["place"])
        if steps > MAX_REPLAY:
            return False
        self.reset(seed, out)
        for action in saved["actions"].tolist():
            self.step(action, out)
        return bool(self.obs.tobytes() == saved["obs"].tobytes() and self.score == saved["total"][0])

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
