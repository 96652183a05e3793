"""A user's own VectorEnv: the transitions of the same environments one by one, in each autoreset mode that is known."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import makers
import surefoot
from helpers import TINY
from surefoot.algorithm.rollout import collect
from surefoot.commands.cli import main
from surefoot.envs.gym import Gymnasium, describe
from surefoot.envs.vector import EnvVector
from surefoot.envs.vector_env import VectorEnvAdapter
from surefoot.errors import Fault, UserError
from surefoot.models.networks import MLP
from surefoot.presets import find
from surefoot.rng import Purpose, integer
from worlds import KINDS

KNOWN = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
MIXED = ("terminated", "truncated", "both")


class Once(gymnasium.Wrapper):
    """Seeded once; its later episodes go on from there, as a VectorEnv's do."""

    first: int | None = None

    def reset(self, *, seed: int | None = None, options: Any = None):
        seed, self.first = self.first, None
        return super().reset(seed=seed)


def vector(id: str, mode: AutoresetMode | str = "SameStep", kind: Any = SyncVectorEnv) -> Gymnasium:
    def make(num_envs: int) -> Any:
        env = kind([lambda: gymnasium.make(id)] * num_envs, autoreset_mode=mode)
        env.spec = gymnasium.spec(id)
        return env

    return describe(make)


def env_vector(env: Gymnasium, indices: range = range(3)) -> EnvVector:
    found = EnvVector(env, 5, indices)
    if found.vector is None:
        for i, one in zip(indices, found.envs, strict=True):
            one.env.first = integer(5, Purpose.RESETS, 0, 0) + i  # type: ignore[attr-defined]
    found.reset_all()
    return found


