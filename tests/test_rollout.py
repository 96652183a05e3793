"""Collecting: what stands at [t, n] belongs to the transition at t of game n, and no fake transition gets in."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from surefoot import configure
from surefoot.algorithm.callback import Callback
from surefoot.algorithm.fast_paths import distinct_windows
from surefoot.algorithm.rollout import Rollout, collect, collect_rollout, noise_color
from surefoot.algorithm.state import State, initial
from surefoot.algorithm.train import finish_iteration, train
from surefoot.algorithm.update import minibatches
from surefoot.config import Config
from surefoot.envs.atari import Atari
from surefoot.envs.gym import Gymnasium
from surefoot.envs.vector import EnvVector
from surefoot.models.distributions import colored, standard_normal
from surefoot.models.networks import NatureCNN
from surefoot.models.policy import Policy
from surefoot.parallel.ranks import Alone, Gloo
from surefoot.rng import Purpose, integer, stream
from twin import Notebook


def play(
    env_id: str, num_steps: int = 7, num_envs: int = 2, episode: int | None = None
) -> tuple[Rollout, EnvVector, Policy]:
    everything = EnvVector(Gymnasium(env_id), 5, range(num_envs))
    from surefoot.models.networks import MLP

    torch.manual_seed(0)
    policy = MLP((8,)).build(everything.observation_space, everything.action_space)
    everything.reset_all()
    noise = torch.from_numpy(stream(5, Purpose.ACTIONS, 0).random((num_steps, num_envs), "float32"))
    return collect(policy, everything, noise, episode), everything, policy


@pytest.mark.parametrize("steps", [4, 5])
def test_colored_noise_is_as_uniform_and_has_the_spectrum_that_was_asked_for(steps: int) -> None:
    """Power 1, 1, 1/4, 1 at the frequencies of 4 steps: neighbours correlate by (1 - 1/4) / 3.25, steps 2 apart by
    (1 - 2 + 1/4) / 3.25; of 5 steps 1, 1, 1/4, 1/4, 1. None of it in what other environments or actions draw."""
    noise = torch.from_numpy(stream(1, Purpose.ACTIONS).random((steps, 40_000, 2), "float32"))
    assert colored(noise, 0.0) is noise
    x = colored(noise, 2.0)
    assert x.dtype == torch.float32
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    levels = torch.arange(1, 20) / 20
    assert torch.quantile(x[2, :, 0], levels).tolist() == pytest.approx(levels.tolist(), abs=0.01)
    z = standard_normal(x)
    power = [1, 1, 1 / 4, 1] if steps == 4 else [1, 1, 1 / 4, 1 / 4, 1]
    for lag in (1, 2):
        want = sum(p * math.cos(2 * math.pi * k * lag / steps) for k, p in enumerate(power)) / sum(power)
        assert float((z[lag:] * z[:-lag]).mean()) == pytest.approx(want, abs=0.02)
    assert float((z[:, 1:] * z[:, :-1]).mean()) == pytest.approx(0, abs=0.01)
    assert float((z[..., 0] * z[..., 1]).mean()) == pytest.approx(0, abs=0.01)


def test_a_rollouts_actions_are_drawn_from_the_noise_that_was_asked_for() -> None:
    """Two actions that are equally probable: pink noise stays with one of them for longer; ranks share one draw.

    Here until a tenth of the run is done.
    """
    cfg = configure("worlds:Scripted-truncated-v0", num_envs=8, num_steps=64, minibatch_size=0, total_steps=10_000)
    kept = []
    for color, steps in ((0.0, 0), (1.0, 999), (1.0, 1000)):
        cfg = replace(cfg, noise_color=color, noise_until=0.1, noise_rarity=0)
        state = initial(cfg, Alone())
        state.steps = steps
        with torch.no_grad():
            for parameter in state.policy.parameters():
                parameter.zero_()
        rollout = collect_rollout(cfg, state, Alone(), Callback())
        assert rollout is not None
        kept.append(float((rollout.action[1:] == rollout.action[:-1]).double().mean()))
        state.envs.close()
    assert kept[0] == kept[2] == pytest.approx(0.5, abs=0.06)
    assert kept[1] > 0.6


def test_noise_is_colored_until_episodes_terminate_often() -> None:
    cfg = configure("worlds:Target-v0", noise_color=1.5, noise_until=0.5, noise_rarity=100, total_steps=1000)
    state = initial(cfg, Alone())
    state.envs.close()
    colors = []
    for state.iteration, state.steps, state.ends_often in ((0, 0, 0), (1, 499, 0), (1, 500, 0), (1, 499, True)):
        colors.append((noise_color(cfg, state), noise_color(replace(cfg, noise_rarity=0), state)))
    assert colors == [(0, 1.5), (1.5, 1.5), (0, 0), (0, 1.5)]


@pytest.mark.parametrize(("ending", "each"), [("terminated", 4), ("truncated", 0)])
def test_terminations_are_counted_and_time_limits_are_not(ending: str, each: int) -> None:
    """Episodes of three steps: two of each environment's end in seven steps, two more in the next; of all ranks."""

    class Two(Alone):
        """A rank beside another that has seen the same."""

        def all_gather_bytes(self, data: bytes) -> list[bytes]:
            return [data, data]

    cfg = configure(f"worlds:Scripted-{ending}-v0", num_envs=2, num_steps=7, minibatch_size=0, noise_rarity=3)
    state = initial(cfg, Alone())
    for played in (1, 2):
        rollout = collect_rollout(cfg, state, Alone(), Callback())
        assert rollout is not None
        finish_iteration(state, rollout, cfg, Alone())
        assert state.terminations == played * each
        assert state.episodes == 4 * played
        assert state.ends_often == (ending == "terminated" and played == 2)  # at first 4 in 14 steps
        cfg = replace(cfg, noise_rarity=4)  # then 8 in 28
    finish_iteration(state, rollout, cfg, Two())
    assert state.terminations == 4 * each
    state.envs.close()


