"""Simulators of which there is one at a time, heavy ones, and tasks without an end: all are evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import surefoot
from helpers import rows
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium, describe
from surefoot.envs.vector import EnvVector
from surefoot.errors import Fault
from surefoot.models.networks import MLP
from surefoot.runs.evaluation import evaluate
from surefoot.runs.policy_file import policy_bytes

TINY: dict[str, Any] = {"num_envs": 1, "num_steps": (16,), "minibatch_size": 8, "num_epochs": 1, "network": MLP((4,))}


class Robot(gymnasium.Env):
    """There is one, which is taken by its constructor or by its first reset. Pays for its action; eight steps."""

    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
    taken_by = "__init__"
    length: ClassVar[float] = 8
    taken: ClassVar[list[Robot]] = []
    made: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.take("__init__")
        Robot.made.append(len(Robot.taken))

    def take(self, where: str) -> None:
        if where == self.taken_by and self not in Robot.taken:
            if Robot.taken:
                raise ConnectionError("port 11345 is already in use")
            Robot.taken.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.take("reset")
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any):
        assert self in Robot.taken
        self.t += 1
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return obs, float(action[0]), self.t == self.length, False, {}

    def close(self) -> None:
        if self in Robot.taken:
            Robot.taken.remove(self)


@pytest.fixture(autouse=True)
def nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Robot, "taken", [])
    monkeypatch.setattr(Robot, "made", [])


@pytest.mark.parametrize("taken_by", ["__init__", "reset"])
def test_what_there_is_once_is_trained_evaluated_on_the_way_and_at_the_end(
    taken_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Robot, "taken_by", taken_by)
    often = {"eval_every": 16, "eval_games": 2, "eval_episodes": 3}
    run = surefoot.train(Robot, run_dir=tmp_path / "run", quiet=True, total_steps=64, **often, **TINY)
    assert run.evaluation is not None
    assert run.evaluation.lengths == [8] * 3
    assert [type(row["evaluation"]) for row in rows(run.path)] == [float] * 4
    said = capsys.readouterr().err
    assert "training's environments are closed for the evaluation" in said
    assert "given up" not in said
    assert Robot.taken == []  # closed at the end
    again = surefoot.evaluate(run.path, episodes=3, seed=1, env=Robot, eval_envs=3)
    assert [again.scores, again.lengths] == [run.evaluation.scores, run.evaluation.lengths]
    assert "1 at a time are evaluated, since one more cannot be had" in capsys.readouterr().err


def test_training_goes_on_where_it_was_after_an_evaluation_that_closed_its_environments(tmp_path: Path) -> None:
    how: dict[str, Any] = (
        {"total_steps": 60, "eval_episodes": 0, "quiet": True} | TINY | {"num_steps": (12,), "minibatch_size": 12}
    )
    for often in (0, 12):
        surefoot.train(Robot, run_dir=tmp_path / str(often), eval_every=often, eval_games=1, **how)
    kept = [[{k: v for k, v in row.items() if k != "evaluation"} for row in rows(tmp_path / str(n))] for n in (0, 12)]
    assert kept[0] == kept[1]


@pytest.mark.long
def test_environments_that_cannot_be_made_again_end_the_run_which_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EnvVector, "open", opened := _once_only(EnvVector.open))
    with pytest.raises(Fault, match="closed for an evaluation and cannot be made again; what was saved goes on with"):
        surefoot.train(Robot, run_dir=tmp_path / "run", quiet=True, total_steps=64, eval_every=32, **TINY)
    assert opened.calls == 2
    monkeypatch.undo()
    monkeypatch.setattr(Robot, "taken", [])
    run = surefoot.train(Robot, run_dir=tmp_path / "run", quiet=True, total_steps=64, eval_every=32, **TINY)
    assert run.steps == 64


def _once_only(method: Any) -> Any:
    def again(*args: Any) -> None:
        again.calls += 1  # type: ignore[attr-defined]
        if again.calls > 1:  # type: ignore[attr-defined]
            raise Fault("the licence server does not answer")
        method(*args)

    again.calls = 0  # type: ignore[attr-defined]
    return again


@pytest.mark.parametrize("fields", [{}, {"eval_envs": 1}, {"eval_envs": 3}])
def test_an_evaluation_has_as_many_environments_as_training_or_as_it_is_told(
    fields: dict[str, int], tmp_path: Path
) -> None:
    """And never beside those of training, where these are needed no more."""
    living, most = list[Any](), [0]

    class Heavy(Robot):
        taken_by = "nothing"

        def __init__(self) -> None:
            living.append(self)
            most.append(len(living))

        def step(self, action: Any):
            self.t += 1
            return np.zeros(2, np.float32), 1.0, self.t == 8, False, {}

        def close(self) -> None:
            living.remove(self)

    how = TINY | {"num_envs": 2, "minibatch_size": 16}
    run = surefoot.train(Heavy, run_dir=tmp_path / "run", quiet=True, total_steps=32, eval_episodes=7, **fields, **how)
    assert run.evaluation is not None
    assert run.evaluation.lengths == [8] * 7
    assert max(most) == max(2, fields.get("eval_envs", 2))
    assert not living
    del most[1:]
    surefoot.evaluate(run.path, episodes=7, env=Heavy, **fields)
    assert max(most) == fields.get("eval_envs", 2)


def test_the_number_of_environments_changes_no_score() -> None:
    env = Gymnasium("CartPole-v1")
    game = env.make()
    policy = MLP((4,)).build(game.observation_space, game.action_space).double()
    one, four = (evaluate(policy, env, range(9), parallel=n, max_steps=15) for n in (1, 4))
    assert (one.scores, one.cut) == (four.scores, four.cut)
    assert max(one.lengths) == 15
    assert 0 < one.cut < 9
    assert one.cut == sum(n > 15 for n in evaluate(policy, env, range(9)).lengths)


# Without an end


class Endless(Robot):
    """Goes on for ever."""

    length, taken_by = float("inf"), "nothing"

    def step(self, action: Any):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == self.length, False, {}


def test_episodes_that_do_not_end_are_cut_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = surefoot.train(
        Endless, run_dir=tmp_path / "run", quiet=True, total_steps=32, eval_episodes=3, eval_max_steps=50, **TINY
    )
    assert run.evaluation is not None
    assert (run.evaluation.lengths, run.evaluation.scores, run.evaluation.cut) == ([50] * 3, [50.0] * 3, 3)
    assert json.loads((run.path / "evaluation.json").read_text())["cut"] == 3
    report = (run.path / "report.md").read_text()
    assert "| not ended | 3 of 3 episodes, cut after 50 steps (--eval-max-steps)" in report
    command = ["evaluate", str(run.path), "--episodes", "2", "--eval-max-steps", "20"]
    assert main(command) == 0
    assert "not ended           2 of 2 episodes, cut after 20 steps (--eval-max-steps)" in capsys.readouterr().out


def test_an_episode_that_ends_at_the_last_step_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endless, "length", 20)
    env = describe(lambda: Endless())
    game = env.make()
    policy = MLP((4,)).build(game.observation_space, game.action_space)
    found = evaluate(policy, env, range(2), max_steps=20)
    assert (found.lengths, found.cut) == ([20, 20], 0)


def test_an_evaluation_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    run = surefoot.train(
        Endless, run_dir=tmp_path / "run", quiet=True, total_steps=16, eval_episodes=1, eval_max_steps=5, **TINY
    )
    facts = json.loads((run.path / "evaluation.json").read_text())
    del facts["cut"]
    (run.path / "evaluation.json").write_text(json.dumps(facts))
    found = surefoot.load(run.path).evaluation
    assert found is not None
    assert found.cut == 0


@pytest.mark.parametrize(
    ("reward", "obs", "says"),
    [(np.nan, 0, "reward is nan"), (np.inf, 0, "reward is inf"), (1.0, np.nan, "observation")],
)
def test_numbers_that_are_not_finite_are_no_score(reward: float, obs: float, says: str, tmp_path: Path) -> None:
    class Broken(Endless):
        gives = 0.0, 1.0

        def step(self, action: Any):
            self.t += 1
            return np.full(2, self.gives[0], np.float32), self.gives[1], self.t == 5, False, {}

    env = describe(lambda: Broken())
    game = env.make()
    policy = MLP((4,)).build(game.observation_space, game.action_space)
    file = tmp_path / "policy"
    file.write_bytes(policy_bytes(policy, Config(env=env, network=MLP((4,))), 0))
    Broken.gives = obs, reward
    with pytest.raises(Fault, match=f"evaluation episode 0 .*{says}"):
        surefoot.evaluate(file, episodes=1, trust=True)


@pytest.mark.parametrize("where", ["reset", "step"])
@pytest.mark.parametrize("restarts", [0, 50])
def test_an_environment_that_fails_in_the_closing_evaluation_is_made_again_as_often_as_allowed(
    where: str, restarts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = {"reset": 0, "step": 0}

    class Flaky(Endless):
        fails = False

        def may_fail(self, what: str) -> None:
            calls[what] += 1
            if self.fails and what == where and calls[what] % 5 in (3, 4):
                raise TimeoutError("the simulator does not answer")

        def reset(self, *, seed: int | None = None, options: Any = None):
            self.may_fail("reset")
            return super().reset(seed=seed)

        def step(self, action: Any):
            self.may_fail("step")
            self.t += 1
            return np.zeros(2, np.float32), 1.0, self.t == 3, False, {}

    env = describe(lambda: Flaky())
    game = env.make()
    policy = MLP((4,)).build(game.observation_space, game.action_space)
    whole = evaluate(policy, env, range(6), parallel=1)
    Flaky.fails = True
    calls.update(reset=0, step=0)
    if not restarts:
        with pytest.raises(Fault, match="the simulator does not answer"):
            evaluate(policy, env, range(6), parallel=1)
        return
    found = evaluate(policy, env, range(6), parallel=1, restarts=restarts)
    assert (found.scores, found.lengths) == (whole.scores, whole.lengths)
    failed = sum(n % 5 in (3, 4) for n in range(1, calls[where] + 1))
    assert capsys.readouterr().err.count("the episode begins anew") == failed > 2
