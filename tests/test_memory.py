"""A policy with a memory: sequences without padding, reset where episodes end, the same in acting and learning."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

import surefoot
from helpers import Until, assert_same_run, interrupt_at, vector
from surefoot.algorithm.callback import Callback
from surefoot.algorithm.rollout import Rollout, collect_rollout, gather_if_small
from surefoot.algorithm.schedules import AdaptiveRate, FixedRate
from surefoot.algorithm.state import State, flat_parameters, initial
from surefoot.algorithm.train import finish_iteration, train
from surefoot.algorithm.update import batches, loss_backward
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.errors import UserError
from surefoot.lesson.player import Player
from surefoot.models.layers import Patches
from surefoot.models.memory import GRU, LSTM, NoMemory, Unit
from surefoot.models.networks import MLP, SmallCNN
from surefoot.models.policy import Policy
from surefoot.models.recurrent import Recurrent, Sequences
from surefoot.parallel.ranks import Alone
from surefoot.presets import find
from surefoot.runs import worker
from surefoot.runs.checkpoint import restore, save
from surefoot.runs.evaluation import evaluate

IMAGES = SmallCNN((4, 8), kernel=(2, 2), stride=(2, 1), hidden=16)
BOTH = pytest.mark.parametrize("memory", [GRU(6), LSTM(6)], ids=["gru", "lstm"])
TASKS = {
    "vectors": (Gymnasium("worlds:Uneven-v0"), MLP((8,), running=True)),
    "masks": (Gymnasium("worlds:Doors-v0"), MLP((8,))),
    "images": (Gymnasium("worlds:Lamps-v0"), SmallCNN((4, 8), kernel=(4, 2), stride=(4, 1), hidden=16)),
    "dicts": (Gymnasium("worlds:Nested-v0"), IMAGES),
    "next step": (vector("ScriptedMixed-both-v0", AutoresetMode.NEXT_STEP), MLP((8,))),
}


@pytest.fixture
def cfg(small: Config) -> Config:
    """Episodes of 1 to 7 steps that are truncated; 3 environments, 12 steps, 2 minibatches."""
    env, network = TASKS["vectors"]
    return replace(
        small, env=env, network=network, memory=GRU(6), num_envs=3, num_steps=(12,), minibatch_size=18, total_steps=180
    )


def begin(cfg: Config, double: bool = True) -> State:
    """A new run whose memory says something from the first step on, and whose actions depend on it, in float64."""
    state = initial(cfg, Alone())
    state.policy.actor.weight.data *= 100
    if state.policy.memory is not None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            torch.nn.init.normal_(state.policy.memory.add.weight)
    if double:
        state.policy.double()
        state.memory = state.policy.no_memory(cfg.num_envs)
    vars(state).update(flat_parameters(state.policy, cfg, Alone()))
    return state


def rollouts(cfg: Config, state: State, count: int = 2) -> list[Rollout]:
    """The next rollouts, of a policy that does not learn."""
    found = []
    for _ in range(count):
        rollout = collect_rollout(cfg, state, Alone(), Callback())
        assert rollout is not None
        found.append(gather_if_small(rollout, cfg, state, Alone())[0])
        finish_iteration(state, rollout, cfg, Alone())
    return found


def one_by_one(memory: Recurrent, features: Tensor, sequences: Sequences) -> Tensor:
    rows = iter(features)
    found = []
    for length, remembered in zip(sequences.lengths, sequences.memory, strict=True):
        remembered = remembered[None]
        for _ in range(length):
            row, remembered = memory.step(next(rows)[None], remembered)
            found.append(row)
    return torch.cat(found)


@BOTH
def test_whole_sequences_are_what_single_steps_are_and_have_no_padding(cfg: Config, memory: Unit) -> None:
    """Outputs and all gradients, for sequences of any lengths; a sequence alone is the same as among others."""
    unit = begin(replace(cfg, network=MLP((3,)), memory=memory)).policy.memory
    assert unit is not None
    torch.manual_seed(0)
    lengths = np.array([3, 1, 7, 7, 2, 5])
    x = torch.randn(25, 6, dtype=torch.float64, requires_grad=True)
    sequences, weight = Sequences(lengths, torch.randn(6, unit.width, dtype=torch.float64)), torch.randn_like(x)
    results = []
    for way in (unit.over, partial(one_by_one, unit)):
        y = way(x, sequences)
        results.append([y, *torch.autograd.grad((weight * y).sum(), [x, *unit.parameters()])])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*results, strict=True))
    parts = [unit.over(x[rows], part) for rows, part in sequences.split(1)]
    assert [len(part) for part in parts] == lengths.tolist()
    assert torch.allclose(torch.cat(parts), results[0][0], atol=1e-12)
    assert [rows.stop for rows, _ in sequences.split(8)] == [4, 11, 18, 25]


@pytest.mark.parametrize("task", TASKS)
@BOTH
def test_learning_sees_what_acting_saw(cfg: Config, memory: Unit, task: str) -> None:
    """In the first minibatches all ratios are 1, values and those of true successors are the rollout's, in float32."""
    env, network = TASKS[task]
    cfg = replace(cfg, env=env, network=network, memory=memory)
    state = begin(cfg, double=False)
    rollout = rollouts(cfg, state, 3)[2]
    assert rollout.memory is not None
    assert rollout.memory[0].abs().max() > 0.01  # something is remembered of the rollout before
    count = 0
    for batch in batches(rollout, rollout.value, rollout.value, replace(cfg, num_epochs=1), state, Alone()):
        for part, _ in batch.microbatches(7):
            with torch.no_grad():
                dist, value = state.policy.evaluate(part.obs, part.sequences)
            assert (dist.log_prob(part.action) - part.logp_old).abs().max() < 1e-5
            assert torch.allclose(value, part.value_old, atol=1e-5)
            count += len(part.obs)
    assert count == (36 if rollout.valid is None else int(rollout.valid.sum()))
    assert isinstance(state.policy.preprocess, Patches) == (rollout.windows is not None)
    again = rollout.with_values_of(state.policy)
    valid = slice(None) if rollout.valid is None else rollout.valid
    assert torch.allclose(again.value[valid], rollout.value[valid], atol=1e-5)
    assert torch.allclose(again.next_value[valid], rollout.next_value[valid], atol=1e-5)
    assert rollout.next_value.abs().max() > 0.01
    state.envs.close()


