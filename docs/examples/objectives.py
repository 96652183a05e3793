"""Several rewards in one, by weights: `surefoot train objectives:make_env`, deep sea treasure's."""

from typing import Any

import mo_gymnasium
import numpy as np


def make_env(**kwargs: Any) -> Any:
    """The treasure counts 0.8, the time that it takes 0.2."""
    return mo_gymnasium.wrappers.LinearReward(mo_gymnasium.make("deep-sea-treasure-v0", **kwargs), np.array([0.8, 0.2]))