def test_every_row_is_one_real_transition_of_a_scripted_game() -> None:
    r, _, _ = play("worlds:Scripted-terminated-v0")
    # episodes of 3 steps: the step counter seen before each decision is 0 1 2 0 1 2 0, the ending at its third
    assert r.obs[:, 0, 1].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert r.terminated[:, 0].tolist() == [False, False, True, False, False, True, False]
    assert not r.truncated.any()
    # reward = step + 10 * action, raw, of the action in the same row
    step_after = torch.tensor([1, 2, 3, 1, 2, 3, 1.0])
    assert torch.equal(r.reward[:, 0], step_after + 10 * r.action[:, 0])
    # the next row of an unfinished episode shows the action that was taken
    assert r.obs[1, 0, 2] == r.action[0, 0]
    assert r.obs[3, 0, 2] == -1  # a new episode: no last action


def test_scores_are_raw_and_exact() -> None:
    r, _, _ = play("worlds:Scripted-terminated-v0", num_steps=6)
    for game in (0, 1):
        scores = [e.score for e in r.episodes if e.env == game]
        # two episodes: 1 + 2 + 3 plus ten for every action 1
        want = [6 + 10 * r.action[3 * k : 3 * k + 3, game].sum().item() for k in (0, 1)]
        assert scores == want
        assert [e.length for e in r.episodes if e.env == game] == [3, 3]


def test_every_episode_has_its_own_seed_and_the_same_again() -> None:
    r, _, _ = play("worlds:Scripted-terminated-v0")
    again, _, _ = play("worlds:Scripted-terminated-v0")
    assert torch.equal(r.obs, again.obs)
    assert torch.equal(r.action, again.action)
    tags = {(n, k): r.obs[3 * k, n, 0].item() for n in (0, 1) for k in (0, 1, 2)}
    assert tags == {(n, k): integer(5, Purpose.RESETS, n, k) % 97 for n, k in tags}
    assert len(set(tags.values())) > 1


def test_termination_is_worth_nothing_afterwards() -> None:
    r, _, _ = play("worlds:Scripted-terminated-v0")
    assert (r.next_value[r.terminated] == 0).all()
    inside = ~r.ended[:-1]
    assert torch.equal(r.next_value[:-1][inside], r.value[1:][inside])