@BOTH
def test_the_value_of_a_true_successor_is_that_of_the_memory_of_that_moment(cfg: Config, memory: Unit) -> None:
    """Every episode is played again step by step, its last observation included."""
    state = begin(replace(cfg, memory=memory))
    rollout = rollouts(cfg, state)[0]
    following = {(int(t), int(n)): x for t, n, x in zip(*rollout.bootstrap_index, rollout.bootstrap_obs, strict=True)}
    for n in range(3):
        remembered = None
        for t in range(12):
            with torch.no_grad():
                _, value, remembered = state.policy.step(rollout.preprocessed[t, n][None], remembered)
                assert torch.allclose(value, rollout.value[t, n], atol=1e-12)
                after = following.get((t, n), rollout.preprocessed[min(t + 1, 11), n])
                assert torch.allclose(
                    state.policy.step(after[None], remembered)[1], rollout.next_value[t, n], atol=1e-12
                )
            if rollout.ended[t, n]:
                remembered = None
    assert len(following) > 3


@BOTH
def test_what_came_before_an_ending_changes_nothing_after_it(cfg: Config, memory: Unit) -> None:
    state = begin(replace(cfg, memory=memory))
    rollout = rollouts(cfg, state)[1]
    before = rollout.with_values_of(state.policy).value
    t, n = rollout.ended[:8].nonzero()[-1].tolist()
    first = t
    while first and not rollout.ended[first - 1, n]:
        first -= 1
    rollout.preprocessed[first, n] += 1
    change = (rollout.with_values_of(state.policy).value - before).abs()
    assert (change[first : t + 1, n] > 1e-6).all()  # what follows in its episode
    change[first : t + 1, n] = 0
    assert (change == 0).all()


def test_a_rollout_begins_with_what_the_last_one_remembered_unless_its_episode_ended(cfg: Config) -> None:
    state = begin(cfg)
    first, second = rollouts(cfg, state)
    assert first.memory is not None
    assert second.memory is not None
    assert torch.equal(first.memory[-1], second.memory[0])
    assert torch.equal((first.memory[1:] == 0).all(2), first.ended)
    assert 0 < int(first.ended[-1].sum()) < 3
    n = int(second.memory[-1].abs().sum(1).argmax())
    assert second.memory[-1, n].abs().max() > 0.01
    state.envs.length[n] = 0  # as where an environment was made anew in between
    assert (rollouts(cfg, state, 1)[0].memory[0, n] == 0).all()  # type: ignore[index]


def test_an_environment_that_crashed_begins_without_a_memory(cfg: Config) -> None:
    state = begin(replace(cfg, env=Gymnasium("worlds:Crashing-v0"), env_restarts=99))
    rollout = rollouts(cfg, state, 1)[0]
    assert rollout.memory is not None
    assert 1 <= int(rollout.truncated.sum()) <= 3
    assert torch.equal((rollout.memory[1:] == 0).all(2)[:-1], rollout.truncated[:-1])
    again = rollout.with_values_of(state.policy)
    assert torch.allclose(again.next_value, rollout.next_value, atol=1e-12)


