"""A user's own VectorEnv: the transitions of the same environments one by one, in each autoreset mode that is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper

import makers
import surefoot
from helpers import TINY, first_batch, vector
from surefoot.algorithm.advantages import OverBatch, OverGames, OverMinibatch, Unnormalized, compute_advantages
from surefoot.algorithm.callback import Callback
from surefoot.algorithm.rewards import ScaledReward
from surefoot.algorithm.rollout import collect, collect_rollout, gather_if_small
from surefoot.algorithm.running_stats import update_running_stats
from surefoot.algorithm.schedules import AdaptiveRate
from surefoot.algorithm.state import initial
from surefoot.algorithm.update import batches, only_valid, update, update_metrics
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium, describe
from surefoot.envs.vector import EnvVector
from surefoot.errors import Fault, UserError
from surefoot.models.networks import MLP, NatureCNN
from surefoot.parallel.ranks import Alone
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


def test_the_spaces_of_one_may_be_announced_as_those_of_all() -> None:
    """As EnvPool does."""

    def make(num_envs: int) -> Any:
        env = VectorWrapper(
            SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * num_envs, autoreset_mode="SameStep")
        )
        env.observation_space, env.action_space = env.single_observation_space, env.single_action_space
        return env

    seen = []
    for env in (describe(make), vector("CartPole-v1")):
        played = env_vector(env)
        out = np.empty_like(played.obs)
        seen.append([(played.step([t % 2, 1, 0], out).reward, out.tolist()) for t in range(30)])
        played.close()
    assert seen[0] == seen[1]


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


@pytest.mark.parametrize("id", [*(f"ScriptedMixed-{e}-v0" for e in MIXED), "CartPole-v1", "Doors-v0"])
def test_next_step_gives_the_same_transitions_with_steps_between_that_are_none(id: str) -> None:
    """Gymnasium's default: the step after an end is a reset, whatever the action."""
    seen = []
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        played = env_vector(vector(id, mode))
        own: list[list[Any]] = [[], [], []]
        for _ in range(70):
            before, out = played.obs.copy(), np.empty_like(played.obs)
            done = [len(taken) for taken in own]
            actions = [(n * n + i) % played.envs[0].action_space.n for i, n in enumerate(done)]
            if played.envs[0].masks:
                actions = [int(np.argmax(row[-4:])) for row in before]
            step = played.step(actions, out)
            for i in set(range(3)) - set(step.skipped):
                after = step.final.get(i, out[i])
                own[i].append((before[i].tobytes(), actions[i], step.reward[i], step.terminated[i], after.tobytes()))
        seen.append((own, played.take_finished()))
        played.close()
    (mine, episodes), (theirs, all_episodes) = seen
    for a, b in zip(mine, theirs, strict=True):
        assert 20 < len(a) < len(b) or id == "CartPole-v1"
        assert a == b[: len(a)]
    for i in range(3):  # `at` counts steps, with those between
        own = [episode[:3] for episode in episodes if episode.env == i]
        assert own == [episode[:3] for episode in all_episodes if episode.env == i][: len(own)]


def test_a_rollout_knows_which_of_its_rows_are_no_transitions() -> None:
    played = env_vector(vector("ScriptedMixed-both-v0", AutoresetMode.NEXT_STEP))
    policy = MLP((8,)).build(played.observation_space, played.action_space)
    r = collect(policy, played, torch.rand(40, 3, *policy.noise_shape))
    assert r.valid is not None
    assert torch.equal(~r.valid[1:], r.ended[:-1] & r.valid[:-1])  # the row after each end, and no other
    assert r.valid[0].all()
    assert (~r.valid).any()
    assert (r.reward[~r.valid] == 0).all()
    assert collect(policy, env_vector(vector("ScriptedMixed-both-v0")), torch.rand(4, 3)).valid is None