def test_truncation_is_worth_the_value_of_the_real_final_observation() -> None:
    r, _, policy = play("worlds:Scripted-truncated-v0")
    assert r.truncated[2].all()
    assert not r.terminated.any()
    # the final observation: the same tag, step 3, the action just taken; not the next episode's first
    final = torch.stack((r.obs[2, :, 0], torch.full((2,), 3.0), r.action[2].float()), 1)
    with torch.no_grad():
        assert torch.allclose(r.next_value[2], policy(final)[1], atol=1e-6)
        assert not torch.allclose(r.next_value[2], r.value[3], atol=1e-6)


@pytest.mark.parametrize("ending", ["truncated", "terminated", "both"])
@pytest.mark.parametrize("num_steps", [6, 7])  # 6: the last decision ends an episode
def test_a_rollout_is_judged_anew_as_it_was_judged_first(ending: str, num_steps: int) -> None:
    r, _, policy = play(f"worlds:Scripted-{ending}-v0", num_steps)
    again = r.with_values_of(policy)
    torch.testing.assert_close(again.value, r.value)
    torch.testing.assert_close(again.next_value, r.next_value)
    assert policy.critic is not None
    with torch.no_grad():
        policy.critic.bias += 3.0  # now every state is worth 3 more, but where nothing follows
    later = r.with_values_of(policy)
    torch.testing.assert_close(later.value, r.value + 3)
    torch.testing.assert_close(later.next_value, (r.next_value + 3).masked_fill(r.terminated, 0.0))
    assert later.action is r.action


