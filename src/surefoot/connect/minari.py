"""Episodes of a policy as a dataset of Minari's, for offline reinforcement learning.

Minari's own `DataCollector` is not taken: it needs JAX.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

import surefoot
from surefoot.envs.gym import Gymnasium
from surefoot.envs.gym_env import GymnasiumEnv
from surefoot.envs.interface import EnvSpec, make
from surefoot.errors import UserError
from surefoot.runs.evaluation import evaluate
from surefoot.runs.policy_file import load_policy

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector.episode_buffer import EpisodeBuffer


def export_minari(
    run: Path | str,
    dataset: str,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = False,
    env: EnvSpec | None = None,
    trust: bool = False,
    eval_max_steps: int = 27_000,
) -> MinariDataset:
    """Play episodes, the ones that `evaluate` plays with this seed, and save them where Minari keeps its datasets.

    Observations and actions are the environment's own, pictures without loss; `dataset`: an id of Minari's, such as
    cartpole/surefoot-v0. Raises UserError for an id that Minari refuses or has already, and for a VectorEnv or an
    emulator of surefoot's own, which are no single Gymnasium environment.
    """
    import minari

    if episodes < 1:
        raise UserError(f"episodes is {episodes}; allowed is at least 1")
    policy, trained_in, facts = load_policy(run, env=env, trust=trust)
    spec = env or trained_in
    first: Any = make(spec)
    if not isinstance(spec, Gymnasium) or not first.alone:
        first.close()
        raise UserError(f"'{facts['task']}' is not played in one Gymnasium environment, which Minari's datasets need")
    recorder = Recorder(first.env)
    description = f"{facts['task']} after {facts['steps']:,} steps, {'greedy' if greedy else 'sampled'} actions"
    made: MinariDataset | None = None
    try:
        for episode in range(episodes):
            game = Recorded(spec, recorder, first.source)
            evaluate(policy, game, [episode], seed, greedy, max_steps=eval_max_steps)  # type: ignore[arg-type]
            if made is None:
                made = create(dataset, recorder, description)
            else:
                made.update_dataset_from_buffer([recorder.buffer()])
    except BaseException:
        if made is not None:
            minari.delete_dataset(dataset)
        raise
    finally:
        first.close()
    assert made is not None
    return made


def create(dataset: str, recorder: Recorder, description: str) -> MinariDataset:
    """The dataset with its first episode. Raises UserError where Minari does not take it."""
    import minari

    env = recorder.env.spec
    try:
        if env is not None:
            env.to_json()
    except (ValueError, TypeError):  # made by a function, which no file can name
        env = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an author, whom nobody has named
        try:
            return minari.create_dataset_from_buffers(
                dataset,
                [recorder.buffer()],
                env,
                algorithm_name=f"surefoot {surefoot.__version__}",
                description=description,
                observation_space=recorder.observation_space,
                action_space=recorder.action_space,
                jpeg_encoding=False,
            )
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"Minari does not take the dataset '{dataset}': {error}") from error


class Recorded(GymnasiumEnv):
    """An environment in its recorder, both as the description that `evaluate` takes and as what it plays."""

    def make(self, render: bool = False) -> Recorded:
        """Itself."""
        return self

    def close(self) -> None:
        """Nothing: the next episode is played in it, too."""


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the present episode: observations and actions as they come from and go to the environment."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next one."""
        obs, info = super().reset(seed=seed, options=options)
        self.seed, self.steps, self.observations = seed, list[Any](), [copied(obs)]
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step, which is kept."""
        own_copy = copied(action)
        obs, reward, terminated, truncated, info = super().step(action)
        self.observations.append(copied(obs))
        self.steps.append((own_copy, float(reward), bool(terminated), bool(truncated)))
        return obs, reward, terminated, truncated, info

    def buffer(self) -> EpisodeBuffer:
        """The episode as Minari takes it; where it has not ended it is cut, and counts as truncated."""
        from minari.data_collector.episode_buffer import EpisodeBuffer

        actions, rewards, terminations, truncations = map(list, zip(*self.steps, strict=True))
        truncations[-1] = truncations[-1] or not terminations[-1]
        obs, acts = columns(self.observations), columns(actions)
        return EpisodeBuffer(None, self.seed, None, obs, acts, rewards, terminations, truncations)


def copied(x: Any) -> Any:
    """What an environment may change later, as it is now."""
    if isinstance(x, dict):
        return {key: copied(part) for key, part in x.items()}
    return tuple(map(copied, x)) if isinstance(x, tuple) else x.copy() if hasattr(x, "copy") else x


def columns(rows: list[Any]) -> Any:
    """A list of Dicts or Tuples as a Dict or Tuple of lists."""
    if isinstance(rows[0], dict):
        return {key: columns([row[key] for row in rows]) for key in rows[0]}
    if isinstance(rows[0], tuple):
        return tuple(columns([row[i] for row in rows]) for i in range(len(rows[0])))
    return rows