@pytest.mark.parametrize("normalize", [OverBatch(), OverGames(), OverMinibatch(), Unnormalized()], ids=str)
@pytest.mark.parametrize("network", [MLP((8,), running=True), NatureCNN()], ids=["vectors", "pictures"])
def test_the_numbers_in_those_rows_change_nothing(normalize: Any, network: Any) -> None:
    """Whatever stands there, advantages, running statistics, minibatches and the gradient are the same bits."""
    id = "ScriptedMixed-both-v0" if isinstance(network, MLP) else "ShortPictures-v0"
    cfg = Config(
        env=vector(id, AutoresetMode.NEXT_STEP), network=network, num_envs=3, num_steps=(12,), minibatch_size=18,
        num_epochs=1, normalize=normalize, reward=ScaledReward(), learning_rate=AdaptiveRate(1e-3),
    )  # fmt: skip
    results = []
    for noise in (0.0, 50.0):
        state = initial(cfg, Alone())
        rollout = collect_rollout(cfg, state, Alone(), Callback())
        assert rollout is not None
        assert rollout.valid is not None
        wrong = ~rollout.valid
        assert 3 < int(wrong.sum()) < 18
        for name in ("obs", "preprocessed", "reward", "value", "next_value", "logp"):
            rows = getattr(rollout, name)
            rows[wrong] = (rows[wrong] + noise).to(rows.dtype)
        rollout, _ = gather_if_small(rollout, cfg, state, Alone())
        advantage, returns, _ = compute_advantages(rollout, cfg, state, Alone())
        seen = [advantage[rollout.valid], returns[rollout.valid]]
        updates = []
        for batch in batches(rollout, advantage, returns, cfg, state, Alone()):
            updates.append(update(state, batch, cfg, Alone()))
            seen += [state.gradient.clone(), torch.as_tensor(batch.logp_old)]
        assert sum(len(batch) for batch in seen[3::2]) == int(rollout.valid.sum())
        seen.append(update_metrics(updates, state, cfg, Alone()))
        assert torch.allclose(seen[-1], torch.cat([update_metrics([one], state, cfg, Alone()) for one in updates]))
        update_running_stats(state, rollout, cfg, Alone())
        assert state.return_moments[0] == int(rollout.valid.sum())
        seen.append(torch.tensor(state.return_moments))
        seen += [x.clone() for x in state.policy.state_dict().values()]
        results.append(seen)
        state.envs.close()
    same = torch.equal if isinstance(network, MLP) else partial(torch.allclose, rtol=1e-4, atol=1e-6)
    assert all(same(a, b) for a, b in zip(*results, strict=True))  # other windows of pictures are convolved together


def test_where_no_step_was_a_reset_there_is_no_mask() -> None:
    cfg = Config(
        env=vector("CartPole-v1", AutoresetMode.NEXT_STEP), network=MLP((8,)), num_envs=2, num_steps=(4,)
    )  # no episode ends so early
    state = initial(cfg, Alone())
    rollout = collect_rollout(cfg, state, Alone(), Callback())
    assert rollout is not None
    assert rollout.valid is not None
    assert rollout.valid_of_all_envs(Alone()) is None
    rollout.valid[0, 0] = False
    assert rollout.valid_of_all_envs(Alone()) is not None
    state.envs.close()


@pytest.mark.parametrize("length", [1, 2])
def test_ranks_with_unequal_numbers_of_rows_weigh_them_rightly(length: int) -> None:
    """The mean over the ranks of weight times mean is the mean over all valid rows of the minibatch."""
    rng = np.random.default_rng(0)
    draws, valid, x = rng.random((8, 6)), rng.random((8, 6)) < 0.6, rng.normal(size=(8, 6))
    steps, means = draws.argsort(0), np.zeros(2)
    for columns in (slice(0, 3), slice(3, 6)):
        order, ends, weights = only_valid(steps, columns, valid, 2, length)
        own = x[:, columns].ravel()
        assert valid[:, columns].ravel()[order].all()
        spans = zip([0, *ends], ends, weights, strict=False)
        means += [weight * own[order[i:j]].mean() / 2 for i, j, weight in spans]
    chunks = [np.take_along_axis(a, s, 0) for s in np.array_split(steps, 2) for a in (x, valid)]
    assert means == pytest.approx([chunks[0][chunks[1]].mean(), chunks[2][chunks[3]].mean()])


def test_a_row_that_is_the_only_one_of_all_ranks_counts_alone() -> None:
    steps, valid = np.array([[0, 1], [1, 0]]), np.array([[True, False], [False, False]])
    assert [only_valid(steps, slice(n, n + 1), valid, 1, 1)[2] for n in (0, 1)] == [[2.0], [0.0]]


