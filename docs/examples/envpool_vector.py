"""EnvPool's environments, stepped together in C++: `surefoot train envpool_vector:make_env --env.kwargs id=Pong-v5`."""

from typing import Any

import envpool


def make_env(num_envs: int, id: str = "CartPole-v1", **kwargs: Any) -> Any:
    """EnvPool's vector; `num_envs` is asked of it by surefoot."""
    return envpool.make_gymnasium(id, num_envs=num_envs, **kwargs)
