"""A policy's episodes as a dataset of Minari's, read back by Minari."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import surefoot
from helpers import TINY
from surefoot.commands.cli import main

minari = pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))


@pytest.mark.parametrize("task", ["CartPole-v1", "worlds:Target-v0", "makers:Image"])
def test_it_holds_the_episodes_that_an_evaluation_plays(task: str, tmp_path: Path) -> None:
    """Each replays in the environment that the dataset recovers: same observations (pictures, too), same rewards."""
    run = surefoot.train(task, run_dir=tmp_path / "run", quiet=True, ranks=1, **TINY)
    made = surefoot.export_minari(run.directory, "own/played-v0", episodes=3, seed=5, eval_max_steps=40)
    played = run.evaluate(episodes=3, seed=5, eval_max_steps=40)
    read = list(minari.load_dataset("own/played-v0").iterate_episodes())
    assert [float(episode.rewards.sum()) for episode in read] == pytest.approx(played.scores)
    assert [len(episode) for episode in read] == played.lengths
    assert made.total_steps == sum(played.lengths)
    for episode, facts in zip(read, made.storage.get_episode_metadata(range(3)), strict=True):
        assert episode.terminations[-1] or episode.truncations[-1]
        env = surefoot.configure(task).env.make().env  # type: ignore[union-attr]
        obs, _ = env.reset(seed=facts["seed"])
        for t, action in enumerate(episode.actions):
            assert np.array_equal(np.asarray(obs), episode.observations[t])
            obs, reward, *_ = env.step(action)
            assert float(reward) == float(episode.rewards[t])


def test_from_the_command_line_and_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = surefoot.train("CartPole-v1", run_dir=tmp_path / "run", quiet=True, ranks=1, **TINY)
    export = ["export", str(run.directory), "--minari", "cartpole/surefoot-v0", "--episodes", "2", "--greedy"]
    assert main(export) == 0
    assert "cartpole/surefoot-v0: 2 episodes" in capsys.readouterr().out
    assert main(export) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*export[:3], "no id at all", *export[4:]]) == 2
    assert "Minari does not take the dataset 'no id at all'" in capsys.readouterr().err
    assert main(["export", str(run.directory)]) == 2
    assert "--minari DATASET" in capsys.readouterr().err
    lesson = surefoot.train(
        "pong-lesson",
        run_dir=tmp_path / "pong",
        ranks=1,
        quiet=True,
        num_envs=2,
        num_steps=(8,),
        total_iterations=1,
        eval_episodes=0,
    )
    assert main([*export[:1], str(lesson.directory), *export[2:]]) == 2
    assert "not played in one Gymnasium environment" in capsys.readouterr().err