def test_recomputed_weights_come_from_the_critic_as_it_is_then(small, monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.algorithm import train as loop

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(rollout: Rollout, cfg, state, ranks):
        with torch.no_grad():
            seen.append(
                (rollout.value, state.policy.evaluate(rollout.preprocessed.flatten(0, 1))[1].view_as(rollout.value))
            )
        return compute_advantages(rollout, cfg, state, ranks)

    compute_advantages = loop.compute_advantages
    monkeypatch.setattr(loop, "compute_advantages", spy)
    monkeypatch.setattr("surefoot.algorithm.update.compute_advantages", spy)
    for recompute, calls in ((False, 1), (True, small.num_epochs)):
        seen.clear()
        cfg = replace(small, recompute=recompute, total_iterations=1)
        loop.train(cfg, initial(cfg, Alone()), Alone(), Notebook(cfg))
        assert len(seen) == calls
        for used, now in seen:
            torch.testing.assert_close(used, now)
    assert not torch.allclose(seen[0][0], seen[1][0])


def test_both_at_once_is_a_termination() -> None:
    r, _, _ = play("worlds:Scripted-both-v0")
    assert r.terminated[2].all()
    assert not r.truncated.any()


def test_the_last_row_of_an_unfinished_episode_looks_one_step_ahead() -> None:
    r, games, policy = play("worlds:ScriptedLong-terminated-v0")
    with torch.no_grad():
        assert torch.allclose(r.next_value[-1], policy(torch.from_numpy(games.obs))[1], atol=1e-6)


def test_episodes_of_length_one_and_longer_than_the_rollout() -> None:
    r, _, _ = play("worlds:ScriptedMixed-terminated-v0", num_steps=7)
    # lengths 1, 4, 2 in turn: endings after 1, 5 and 7 steps
    assert r.terminated[:, 0].nonzero()[:, 0].tolist() == [0, 4, 6]


def test_from_reset_cuts_all_games_where_the_first_ends() -> None:
    r, _, _ = play("worlds:ScriptedMixed-terminated-v0", num_steps=7, episode=1)
    # each object's first episode lasts 1 step and was begun before; this one, its second, lasts 4
    assert len(r.reward) == 4
    assert r.terminated[3].all()
    assert [(e.score, e.length) for e in r.episodes] == [(score, 4) for score in r.reward.sum(0).tolist()]


def test_from_reset_truncates_what_did_not_end_and_counts_it() -> None:
    r, games, policy = play("worlds:ScriptedLong-terminated-v0", num_steps=5, episode=3)
    assert r.truncated[-1].all()
    assert not r.truncated[:-1].any()
    assert [(e.score, e.length) for e in r.episodes] == [(score, 5) for score in r.reward.sum(0).tolist()]
    assert r.obs[0, :, 0].tolist() == [integer(5, Purpose.RESETS, n, 3) % 97 for n in (0, 1)]
    again = collect(policy, games, torch.zeros(2, 2), 3)  # the same episode number: the same episodes
    assert torch.equal(again.obs[0], r.obs[0])
    assert len(again.episodes) == 2  # and nothing counts twice


def test_the_first_minibatch_has_ratio_one(small) -> None:
    """Before any update, what learning computes is what acting computed."""
    state = initial(small, Alone())
    noise = torch.from_numpy(stream(1, Purpose.ACTIONS, 0).random((16, 8), "float32"))
    r = collect(state.policy, state.envs, noise)
    batch = next(minibatches(r, r.reward, r.reward, small, 0, 0, slice(0, 8)))
    ratio = (state.policy.evaluate(batch.obs)[0].log_prob(batch.action) - batch.logp_old).exp()
    assert (ratio - 1).abs().max() < 1e-5


@pytest.mark.parametrize("rounded", [False, True])
def test_images_stay_bytes_and_the_ratio_is_one(rounded: bool) -> None:
    """As whoever plays has seen them, and as learning sees them: their windows, each once."""
    games = EnvVector(Atari("breakout"), 1, range(2))
    policy = NatureCNN().build(games.observation_space, games.action_space)
    policy.bf16 = rounded
    games.reset_all()
    r = collect(policy, games, torch.rand(8, 2, generator=torch.Generator().manual_seed(1)))
    assert r.preprocessed.dtype == torch.uint8
    assert torch.equal(r.preprocessed.flatten(0, 1), policy.preprocess(r.obs.flatten(0, 1)))
    r.windows = distinct_windows(policy, r.preprocessed, r.bootstrap_obs)
    assert r.windows is not None
    with torch.no_grad():
        for seen in (r.preprocessed.flatten(0, 1), r.windows[:16]):
            dist, value = policy.evaluate(seen)
            assert (dist.log_prob(r.action.flatten()).exp() / r.logp.flatten().exp() - 1).abs().max() < 1e-5
            assert (value - r.value.flatten()).abs().max() < 1e-5
    again = r.with_values_of(policy)
    assert (again.next_value - r.next_value).abs().max() < 1e-5


def test_the_minibatches_of_an_epoch_are_the_rollout_once(small) -> None:
    state = initial(small, Alone())
    r = collect(state.policy, state.envs, torch.rand(16, 8, generator=torch.Generator().manual_seed(1)))
    number = torch.arange(16 * 8.0).view(16, 8)
    parts = [b.advantage for epoch in (0, 1) for b in minibatches(r, number, number, small, 3, epoch, slice(0, 8))]
    assert len(parts) == 2 * 4
    first, second = torch.cat(parts[:4]), torch.cat(parts[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == number.flatten().tolist()
    assert first.tolist() != second.tolist()  # cut afresh in every epoch
    for part in parts:  # every game gives the same number to each part
        assert np.bincount(part.long() % 8, minlength=8).tolist() == [4] * 8


def test_every_seed_iteration_and_epoch_shuffles_anew(small) -> None:
    """With all of a row's columns beside it, on the way of autograd and of an MLP's twin."""
    state = initial(small, Alone())
    r = collect(state.policy, state.envs, torch.rand(16, 8, generator=torch.Generator().manual_seed(1)))
    number = torch.arange(16 * 8.0).view(16, 8)
    r.logp, r.value, r.action = number + 0.5, -number, number.long()
    r.params, r.preprocessed = number[..., None].expand(16, 8, 3) * 2, number[..., None].expand(16, 8, 3) * 3
    orders = set()
    for seed, iteration, epoch in ((1, 3, 0), (2, 3, 0), (1, 4, 0), (1, 3, 1)):
        for as_numpy in (False, True):
            cfg = replace(small, seed=seed)
            parts = [*minibatches(r, 10 * number, 20 * number, cfg, iteration, epoch, slice(0, 8), as_numpy)]
            for b in parts:
                x = torch.as_tensor(b.action).double()
                for column, want in (
                    (b.logp_old, x + 0.5),
                    (b.value_old, -x),
                    (b.advantage, 10 * x),
                    (b.returns, 20 * x),
                    (b.params_old, 2 * x[:, None].expand(-1, 3)),
                    (b.obs, 3 * x[:, None].expand(-1, 3)),
                ):
                    assert torch.equal(torch.as_tensor(column).double(), want)
            orders.add(tuple(int(a) for b in parts for a in b.action))
    assert len(orders) == 4  # autograd's way and the twin's agree
    for order in orders:  # the steps of an environment come in an order of its own
        assert len({tuple(a // 8 for a in order if a % 8 == n) for n in range(8)}) == 8


def test_every_seed_iteration_and_environment_has_noise_of_its_own(small, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(_policy, _envs, noise: torch.Tensor, *_):
        return SimpleNamespace(reward=noise)

    monkeypatch.setattr("surefoot.algorithm.rollout.collect", keep)
    state, second = initial(small, Alone()), Alone()
    second.rank, second.count = 1, 2  # the second of two ranks

    def noise(seed: int, iteration: int, ranks: Alone) -> torch.Tensor:
        state.iteration = iteration
        found = collect_rollout(replace(small, seed=seed), state, ranks, Callback())
        assert found is not None
        return found.reward

    whole = noise(1, 0, Alone())
    assert whole.shape == (16, 8)
    assert len(set(whole.flatten().tolist())) == 16 * 8
    assert torch.equal(noise(1, 0, Alone()), whole)
    assert torch.equal(noise(1, 0, second), whole[:, 4:])
    for other in (noise(1, 1, Alone()), noise(2, 0, Alone())):
        assert not set(other.flatten().tolist()) & set(whole.flatten().tolist())


def test_a_rank_draws_the_same_minibatches_for_its_games(small) -> None:
    state = initial(small, Alone())
    r = collect(state.policy, state.envs, torch.rand(16, 8, generator=torch.Generator().manual_seed(1)))
    number = torch.arange(16 * 8.0).view(16, 8)
    whole = [set(b.advantage.tolist()) for b in minibatches(r, number, number, small, 3, 1, slice(0, 8))]
    fields = {k: v[:, 4:] if isinstance(v, torch.Tensor) else v for k, v in vars(r).items()}
    own = number[:, 4:]
    half = minibatches(Rollout(**fields), own, own, small, 3, 1, slice(4, 8))
    for everything, part in zip(whole, half, strict=True):
        assert set(part.advantage.tolist()) == {x for x in everything if x % 8 >= 4}


@pytest.mark.parametrize("minibatch_size", [0, 32])
def test_a_rollout_is_gone_before_the_next_one_is_collected(small: Config, minibatch_size: int) -> None:
    """Two of images at a time would be a seventh of the memory that `pong` takes."""
    before = list[weakref.ref[torch.Tensor]]()

    class Watch(Callback):
        def should_stop(self, state: State) -> bool:
            assert all(images() is None for images in before)
            return state.iteration >= 2

        def on_iteration(self, state: State, rollout: Rollout, *rest: object) -> None:
            before.append(weakref.ref(rollout.preprocessed))

    cfg = replace(small, minibatch_size=minibatch_size)
    train(cfg, initial(cfg, Alone()), Alone(), Watch())
    assert len(before) == 2


@pytest.mark.parametrize("purpose", [Purpose.ACTIONS, Purpose.RESETS])
def test_streams_are_pure_functions_of_their_counters(purpose: Purpose) -> None:
    a = stream(3, purpose, 1, 2).random(4)
    assert a.tolist() == stream(3, purpose, 1, 2).random(4).tolist()
    for other in (
        stream(4, purpose, 1, 2),
        stream(3, Purpose.NOOPS, 1, 2),
        stream(3, purpose, 2, 2),
        stream(3, purpose, 1, 3),
    ):
        assert a.tolist() != other.random(4).tolist()


def test_collecting_does_not_depend_on_how_the_games_are_shared(small) -> None:
    cfg = replace(small, env=Gymnasium("worlds:ScriptedMixed-truncated-v0"))
    noise = torch.from_numpy(stream(1, Purpose.ACTIONS, 0).random((16, 8), "float32"))
    whole = initial(cfg, Alone())
    r = collect(whole.policy.double(), whole.envs, noise)
    for rank in (0, 1):
        part = initial(cfg, Gloo(rank, 2))
        own = slice(4 * rank, 4 * rank + 4)
        s = collect(part.policy.double(), part.envs, noise[:, own])
        for name in ("obs", "action", "reward", "terminated", "truncated"):
            assert torch.equal(getattr(r, name)[:, own], getattr(s, name)), name
        assert torch.allclose(r.next_value[:, own], s.next_value, atol=1e-12)