def test_metrics_weigh_the_ranks_as_the_update_does(small: Config) -> None:
    small = replace(small, env=Gymnasium("CartPole-v1"), network=MLP((8,)))
    state, _, batch = first_batch(small)
    info = update(state, replace(batch, weight=2.0), small, Alone())
    double, plain = (update_metrics([one], state, small, Alone()) for one in (info, info._replace(weight=1.0)))
    assert torch.allclose(double[:, :-1], 2 * plain[:, :-1])
    assert float(plain[0, 3]) > 0
    state.envs.close()


@pytest.mark.parametrize("normalize", [OverBatch(), OverGames(), OverMinibatch(), Unnormalized()], ids=str)
def test_a_rollout_in_which_every_step_was_a_reset_teaches_nothing(normalize: Any, tmp_path: Path) -> None:
    cfg = Config(
        env=vector("ScriptedOnce-both-v0", AutoresetMode.NEXT_STEP), network=MLP((8,)), num_envs=2, num_steps=(1,),
        total_steps=16, minibatch_size=2, num_epochs=1, eval_episodes=0, normalize=normalize, reward=ScaledReward(),
    )  # fmt: skip
    rows = surefoot.train(cfg, run_dir=tmp_path / "a", quiet=True).metrics
    assert [row["grad_norm"] > 0 for row in rows] == [True, False] * 4


def four(num_envs: int = 4) -> Any:
    return gymnasium.make_vec("CartPole-v1", num_envs, "sync")


@pytest.mark.long
def test_a_function_without_arguments_says_how_many_it_makes(tmp_path: Path) -> None:
    cfg = find(lambda: four())
    assert (cfg.num_envs, cfg.num_steps, cfg.minibatch_size) == (4, (256,), 64)
    run = surefoot.train(lambda: four(), run_dir=tmp_path / "a", quiet=True, total_steps=2048, eval_episodes=2)
    assert run.evaluation is not None
    with pytest.raises(UserError, match="makes 4 environments where 8 are asked of it: train with 4 on one rank"):
        EnvVector(cfg.env, 1, range(8))


def test_a_registered_id_is_made_as_a_vector_by_its_keyword() -> None:
    cfg = find("CartPole-v1", kwargs=("vectorization_mode=vector_entry_point",))
    played = EnvVector(cfg.env, 1, range(3))
    assert type(played.vector.env).__name__ == "CartPoleVectorEnv"  # type: ignore[union-attr]
    played.reset_all()
    assert played.obs.shape == (3, 4)


class Resets(SyncVectorEnv):
    """Resets all, whatever it is asked for."""

    def reset(self, *, seed: Any = None, options: Any = None):
        return super().reset(seed=seed)


class Forgets(SyncVectorEnv):
    """Does not keep the last observation."""

    def step(self, actions: Any):
        *rest, info = super().step(actions)
        return *rest, {k: v for k, v in info.items() if k != "final_obs"}


class Columns(SyncVectorEnv):
    """Numbers in columns, no info but where an episode ends, and what ended as Gymnasium had it before 1.0."""

    def reset(self, **how: Any):
        return super().reset(**how)[0], None

    def step(self, actions: Any):
        obs, *numbers, info = super().step(actions)
        final = {"final_observation": info.get("final_obs"), "final_info": np.array([{}, None], object)}
        info = final if "final_obs" in info else None
        return obs, *(torch.as_tensor(x)[:, None] for x in numbers), info


def test_numbers_may_be_columns_and_finals_as_they_were_before_gymnasium_1() -> None:
    played, plain = (
        EnvVector(vector("CartPole-v1", "SameStep", kind), 5, range(2)) for kind in (Columns, SyncVectorEnv)
    )
    played.reset_all()
    plain.reset_all()
    for _ in range(30):
        a, b = (envs.step([1, 0], np.empty_like(envs.obs)) for envs in (played, plain))
        assert (a.reward, a.terminated, a.truncated) == (b.reward, b.terminated, b.truncated)
        assert {i: x.tolist() for i, x in a.final.items()} == {i: x.tolist() for i, x in b.final.items()}
    assert plain.finished


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
    assert all(env.closed for env in made)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (makers.make_vector(), "a VectorEnv cannot be copied: give the function that makes it"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(task: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        (Gymnasium(task).make() if isinstance(task, str) else find(task))
    assert "\n" not in str(error.value)


@pytest.mark.long
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
