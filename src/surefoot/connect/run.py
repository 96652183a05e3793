"""A run as Python sees it: its curve, its policy, its score."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.envs.interface import EnvSpec
from surefoot.errors import UserError
from surefoot.paths import absolute, shown
from surefoot.presets import find
from surefoot.runs.directory import read_config, read_evaluation
from surefoot.runs.metrics import Row, read

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    from numpy.typing import NDArray

    from surefoot.config import Config
    from surefoot.models.policy import Policy
    from surefoot.runs.evaluation import Evaluation

    Numbers = NDArray[np.float64]
    GivenEnv = EnvSpec | str | gymnasium.Env[Any, Any] | Callable[..., gymnasium.Env[Any, Any]] | None


def spec_of(env: GivenEnv) -> EnvSpec | None:
    """The description of an environment given from Python; None for None."""
    return env if env is None or isinstance(env, EnvSpec) else find(env).env


class Run:
    """A run, or a policy file alone; its files are read when something of them is asked for, and then kept.

    `env`, `trust`: as for `surefoot.evaluate`. Raises UserError where there is no such file or directory.
    """

    def __init__(self, directory: Path | str, env: GivenEnv = None, trust: bool = False) -> None:
        self.directory, self.trust = absolute(directory), trust
        self.env = spec_of(env)
        if not self.directory.exists():
            raise UserError(f"there is no file '{shown(self.directory)}': name a run directory or a policy file")

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows of it: score, curve and film, where there are any."""
        from surefoot.runs.files import Folder

        parts = [escape(repr(self))]
        if self.directory.is_dir():
            parts.append(f"{self.steps:,} steps" + (f", score {self.evaluation.mean:.2f}" if self.evaluation else ""))
            with Folder(self.directory) as folder:
                for name in filter(folder.has, ("curve.png", "game.gif")):
                    data = b64encode(folder.read(name)).decode()
                    parts.append(f'<img alt="{name}" src="data:image/{name[-3:]};base64,{data}">')
        return "<br>".join(parts)

    def read(self) -> Run:
        """The run with what its files hold now."""
        vars(self).update({name: getattr(self, name) for name in ("config", "metrics", "evaluation")})
        return self

    @property
    def path(self) -> Path:
        """The run directory, or the policy file."""
        return self.directory

    @cached_property
    def config(self) -> Config:
        """The Config of the run."""
        return read_config(self.directory)

    @cached_property
    def metrics(self) -> list[Row]:
        """The rows of metrics.jsonl, one for each iteration."""
        return read(self.directory)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The closing evaluation; None where there is none."""
        return read_evaluation(self.directory)

    @property
    def steps(self) -> int:
        """Environment steps taken in training."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def seconds(self) -> float:
        """Seconds spent training."""
        return float(self.metrics[-1]["seconds"]) if self.metrics else 0.0

    def curve(self, name: str = "return_mean", over: str = "step") -> tuple[Numbers, Numbers]:
        """A metric against steps (or "seconds", "iteration"), where it has a value: `plt.plot(*run.curve())`."""
        import numpy as np

        for key in (name, over):
            if self.metrics and not any(key in row for row in self.metrics):
                raise UserError(f"there is no metric '{key}': there are {', '.join(self.metrics[-1])}")
        rows = [row for row in self.metrics if row.get(name) is not None and row.get(over) is not None]
        return np.array([row[over] for row in rows], float), np.array([row[name] for row in rows], float)

    @cached_property
    def policy(self) -> Policy:
        """The policy that the run stands for: `policy.act(obs)` gives the environment's own action."""
        from surefoot.runs.policy_file import load_policy

        return load_policy(self.directory, env=self.env, trust=self.trust)[0]

    def evaluate(
        self,
        episodes: int = 100,
        *,
        seed: int = 0,
        greedy: bool = False,
        sticky: float | None = None,
        ranks: int = 0,
        eval_envs: int = 0,
        eval_max_steps: int = 27_000,
    ) -> Evaluation:
        """Play episodes with fresh seeds; as `surefoot.evaluate`."""
        from surefoot.runs.evaluation_workers import evaluate_run

        how = episodes, seed, greedy, sticky, self.env, ranks, eval_envs, eval_max_steps
        return evaluate_run(self.directory, *how, trust=self.trust)

    def video(self, out: Path | str | None = None, **how: Any) -> Path:
        """Record an episode; as `surefoot.video`."""
        from surefoot.runs.video import video

        how = {"seed": 0, "greedy": False, "every": 0, "max_steps": 0} | how
        return video(self.directory, out, env=self.env, trust=self.trust, **how)