@pytest.mark.parametrize("mode", KNOWN, ids=str)
@pytest.mark.parametrize(
    "id", [*(f"ScriptedMixed-{e}-v0" for e in MIXED), "CartPole-v1", *(f"{k.__name__}-v0" for k in KINDS)]
)
def test_it_is_the_same_as_its_environments_one_by_one(id: str, mode: AutoresetMode) -> None:
    """Observations, actions, rewards, endings, final observations, values and scores of 60 decisions, bit for bit."""
    rollouts, finals = [], []
    for env in (vector(id, mode), describe(lambda: Once(gymnasium.make(id)))):
        played = env_vector(env)
        step, found = played.step, []

        def stepped(*args: Any, step: Any = step, found: list[Any] = found) -> Any:
            found.append(step(*args))
            return found[-1]

        played.step = stepped  # type: ignore[method-assign]
        torch.manual_seed(0)
        policy = MLP((8,)).build(played.observation_space, played.action_space)
        noise = torch.rand(60, 3, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
        rollouts.append(collect(policy, played, noise))
        finals.append([{i: final.tobytes() for i, final in steps.final.items()} for steps in found])
        played.close()
    mine, theirs = rollouts
    for name in ("obs", "action", "logp", "params", "reward", "terminated", "truncated", "value", "next_value"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert mine.episodes == theirs.episodes
    assert finals[0] == finals[1]
    assert mine.episodes


@pytest.mark.parametrize("kind", [partial(SyncVectorEnv, copy=False), AsyncVectorEnv], ids=["reused", "processes"])
@pytest.mark.parametrize("mode", KNOWN, ids=str)
def test_final_observations_are_kept_whatever_is_written_over_them(mode: AutoresetMode, kind: Any) -> None:
    runs = []
    for env in (vector("ScriptedMixed-truncated-v0", mode, kind), vector("ScriptedMixed-truncated-v0")):
        played, found = env_vector(env, range(2)), []
        for t in range(12):
            out = np.empty_like(played.obs)
            steps = played.step([t % 2, 1], out)
            found.append((out.tolist(), steps.reward, {i: final.tolist() for i, final in steps.final.items()}))
        played.close()
        runs.append(found)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("mode", KNOWN, ids=str)
def test_the_games_do_not_know_how_many_ranks_there_are(mode: AutoresetMode) -> None:
    env = vector("CartPole-v1", mode)
    whole, *halves = env_vector(env, range(4)), env_vector(env, range(2)), env_vector(env, range(2, 4))
    for t in range(80):
        actions = [t % 2, 1, 0, (t + 1) % 2]
        out, parts = np.empty_like(whole.obs), [np.empty_like(half.obs) for half in halves]
        whole.step(actions, out)
        for half, part, own in zip(halves, parts, (actions[:2], actions[2:]), strict=True):
            half.step(own, part)
        assert np.array_equal(out, np.concatenate(parts))
    finished = [episode for half in halves for episode in half.take_finished()]
    assert sorted(whole.take_finished()) == sorted(finished)
    assert len({tuple(row) for row in whole.obs}) == 4


def test_another_seed_is_another_run_and_a_new_start_is_not_the_old_one() -> None:
    env = vector("CartPole-v1")
    first = [EnvVector(env, seed, range(2)) for seed in (1, 1, 2)]
    for played in first:
        played.reset_all()
    a, b, c = (played.obs.copy() for played in first)
    assert np.array_equal(a, b)
    assert not np.isin(a, c).any()
    assert first[0].restore(first[1].snapshot()) == [0, 1]  # an episode of the user's cannot be gone back to
    assert not np.isin(first[0].obs, a).any()


class Resets(SyncVectorEnv):
    """Resets all, whatever it is asked for."""

    def reset(self, *, seed: Any = None, options: Any = None):
        return super().reset(seed=seed)


class Forgets(SyncVectorEnv):
    """Does not keep the last observation."""

    def step(self, actions: Any):
        *rest, info = super().step(actions)
        return *rest, {k: v for k, v in info.items() if k != "final_obs"}


@pytest.mark.parametrize(
    ("kind", "mode", "id", "says"),
    [
        (Resets, "Disabled", "CartPole-v1", "changes environments that are not in it"),
        (Forgets, "SameStep", "CartPole-v1", "KeyError: 'final_obs'"),
        (SyncVectorEnv, "SameStep", "Crashing-v0", "connection lost"),
    ],
)
def test_one_that_breaks_its_promise_is_a_fault(kind: Any, mode: str, id: str, says: str) -> None:
    played = EnvVector(vector(id, mode, kind), 5, range(2, 4))
    played.reset_all()

    def play() -> None:
        for _ in range(60):
            played.step([1, 0], np.empty_like(played.obs))

    with pytest.raises(Fault, match=rf"the VectorEnv of environments 2 to 3 \(step \d+\) failed: .*{says}"):
        play()


def test_a_number_that_is_none_is_a_fault_of_its_environment() -> None:
    played = EnvVector(vector("Target-v0"), 5, range(2))
    played.reset_all()
    with pytest.raises(Fault, match=r"environment 1 \(step 1\) failed: .*(nan|finite)"):
        played.step(np.float32([[0, 0], [np.nan, 0]]), played.obs.copy())


def test_one_that_is_refused_is_closed() -> None:
    made = []

    def make(num_envs: int) -> Any:
        made.append(makers.make_vector(num_envs))
        return made[-1]

    with pytest.raises(UserError, match="env_restarts is 3; allowed is 0 with a VectorEnv"):
        EnvVector(describe(make), 5, range(2), restarts=3)
    made[-1].metadata["autoreset_mode"] = None
    with pytest.raises(UserError, match="has None as metadata"):
        VectorEnvAdapter(made[-1], "it", 2)
    assert all(env.closed for env in made)


def undeclared(num_envs: int) -> Any:
    env = gymnasium.make_vec("CartPole-v1", num_envs, "sync")
    env.metadata = {}
    return env


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (
            vector("CartPole-v1", AutoresetMode.NEXT_STEP).id,
            "NEXT_STEP as metadata.*make it with SAME_STEP or DISABLED",
        ),
        (undeclared, "has None as metadata.*make it with SAME_STEP or DISABLED"),
        (lambda num_envs: makers.make_vector(2 * num_envs), "makes 2 environments where num_envs is 1"),
        (makers.make_vector, "'makers:make_vector' is a VectorEnv: give a function of num_envs"),
        (makers.make_vector(), "'SyncVectorEnv' is a VectorEnv: give a function of num_envs"),
        (
            lambda num_envs: makers.Catch() if num_envs else None,
            "gives Catch, which is no gymnasium.vector.VectorEnv, though it takes num_envs",
        ),
        (vector("Blackjack-v1").id, "cannot be learned: observations are Tuple"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(task: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        (Gymnasium(task).make() if isinstance(task, str) else find(task))
    assert "\n" not in str(error.value)


def test_it_is_trained_gone_on_with_evaluated_and_filmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "a")
    assert (
        surefoot.train("makers:make_pictures", run_dir=run, ranks=1, network=MLP((8,)), **TINY).evaluation is not None
    )
    assert (tmp_path / "a" / "game.gif").exists()
    capsys.readouterr()
    assert main(["resume", run, "--total-steps", "96", "--quiet"]) == 0
    assert "environments [0, 1] did not replay to where they were and begin new episodes" in capsys.readouterr().err
    scores = surefoot.evaluate(run, episodes=4).scores
    assert scores == surefoot.evaluate(run, episodes=4).scores
    assert surefoot.evaluate(run, episodes=4, env=Gymnasium("makers:Image")).scores == scores


def test_a_function_of_this_program_alone_is_played_on_one_rank(tmp_path: Path) -> None:
    own = partial(gymnasium.make_vec, "Catch-v0", vector_kwargs={"autoreset_mode": "SameStep"})
    weights = []
    for name in "ab":
        run = surefoot.train(own, run_dir=tmp_path / name, quiet=True, **TINY)
        weights.append(torch.cat([p.flatten() for p in surefoot.load_policy(run.path)[0].parameters()]))
    assert torch.equal(*weights)
    with pytest.raises(UserError, match="in this process alone"):
        surefoot.train(own, run_dir=tmp_path / "no", ranks=2, quiet=True, **TINY)