@BOTH
def test_a_memory_that_says_nothing_leaves_games_and_gradient_as_they_are(cfg: Config, memory: Unit) -> None:
    """W = 0, as at the start: the feed-forward policy's weights, games and gradient."""
    whole = replace(cfg, minibatch_size=0)
    seen = []
    for kind in (memory, NoMemory()):
        state = initial(replace(whole, memory=kind), Alone())
        state.policy.double()
        state.memory = state.policy.no_memory(3)
        vars(state).update(flat_parameters(state.policy, whole, Alone()), mlp=None)
        rollout = rollouts(whole, state, 1)[0]
        batch = next(batches(rollout, rollout.reward, rollout.reward, replace(whole, memory=kind), state, Alone()))
        loss_backward(state, whole, batch, 1.0, False)
        named = state.policy.named_parameters()
        seen.append((rollout, {name: p.grad.clone() for name, p in named if p.grad is not None}))
    (mine, gradient), (theirs, plain) = seen
    assert torch.equal(mine.obs, theirs.obs)
    assert all(torch.allclose(gradient[name], x, atol=1e-12) for name, x in plain.items())
    assert gradient["memory.add.weight"].abs().max() > 1e-3  # and it learns to say something


def test_minibatches_are_whole_sequences_of_every_environment_and_every_row_is_learned_from_once(cfg: Config) -> None:
    cfg = replace(cfg, memory=GRU(6, length=3))
    state = begin(cfg)
    rollout = rollouts(cfg, state, 1)[0]
    number = torch.arange(36.0, dtype=torch.float64).view(12, 3)
    epochs: Any = [[], []]
    for i, batch in enumerate(batches(rollout, number, number, cfg, state, Alone())):
        epochs[i // 2] += batch.advantage.tolist()
        rows = batch.advantage.view(3 * 2, 3)  # so many chunks of three steps
        assert torch.equal(rows[:, 1:], rows[:, :-1] + 3)
        assert (rows[:, 0].long() // 3 % 3 == 0).all()
        assert torch.bincount(rows[:, 0].long() % 3).tolist() == [2, 2, 2]
        assert batch.sequences is not None
        first = batch.sequences.lengths.cumsum() - batch.sequences.lengths
        t, n = batch.advantage[first].long() // 3, batch.advantage[first].long() % 3
        assert rollout.memory is not None
        ended = rollout.ended.roll(1, 0).flatten()[batch.advantage.long()]  # the row before
        assert first.tolist() == [i for i, over in enumerate(ended) if over or i % 3 == 0]
        assert torch.equal(batch.sequences.memory, rollout.memory[t, n])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(36))
    assert epochs[0] != epochs[1]


@BOTH
@pytest.mark.usefixtures("signals_interrupt")
def test_a_stopped_and_resumed_run_has_the_same_bits(
    cfg: Config, memory: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(cfg, memory=memory, learning_rate=AdaptiveRate(1e-2), recompute=True)
    surefoot.train(cfg, run_dir=tmp_path / "whole", ranks=1, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "Reporter", interrupt_at(2))
        with pytest.raises(KeyboardInterrupt):
            surefoot.train(cfg, run_dir=tmp_path / "parts", ranks=1, quiet=True)
    surefoot.resume(tmp_path / "parts", ranks=1, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_holds_the_memory(cfg: Config, tmp_path: Path) -> None:
    state = begin(cfg, double=False)
    train(cfg, state, Alone(), Until(72))
    save(state, cfg, tmp_path, Alone())
    other = initial(cfg, Alone())
    restore(other, tmp_path, Alone())
    assert state.memory is not None
    assert other.memory is not None
    assert torch.equal(state.memory, other.memory)
    assert state.memory.abs().max() > 0.01
    policy, *_ = surefoot.load_policy(tmp_path / "checkpoints" / "000000072")
    x = state.preprocessed if hasattr(state, "preprocessed") else torch.rand(3, 3)
    assert torch.equal(policy(x, state.memory)[1], state.ema_policy()(x, state.memory)[1])


def play(policy: Policy, episodes: int) -> list[Any]:
    """All actions of some episodes of Scripted, as in a user's own loop."""
    import gymnasium

    env, actions, rng = gymnasium.make("ScriptedLong-truncated-v0").unwrapped, list[Any](), np.random.default_rng(0)
    for _ in range(episodes):
        policy.reset()
        obs, _ = env.reset(seed=5)
        actions.append([])
        for _ in range(12):
            actions[-1].append(policy.act(obs, greedy=True, rng=rng))
            obs, *_ = env.step(actions[-1][-1])
    return actions


def test_act_remembers_until_it_is_reset(cfg: Config) -> None:
    policy = begin(cfg, double=False).policy
    first, second = play(policy, 2)
    assert first == second
    obs = np.array([5.0, 0.0, -1.0], np.float32)
    values = []
    policy.reset()
    for _ in range(2):
        policy.act(obs)
        assert policy.remembered is not None
        values.append(policy.remembered.clone())
    assert not torch.equal(*values)
    policy.reset()
    policy.act(obs)
    assert torch.equal(policy.remembered, values[0])  # type: ignore[arg-type]


@BOTH
def test_an_evaluation_is_the_same_whatever_is_played_beside_it(cfg: Config, memory: Unit) -> None:
    """Also with memory: it is each episode's own, and begins with it."""
    policy = begin(replace(cfg, memory=memory)).policy
    env = cfg.env
    whole, single = (evaluate(policy, env, range(40), parallel=k).scores for k in (7, 1))
    assert whole == single
    policy.memory_of = lambda episodes: policy.no_memory(len(episodes))  # type: ignore[method-assign, assignment]
    assert evaluate(policy, env, range(40), parallel=7).scores != whole  # where all is forgotten after each step


def test_watch_and_films_play_with_memory(cfg: Config, tmp_path: Path) -> None:
    """The player's memory goes on within an episode and is gone with the next."""
    cfg = replace(cfg, env=Gymnasium("CartPole-v1"))
    state = begin(cfg, double=False)
    state.iteration = 1
    state.ema_params.copy_(state.flat.detach())
    save(state, cfg, tmp_path, Alone())
    run = tmp_path / "checkpoints" / "000000000"
    player = Player(run, saliency=True)
    first = player.play()
    assert player.memory is not None
    kept = player.memory.clone()
    player.play()
    assert not torch.equal(player.memory, kept)
    player.begin(player.seed)
    again = player.play()
    assert (first["actions"], first["weights"]) == (again["actions"], again["weights"])
    player.close()
    assert surefoot.video(run, tmp_path / "game.gif", max_steps=8).stat().st_size > 1000


def test_what_does_not_go_together_is_said_in_one_sentence(cfg: Config, tmp_path: Path) -> None:
    for change, text in (
        ({"memory": GRU(6, length=24)}, "GRU.length is 24; allowed is 0, or a divisor of 6: the steps that one"),
        ({"memory": LSTM(6, length=4)}, "LSTM.length is 4; allowed is 0, or a divisor of 6"),
        ({"from_reset": True, "minibatch_size": 0}, "memory is GRU; allowed is NoMemory with from_reset"),
    ):
        with pytest.raises(UserError, match=text):
            replace(cfg, **change)
    with pytest.raises(UserError, match=r"GRU.units is 0; allowed is at least 1"):
        GRU(0)
    plain = replace(cfg, memory=NoMemory(), total_steps=36, eval_episodes=0)
    surefoot.train(plain, run_dir=tmp_path / "plain", ranks=1, quiet=True)
    with pytest.raises(
        UserError, match=r"has memory NoMemory, this run's GRU: train with memory:no-memory \(memory=NoMemory"
    ):
        surefoot.train(replace(plain, memory=GRU(6)), source=tmp_path / "plain", run_dir=tmp_path / "b", quiet=True)


@pytest.mark.long
@pytest.mark.parametrize("memory", [GRU(16), NoMemory(), pytest.param(LSTM(16), marks=pytest.mark.slow)], ids=str)
def test_it_remembers_a_cue_over_20_steps_which_a_feed_forward_policy_cannot(small: Config, memory: Any) -> None:
    """Which of two actions pays is shown at the beginning of an episode, and asked for 20 steps later."""
    cfg = replace(
        small, env=Gymnasium("worlds:Recall-v0"), memory=memory, num_envs=16, num_steps=(42,), minibatch_size=0,
        num_epochs=4, learning_rate=FixedRate(2e-2),
    )  # fmt: skip
    state = initial(cfg, Alone())
    train(cfg, state, Alone(), Until(16 * 42 * 20))
    score = state.mean_score()
    assert abs(score) < 0.4 if isinstance(memory, NoMemory) else score > 0.9


@pytest.mark.slow
def test_it_balances_a_pole_whose_velocities_are_not_shown() -> None:
    """A feed-forward policy comes to 45 to 55 steps and no further."""
    cfg = replace(
        find("cartpole"), env=Gymnasium("worlds:Positions-v0"), network=MLP((64,), running=True), minibatch_size=128
    )
    scores = []
    for memory in (GRU(64), NoMemory()):
        state = initial(replace(cfg, memory=memory), Alone())
        train(replace(cfg, memory=memory), state, Alone(), Until(30_000))
        scores.append(state.mean_score())
    assert scores[0] > 75, scores
    assert scores[1] < 65, scores
