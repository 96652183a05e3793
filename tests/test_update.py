"""One update: gradient, step and metrics against hand numbers and the written-out formula; microbatches; schedules.

Numbers by hand hold both ways of learning, autograd's and the NumPy twin's, to the same arithmetic on paper.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import surefoot
from helpers import Until, first_batch, state_of
from surefoot.algorithm import train as loop
from surefoot.algorithm import update as learning
from surefoot.algorithm.advantages import GAE, FutureReturn, OverBatch, OverGames, OverMinibatch, Unnormalized
from surefoot.algorithm.objectives import (
    AdaptivePenalty,
    ClippedSurrogate,
    Entropy,
    OldPolicyCrossEntropy,
    Reinforce,
    Surrogate,
)
from surefoot.algorithm.running_stats import adapt_penalty
from surefoot.algorithm.schedules import AdaptiveRate, FixedRate, LinearRate, ScheduledRate, annealed
from surefoot.algorithm.state import State, initial
from surefoot.algorithm.update import METRIC_NAMES, Batch, batches, fit_value_bias, minibatches, update, update_metrics
from surefoot.config import Config
from surefoot.envs.gym_env import GymnasiumEnv
from surefoot.errors import Fault, UserError
from surefoot.models import policy
from surefoot.models.networks import MLP
from surefoot.parallel.ranks import Alone
from surefoot.runs.metrics import read
from surefoot.runs.reporter import Reporter


def mean_gain(state: State, batch: Batch, value_coef: float, entropy: float) -> float:
    """What is maximised, written out for REINFORCE: mean of A log pi + c H - v (V - R)^2, one sample at a time."""
    total = 0.0
    for i in range(len(batch.obs)):
        dist, value = state.policy.evaluate(torch.from_numpy(batch.obs[i : i + 1]))
        p = dist.probabilities()[0]
        h = -sum(float(q) * float(q.log()) for q in p)
        w, a = float(batch.advantage[i]), int(batch.action[i])
        total += w * float(p[a].log()) + entropy * h - value_coef * (float(value[0]) - float(batch.returns[i])) ** 2
    return total / len(batch.obs)


def test_the_gradient_goes_up_the_mean_gain(small: Config) -> None:
    """Finite differences of the written-out sum, in 8 directions."""
    cfg = replace(small, objective=Reinforce(), entropy=Entropy(0.03), value_coef=0.5, max_grad_norm=1e9)
    state, _, batch = first_batch(cfg)
    before = state.flat.detach().clone()
    cfg0 = replace(cfg, learning_rate=LinearRate(0.0 + 1e-300))
    update(state, batch, cfg0, Alone())
    gradient = state.gradient.clone()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _ in range(8):
            direction = torch.randn(len(before), generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            rates = []
            for step in (1e-5, -1e-5):
                state.flat.copy_(before + step * direction)
                rates.append(mean_gain(state, batch, 0.5, 0.03))
            slope = (rates[0] - rates[1]) / 2e-5
            assert float(-gradient @ direction) == pytest.approx(slope, abs=1e-7)


def test_pieces_give_the_same_gradient_and_figures(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(small, max_grad_norm=1e9)
    state, _, batch = first_batch(cfg)
    before = state.flat.detach().clone()
    whole = update(state, batch, cfg, Alone())
    gradient = state.gradient.clone()
    state.flat.data.copy_(before)
    monkeypatch.setattr(policy, "MICROBATCH", 50)  # 128 rows: 43, 43 and 42
    pieces = update(state, batch, cfg, Alone())
    assert torch.allclose(gradient, state.gradient, rtol=0, atol=1e-12)
    found = [update_metrics([u], state, cfg, Alone()) for u in (whole, pieces)]
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def test_the_first_update_sees_no_drift_and_no_divergence(small: Config) -> None:
    state, _, batch = first_batch(small)
    rows = update_metrics([update(state, batch, small, Alone()) for _ in range(2)], state, small, Alone())
    stats, second = (dict(zip(METRIC_NAMES, row.tolist(), strict=True)) for row in rows)
    assert stats["kl"] == pytest.approx(0, abs=1e-12)
    assert stats["ratio_drift"] == pytest.approx(0, abs=1e-12)
    assert stats["clip_fraction"] == 0
    assert 0 < stats["entropy"] <= 1.0987  # log 3
    assert second["kl"] > 0
    assert second["ratio_drift"] > 0


@torch.no_grad()
def test_the_penaltys_coefficient_follows_the_divergence_of_all_transitions(small: Config) -> None:
    """KL(old || new) over the valid rows of a rollout: a hair above 1.5 times the desired one doubles it."""
    state, rollout, _ = first_batch(small)
    rollout.valid = torch.arange(16 * small.num_envs).view(16, -1) % 3 > 0
    state.flat.data += torch.linspace(-0.3, 0.3, len(state.flat)).double()
    new = state.policy.evaluate(rollout.preprocessed.flatten(0, 1))[0].params.view_as(rollout.params)
    pair = (torch.distributions.Categorical(logits=x) for x in (rollout.params, new))
    kl = torch.distributions.kl_divergence(*pair)
    mean = float(kl[rollout.valid].mean())
    assert abs(mean / float(kl.mean()) - 1) > 0.01
    assert mean > 0.01
    found = []
    for desired in (mean / 1.5 * (1 - 1e-9), mean / 1.5 * (1 + 1e-9)):
        state.kl_coef = 4.0
        adapt_penalty(state, rollout, replace(small, kl_penalty=AdaptivePenalty(1.0, desired)), Alone())
        found.append(state.kl_coef)
    assert found == [8.0, 4.0]


def test_numbers_too_small_are_zero_while_learning_and_only_then(
    small: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not while games are played, nor after an update that fails."""
    tiny, learning, playing = torch.tensor(1e-20), list[float](), list[float]()

    def objective(_, logp, __, advantage):  # type: ignore[no-untyped-def]
        learning.append(float(tiny * tiny))
        return logp * advantage if len(learning) < 4 else logp * float("nan")

    def step(game, *given):  # type: ignore[no-untyped-def]
        playing.append(float(tiny * tiny))
        return played(game, *given)

    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    played = GymnasiumEnv.step
    monkeypatch.setattr(Reinforce, "__call__", objective)
    monkeypatch.setattr("surefoot.algorithm.update.mlp_backward", lambda *_: None)
    monkeypatch.setattr(GymnasiumEnv, "step", step)
    cfg = replace(small, objective=Reinforce(), num_epochs=1, minibatch_size=64)
    with pytest.raises(Fault, match="not finite"):
        surefoot.train(cfg, run_dir=tmp_path / "a", ranks=1, quiet=True)
    assert learning == [0.0] * 4
    assert min(playing) > 0
    assert float(tiny * tiny) > 0


@pytest.mark.parametrize("some", [False, True])
def test_the_critics_bias_is_first_that_of_the_least_squared_error(small: Config, some: bool) -> None:
    """With returns near 50 from 128 transitions, of which some may not count; nothing else moves before an update."""
    state, rollout, _ = first_batch(replace(small, fit_value_bias=True))
    generator = torch.Generator().manual_seed(5)
    returns = 50 + torch.randn(rollout.value.shape, generator=generator, dtype=torch.float64)
    valid = torch.rand(rollout.value.shape, generator=generator) < (0.5 if some else 1.0)
    returns[~valid] = 1e6
    rollout = replace(rollout, valid=valid)
    before = state.flat.detach().clone()

    def squared_error(bias: float) -> float:
        assert state.policy.critic is not None
        with torch.no_grad():
            state.policy.critic.bias.add_(bias)
            value = state.policy.evaluate(rollout.preprocessed.flatten(0, 1))[1].view_as(returns)
            state.policy.critic.bias.sub_(bias)
        return float((value - returns)[valid].square().sum())

    for cfg, moved in ((small, 0), (replace(small, fit_value_bias=True, minibatch_size=0), 1)):
        batch = next(batches(rollout, rollout.value, returns, cfg, state, Alone()))
        assert int((state.flat != before).sum()) == moved
    assert squared_error(0.0) < min(squared_error(1e-3), squared_error(-1e-3))
    value = state.policy.evaluate(torch.as_tensor(batch.obs))[1]
    torch.testing.assert_close(torch.as_tensor(batch.value_old), value.detach())  # what a value clip stays near to
    returns[valid] = math.inf  # the update will be skipped
    assert fit_value_bias(state.policy.critic, rollout, returns, Alone()) == 0
    assert state.flat.isfinite().all()


def test_long_gradients_are_shortened(small: Config) -> None:
    cfg = replace(small, max_grad_norm=1e-3)
    state, _, batch = first_batch(cfg)
    update(state, batch, cfg, Alone())
    assert float(state.gradient.norm()) == pytest.approx(1e-3)


def test_a_gradient_that_is_not_finite_changes_nothing(small: Config) -> None:
    state, _, batch = first_batch(small)
    before = state.flat.detach().clone()
    batch.advantage[3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        update(state, batch, small, Alone())
    assert torch.equal(before, state.flat)


def test_nothing_is_learned_from_games_that_all_agree(small: Config) -> None:
    """The lesson's zero gradient: equal games normalise to weight 0, and REINFORCE then has nothing to push."""
    cfg = replace(small, objective=Reinforce(), entropy=Entropy(0.0), value_coef=0.0)
    state, r, _ = first_batch(cfg)
    r.reward[:] = 0.1
    r.terminated[:] = False
    weight, target = FutureReturn(0.9)(r)
    batch = next(minibatches(r, OverGames()(weight), target, replace(cfg, minibatch_size=0), 0, 0, slice(0, 8), True))
    update(state, batch, cfg, Alone())
    assert float(state.gradient.abs().max()) == 0


def test_a_schedule_of_ones_own_goes_in_straight_lines_and_is_numbers_in_files() -> None:
    """By hand: half of the first, then a tenth of it, at equal distances; a function is taken at a thousand places."""
    rate = ScheduledRate((1e-3, 5e-4, 1e-4))
    seen = [rate(9.9, 9.9, progress) for progress in (0, 0.25, 0.5, 0.75, 1, 1.5)]
    assert seen == pytest.approx([1e-3, 7.5e-4, 5e-4, 3e-4, 1e-4, 1e-4])
    assert ScheduledRate((1e-3,))(0, 0, 0.7) == rate.initial == 1e-3
    given = surefoot.configure("cartpole", learning_rate=lambda progress: 1e-3 * (1 - progress) ** 2)
    again = Config.from_json(json.loads(json.dumps(given.to_json())))
    assert again == given
    assert again.learning_rate(0, 0, 0.3456) == pytest.approx(1e-3 * 0.6544**2, rel=1e-5)
    with pytest.raises(UserError, match=r"ScheduledRate.rates is \(.*; allowed is at least 0, finite"):
        surefoot.configure("cartpole", learning_rate=lambda progress: progress - 0.5)


def test_clipping_uses_the_iterations_epsilon(small: Config) -> None:
    """With decay 0.5, clip_range at iteration 3 is an eighth: a ratio of 1.05 is clipped then and not at the start."""
    cfg = replace(small, objective=ClippedSurrogate(0.2, 0.5), entropy=Entropy(0.0), value_coef=0.0)
    state, _, batch = first_batch(cfg)
    batch.logp_old = batch.logp_old - 0.0488  # ratio 1.05 everywhere
    batch.advantage = batch.advantage * 0 + 1
    update(state, batch, annealed(cfg, state.iteration, state.progress(cfg)), Alone())
    assert float(state.gradient.norm()) > 0
    state, _, batch2 = first_batch(cfg)
    batch2.logp_old, batch2.advantage = batch2.logp_old - 0.0488, batch2.advantage * 0 + 1
    state.iteration = 3
    update(state, batch2, annealed(cfg, state.iteration, state.progress(cfg)), Alone())
    assert float(state.gradient.norm()) == 0


def test_objective_and_bonus_are_annealed_by_iteration_and_progress(small: Config) -> None:
    cfg = replace(small, objective=ClippedSurrogate(0.2, 0.5, end_factor=0.5), entropy=Entropy(0.1, end_factor=0.0))
    now = annealed(cfg, 2, 0.5)
    assert now.objective.clip_range == pytest.approx(0.2 / 4 * 0.75)  # two iterations; half-way to a half
    assert now.entropy.coef == pytest.approx(0.05)
    assert annealed(replace(cfg, entropy=OldPolicyCrossEntropy(0.1, 0.5)), 2, 0.5).entropy.coef == 0.025
    early = replace(cfg, entropy=Entropy(0.1, end_factor=0.0, until=0.5))
    assert [annealed(early, 0, p).entropy.coef for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.1, 0.05, 0, 0])


def test_the_loop_anneals_averages_and_remembers(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update gets this iteration's clip range and bonus; the average of parameters and the std go on."""
    cfg = replace(small, objective=ClippedSurrogate(0.2, decay=0.5), entropy=OldPolicyCrossEntropy(0.4, 0.5))
    cfg = replace(cfg, ema_decay=0.25, normalize=OverBatch(memory=0.5), num_epochs=1, minibatch_size=0)
    ranges, bonuses, parameters, averages, stds = [], [], [], [], [0.0]
    plain = learning.update

    def watched(state: State, batch: Batch, now: Config, ranks: Alone) -> Any:
        ranges.append(now.objective.clip_range)
        bonuses.append(now.entropy.coef)
        return plain(state, batch, now, ranks)

    class Three(Until):
        def on_iteration(self, state: State, rollout: Any, *_: Any) -> None:
            parameters.append(state.flat.detach().clone())
            averages.append(state.ema_params.clone())
            own = float(GAE.__call__(cfg.advantage, rollout)[0].std(correction=0))
            stds.append(math.sqrt(0.5 * stds[-1] ** 2 + 0.5 * own**2) if stds[-1] else own)
            assert state.advantage_std == pytest.approx(stds[-1], rel=1e-5)

    monkeypatch.setattr(learning, "update", watched)
    state = initial(cfg, Alone())
    loop.train(cfg, state, Alone(), Three(3 * 8 * 16))
    assert ranges == [0.2, 0.1, 0.05]
    assert bonuses == [0.4, 0.2, 0.1]
    assert state.steps == 3 * 8 * 16
    first, second, third = parameters
    assert torch.equal(averages[0], first)
    torch.testing.assert_close(averages[1], first + 10 / 11 * (second - first))
    torch.testing.assert_close(averages[2], averages[1] + 10 / 12 * (third - averages[1]))


def test_a_runs_stages_follow_its_progress(small: Config) -> None:
    cfg = replace(small, num_steps=(8, 16, 32), minibatch_size=0, total_steps=300, total_iterations=10)
    state, _, _ = first_batch(cfg)
    lengths = []
    for state.steps in (0, 99, 100, 199, 200, 300):
        lengths.append(state.num_steps(cfg))
    assert lengths == [8, 8, 16, 16, 32, 32]
    state.steps, state.iteration = 30, 4  # whatever is further: 30 of 300 steps, 4 of 10 iterations
    assert state.progress(cfg) == 0.4
    state.steps = 150
    assert state.progress(cfg) == 0.5


def test_the_adaptive_rate_follows_the_divergence() -> None:
    rate = AdaptiveRate(1e-3, desired_kl=0.02, cap=2e-3, floor=8e-4)
    assert rate(1e-3, 0.005, 0.0) == pytest.approx(1.5e-3)  # below half of the target
    assert rate(1e-3, 0.03, 0.0) == pytest.approx(1e-3)  # within
    assert rate(1.5e-3, 0.05, 0.0) == pytest.approx(1e-3)  # above twice
    assert rate(1.9e-3, 0.001, 0.0) == 2e-3  # the cap
    assert rate(1e-3, 1.0, 0.0) == 8e-4  # the floor
    falling = replace(rate, end_factor=0.01)  # half-way the target is 0.002, at the end and bootstrap_obs 0.0002
    assert falling(1.5e-3, 0.005, 0.5) == pytest.approx(1e-3)
    assert falling(1e-3, 0.003, 0.5) == pytest.approx(1e-3)
    assert falling(1e-3, 0.0005, 0.5) == pytest.approx(1.5e-3)
    assert falling(1.5e-3, 0.0005, 1.0) == falling(1.5e-3, 0.0005, 1.7) == pytest.approx(1e-3)
    assert falling(1e-3, 0.0003, 1.0) == falling(1e-3, 0.0003, 1.7) == 1e-3  # it stays where it was at the end
    assert LinearRate(1e-3)(0.5, 0.0, 0.25) == pytest.approx(7.5e-4)
    assert LinearRate(1e-3)(0.5, 0.0, 1.5) == 0.0


# Four samples by hand. Each is one of four states, for which the network below has a logit per action and a value.
#
#   state      0     1     2     3
#   P(1)      1/2   3/4   1/4   1/2     the present policy's
#   P_old(1)  1/4   1/2   1/2   5/9
#   action     1     1     1     0
#   ratio      2    3/2   1/2   9/8     1/2 / (1 - 5/9) = 9/8
#   A          1    -1    -2     3
#   V          1     2    -1    1/2
#   V_old      0     1   -5/4    3
#   R          3     1     0     0

LOG2, LOG3, LOG5 = math.log(2), math.log(3), math.log(5)
NEW, OLD, ACTION = (1 / 2, 3 / 4, 1 / 4, 1 / 2), (1 / 4, 1 / 2, 1 / 2, 5 / 9), (1, 1, 1, 0)
# KL(old || new) = sum P_old log(P_old / P):
#   0: 3/4 log 3/2 + 1/4 log 1/2 = 3/4 log 3 - log 2;  1 and 2: (log 2 + log 2/3) / 2 = log 2 - (log 3) / 2
#   3: 4/9 log 8/9 + 5/9 log 10/9 = 17/9 log 2 + 5/9 log 5 - 2 log 3
KL = ((0.75 * LOG3 - LOG2) + 2 * (LOG2 - LOG3 / 2) + (17 / 9 * LOG2 + 5 / 9 * LOG5 - 2 * LOG3)) / 4  # 0.1062
# KL(new || old), the wrong way round: 0: log 2 - (log 3) / 2; 1 and 2: 3/4 log 3 - log 2; 3: (log 9/8 + log 9/10) / 2
WRONG_KL = ((LOG2 - LOG3 / 2) + 2 * (0.75 * LOG3 - LOG2) + (2 * LOG3 - 2 * LOG2 - LOG5 / 2)) / 4  # 0.1029

both_ways = pytest.mark.parametrize("fast", [False, True], ids=["autograd", "twin"])


def table(cfg: Config, action: spaces.Space[Any], outputs: list[list[float]], values: list[float], fast: bool) -> State:
    """An MLP that is a table: for the one-hot state s its outputs are outputs[s], its value is values[s].

    Its four hidden units are tanh(30) = 1 or tanh(-30) = -1 to the last bit, where tanh has no slope: hidden layers get
    no gradient. With weights T / 2 and biases sum(T) / 2 the output in state s is the table's T[s].
    """
    policy = MLP((4,)).build(spaces.Box(0, 1, (4,)), action).double()
    (hidden,) = policy.hidden
    assert policy.critic is not None
    hidden.weight.data[:] = 60 * torch.eye(4)
    hidden.bias.data[:] = -30
    for layer, rows in ((policy.actor, outputs), (policy.critic, [[value] for value in values])):
        rows_by_state = torch.tensor(rows, dtype=torch.float64)
        layer.weight.data[:], layer.bias.data[:] = rows_by_state.T / 2, rows_by_state.sum(0) / 2
    return state_of(policy, cfg, fast)


def gradient_by_state(layer: torch.nn.Module) -> list[list[float]]:
    """What came back to the table's outputs, [4, K]: the weights of unit s got 2 g_s - sum(g), the biases sum(g)."""
    assert isinstance(layer, torch.nn.Linear)
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    return ((layer.weight.grad + layer.bias.grad[:, None]) / 2).T.tolist()


def norm(*by_state: list[float]) -> float:
    """Of the gradient of the table's weights and biases."""
    return math.sqrt(
        sum((2 * g - sum(column)) ** 2 for column in by_state for g in column) + sum(sum(c) ** 2 for c in by_state)
    )


def as_batch(fast: bool, **columns: Any) -> Batch:
    rows = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    if rows["action"].ndim == 1:
        rows["action"] = rows["action"].long()
    return (
        Batch(torch.eye(4, dtype=torch.float64), **rows)
        if not fast
        else Batch(np.eye(4), **{k: x.numpy() for k, x in rows.items()})
    )


def four_samples(small: Config, fast: bool, **changes: Any) -> tuple[State, Batch, Config]:
    plain = {"objective": ClippedSurrogate(0.2), "entropy": Entropy(0.0), "value_coef": 0.0, "max_grad_norm": 1e9}
    cfg = replace(small, normalize=Unnormalized(), **plain | changes)
    logits = [[math.log(1 - p) + 7, math.log(p) + 7] for p in NEW]
    batch = as_batch(
        fast,
        action=ACTION,
        logp_old=[math.log(p if a else 1 - p) for p, a in zip(OLD, ACTION, strict=True)],
        params_old=[[math.log(1 - p), math.log(p)] for p in OLD],
        advantage=(1, -1, -2, 3),
        returns=(3, 1, 0, 0),
        value_old=(0, 1, -1.25, 3),
    )
    return table(cfg, spaces.Discrete(2), logits, [1, 2, -1, 0.5], fast), batch, cfg


def metrics_of(state: State, batch: Batch, cfg: Config) -> dict[str, float]:
    (row,) = update_metrics([update(state, batch, cfg, Alone())], state, cfg, Alone()).tolist()
    return dict(zip(METRIC_NAMES, row, strict=True))


@both_ways
@pytest.mark.parametrize("microbatch", [512, 3], ids=["whole", "microbatches"])
def test_metrics_by_hand(small: Config, fast: bool, microbatch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MICROBATCH", microbatch)
    found = metrics_of(*four_samples(small, fast))
    assert found["kl"] == pytest.approx(KL, rel=1e-9)
    assert found["clip_fraction"] == 3 / 4  # 2, 3/2 and 1/2 of 2, 3/2, 1/2 and 9/8 are outside 0.8 to 1.2
    # H(1/2) = log 2 twice; H(1/4) = H(3/4) = 2 log 2 - 3/4 log 3 twice
    assert found["entropy"] == pytest.approx((6 * LOG2 - 1.5 * LOG3) / 4, rel=1e-9)
    assert found["value_loss"] == pytest.approx((4 + 1 + 1 + 0.25) / 4)  # (V - R)^2
    assert found["ratio_drift"] == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 / 8) / 4)
    # (sum r)^2 / sum r^2 = (41/8)^2 / (497/64) = 1681 / 497 of four
    assert found["effective_samples"] == pytest.approx(1681 / 497 / 4)
    # the policy's gradient, computed below: 0, 3/32, 0, 27/64 for action 1 and its negative for action 0
    g = [0, 3 / 32, 0, 27 / 64]
    assert found["grad_norm"] == pytest.approx(norm(g, [-x for x in g]))


@both_ways
@pytest.mark.parametrize(
    ("objective", "fraction"),
    [
        (ClippedSurrogate(0.6), 1 / 4),  # 2 alone is outside 0.4 to 1.6
        (ClippedSurrogate(0.4, decay=0.25), 1.0),  # 0.1 in the second iteration: 9/8 is outside as well
        (Reinforce(), 3 / 4),  # has none: as for 0.2
        (Surrogate(), 3 / 4),
    ],
    ids=str,
)
def test_the_clip_fraction_is_that_of_the_objectives_own_range(
    small: Config, fast: bool, objective: Any, fraction: float
) -> None:
    state, batch, cfg = four_samples(small, fast, objective=objective)
    state.iteration = 1
    assert metrics_of(state, batch, annealed(cfg, 1, 0.0))["clip_fraction"] == fraction


def test_a_runs_clip_fraction_and_gradient_are_those_of_the_annealed_range(small: Config, tmp_path: Path) -> None:
    """A range of 1e6 clips nothing; with decay 0 it is 0 from the second iteration on: every ratio but 1 is outside."""
    cfg = replace(small, objective=ClippedSurrogate(1e6, decay=0.0), total_steps=2 * 8 * 16, num_epochs=4)
    first, second = read(surefoot.train(cfg, run_dir=tmp_path / "a", ranks=1, quiet=True).path)
    assert first["clip_fraction"] == 0
    assert second["clip_fraction"] > 0.5


@both_ways
def test_the_metrics_value_loss_is_the_clipped_one_where_it_is_learned_from(small: Config, fast: bool) -> None:
    # V counts as at most 1/2 from V_old: 1/2, 3/2, -1, 5/2; the larger error counts:
    # 0: (1/2 - 3)^2 = 25/4 > 4; 1: 1 > (3/2 - 1)^2; 2: 1 = 1; 3: (5/2)^2 > 1/4
    found = metrics_of(*four_samples(small, fast, value_clip=0.5))
    assert found["value_loss"] == pytest.approx((6.25 + 1 + 1 + 6.25) / 4)


@both_ways
@pytest.mark.parametrize("microbatch", [512, 3], ids=["whole", "microbatches"])
def test_the_kl_that_steers_is_from_the_old_policy_to_the_new_one(
    small: Config, fast: bool, microbatch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "MICROBATCH", microbatch)
    state, batch, cfg = four_samples(small, fast, target_kl=1.0)
    assert update(state, batch, cfg, Alone()).kl == pytest.approx(KL, rel=1e-9)
    between = (KL + WRONG_KL) / 2  # the rate falls where KL exceeds twice the desired one, and is 0.003 above
    for desired, factor in ((between / 2, 1 / 1.5), (KL / 1.9, 1.0), (KL / 0.51, 1.0), (KL / 0.49, 1.5)):
        state, batch, cfg = four_samples(small, fast, learning_rate=AdaptiveRate(1e-3, desired_kl=desired))
        assert state.learning_rate == 1e-3
        state.learning_rate, before = 2e-3, state.flat.detach().clone()  # as adapted before
        assert update(state, batch, cfg, Alone()).kl == pytest.approx(KL, rel=1e-9)
        assert state.learning_rate == pytest.approx(2e-3 * factor)
        assert float((state.flat.detach() - before).abs().max()) == pytest.approx(2e-3 * factor)  # Adam's first step
    state, batch, cfg = four_samples(small, fast)
    assert math.isnan(update(state, batch, cfg, Alone()).kl)  # nothing depends on it: it is not computed


# Gradients of the loss by each state's output. Of log pi(a) by the logit of action 1: 1 - P(1) for a = 1, -P(1) for
# a = 0; for action 0 the negative. A quarter of each sample's counts.
GRADIENTS = {
    # J = log pi A, slope A:  -1/4 (1 * 1/2, -1 * 1/4, -2 * 3/4, 3 * -1/2)
    "reinforce": ({"objective": Reinforce()}, (-1 / 8, 1 / 16, 3 / 8, 3 / 8)),
    # J = r A, slope r A:  -1/4 (2 * 1/2, -3/2 * 1/4, -1 * 3/4, 27/8 * -1/2)
    "surrogate": ({"objective": Surrogate()}, (-1 / 4, 3 / 32, 3 / 16, 27 / 64)),
    # clipped: state 0 has A > 0 and r > 1.2, state 2 has A < 0 and r < 0.8: flat
    "clipped": ({"objective": ClippedSurrogate(0.2)}, (0, 3 / 32, 0, 27 / 64)),
    # H = -sum P log P, slope -P(1) (log P(1) + H): 0, -3/16 log 3, 3/16 log 3, 0; -1/4 of 0.4 times it is added
    "entropy": (
        {"entropy": Entropy(0.4)},
        (0, 3 / 32 + 0.1 * 3 / 16 * LOG3, -0.1 * 3 / 16 * LOG3, 27 / 64),
    ),
    # H(pi, pi_old) = -sum P log P_old, slope P(1) P(0) log(P_old(0) / P_old(1)): 1/4 log 3, 0, 0, 1/4 log 4/5
    "cross entropy": (
        {"entropy": OldPolicyCrossEntropy(0.4)},
        (-0.1 / 4 * LOG3, 3 / 32, 0, 27 / 64 - 0.1 / 4 * math.log(0.8)),
    ),
}  # fmt: skip


@both_ways
@pytest.mark.parametrize("microbatch", [512, 3], ids=["whole", "microbatches"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_policys_gradient_by_hand(
    small: Config, fast: bool, name: str, microbatch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "MICROBATCH", microbatch)
    changes, want = GRADIENTS[name]
    state, batch, cfg = four_samples(small, fast, **changes)
    update(state, batch, cfg, Alone())
    assert gradient_by_state(state.policy.actor) == [pytest.approx([-g, g], abs=1e-12) for g in want]
    assert state.policy.critic is not None
    assert gradient_by_state(state.policy.critic) == [[0]] * 4


@both_ways
def test_advantages_are_normalised_over_the_minibatch_where_that_is_chosen(small: Config, fast: bool) -> None:
    # 1, -1, -2, 3: mean 1/4, mean square of what is left 14.75 / 4
    std = math.sqrt(14.75 / 4)
    state, batch, cfg = four_samples(small, fast, objective=Reinforce())
    update(state, batch, replace(cfg, normalize=OverMinibatch()), Alone())
    # log pi A: -1/4 (0.75 * 1/2, -1.25 * 1/4, -2.25 * 3/4, 2.75 * -1/2) / std
    want = [x / std for x in (-0.375 / 4, 0.3125 / 4, 1.6875 / 4, 1.375 / 4)]
    assert gradient_by_state(state.policy.actor) == [pytest.approx([-g, g], abs=1e-7) for g in want]


@both_ways
def test_a_rank_gives_its_share_of_the_gradient_and_of_the_kl(small: Config, fast: bool) -> None:
    class Half(Alone):
        """One of two ranks, before anything is summed over them."""

        def __init__(self) -> None:
            super().__init__()
            self.count = 2

    state, batch, cfg = four_samples(small, fast, target_kl=9.0)
    info = update(state, batch, cfg, Half())
    assert info.kl == pytest.approx(KL / 2, rel=1e-9)
    want = (0, 3 / 32 / 2, 0, 27 / 64 / 2)
    assert gradient_by_state(state.policy.actor) == [pytest.approx([-g, g], abs=1e-12) for g in want]


@both_ways
@pytest.mark.parametrize(
    ("value_clip", "want"),
    [
        # 2 (V - R) = -4, 2, -2, 1; times value_coef 1/2, of four samples
        (math.inf, (-1 / 2, 1 / 4, -1 / 4, 1 / 8)),
        # flat where V has moved by more than 1/2 from V_old and the clipped error is the larger one: states 0 and 3
        (0.5, (0, 1 / 4, -1 / 4, 0)),
    ],
)
def test_the_values_gradient_by_hand(small: Config, fast: bool, value_clip: float, want: tuple[float, ...]) -> None:
    state, batch, cfg = four_samples(small, fast, value_coef=0.5, value_clip=value_clip)
    info = update(state, batch, cfg, Alone())
    assert state.policy.critic is not None
    assert gradient_by_state(state.policy.critic) == [[pytest.approx(g, abs=1e-12)] for g in want]
    g = [0, 3 / 32, 0, 27 / 64]  # the policy's, clipped
    assert info.grad_norm == pytest.approx(norm(g, [-x for x in g], [*want]))


@both_ways
def test_the_first_step_moves_every_parameter_by_the_learning_rate_against_its_gradient(
    small: Config, fast: bool
) -> None:
    """Adam's: m / sqrt(v) = g / |g|. Clipping the norm changes the gradient's length, not the step's."""
    for max_grad_norm in (1e9, 0.01):
        state, batch, cfg = four_samples(small, fast, value_coef=0.5, max_grad_norm=max_grad_norm)
        before = state.flat.detach().clone()
        info = update(state, batch, cfg, Alone())
        assert info.grad_norm > 0.5  # before clipping
        assert float(state.gradient.norm()) == pytest.approx(min(info.grad_norm, max_grad_norm))
        (row,) = update_metrics([info], state, cfg, Alone()).tolist()
        assert row[METRIC_NAMES.index("grad_norm")] == pytest.approx(info.grad_norm)
        moved = state.flat.detach() - before
        assert int((state.gradient.abs() > 1e-4).sum()) == 2 * 5 + 5  # both heads' weights and biases
        want = -1e-3 * state.gradient.sign() * (state.gradient.abs() > 1e-4)
        assert moved.tolist() == pytest.approx(want.tolist(), abs=1e-6)


@both_ways
def test_a_gaussians_gradient_and_metrics_by_hand(small: Config, fast: bool) -> None:
    # mean 1, sigma 2; old mean 0, sigma 1. Actions 5, -3, 1, 0 with z = (a - 1) / 2 = 2, -2, 0, -1/2
    cfg = replace(small, normalize=Unnormalized(), objective=Reinforce(), value_coef=0.0, max_grad_norm=1e9)
    cfg = replace(cfg, entropy=Entropy(0.4))
    state = table(cfg, spaces.Box(-9, 9, (1,)), [[1.0]] * 4, [0.0] * 4, fast)
    log_std = state.policy.log_std
    assert log_std is not None
    assert log_std.grad is not None
    log_std.data[:] = LOG2
    nothing = (0, 0, 0, 0)
    # log pi = -log 2 - z^2 / 2 - log(2 pi) / 2: ratios 1, 2, 1/2 and 1 to this
    logp = [-LOG2 - z * z / 2 - math.log(2 * math.pi) / 2 for z in (2, -2, 0, -0.5)]
    logp = [x - math.log(r) for x, r in zip(logp, (1, 2, 0.5, 1), strict=True)]
    action, advantage = [[5], [-3], [1], [0]], (1, 2, -3, 4)
    batch = as_batch(
        fast,
        action=action,
        logp_old=logp,
        params_old=[[0, 0]] * 4,
        advantage=advantage,
        returns=nothing,
        value_old=nothing,
    )
    found = metrics_of(state, batch, cfg)
    # log pi A by the mean: A z / sigma = 1, -2, 0, -1; -1/4 of each
    assert gradient_by_state(state.policy.actor) == [[pytest.approx(g, abs=1e-12)] for g in (-1 / 4, 1 / 2, 0, 1 / 4)]
    # by log sigma: A (z^2 - 1) = 3, 6, 3, -3, a mean of 9/4; the entropy's is 1, times 0.4
    assert log_std.grad.tolist() == [pytest.approx(-9 / 4 - 0.4)]
    assert found["entropy"] == pytest.approx(LOG2 + 0.5 * math.log(2 * math.pi * math.e))
    # KL(old || new) = log(2 / 1) + (1 + (0 - 1)^2) / (2 * 4) - 1/2; the other way round it would be 2 - log 2
    assert found["kl"] == pytest.approx(LOG2 - 1 / 4)
    assert found["ratio_drift"] == pytest.approx((0 + 1 + 1 / 2 + 0) / 4)
    assert found["effective_samples"] == pytest.approx(4.5**2 / (1 + 4 + 0.25 + 1) / 4)


# The whole update, written out sample by sample


HEADS = {
    "categorical": spaces.Discrete(3),
    "multi-categorical": spaces.MultiDiscrete([2, 3]),
    "gaussian": spaces.Box(-2, 2, (2,)),
}
EPS, VALUE_CLIP, VALUE_COEF, COEF, MAX_NORM, RATE = 0.15, 0.4, 0.7, 0.05, 0.4, 1e-2


def log_softmax(x: Any) -> list[float]:
    total = math.log(sum(math.exp(y) for y in x))
    return [y - total for y in x]


def logp_and_entropy(head: str, output: Any, log_std: Any, action: Any) -> tuple[float, float]:
    """log pi(a|s) and H(pi) from a network's outputs for one observation, in plain arithmetic."""
    if head == "gaussian":
        logp = entropy = 0.0
        for mean, s, a in zip(output, log_std, action, strict=True):
            sigma = math.exp(s)
            logp += math.log(math.exp(-0.5 * ((a - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)))
            entropy += 0.5 * math.log(2 * math.pi * math.e * sigma**2)
        return logp, entropy
    parts, chosen = ([output], [action]) if head == "categorical" else ([output[:2], output[2:]], action)
    tables = [log_softmax(part) for part in parts]
    entropy = -sum(math.exp(x) * x for part in tables for x in part)
    return sum(part[int(a)] for part, a in zip(tables, chosen, strict=True)), entropy


def written_loss(head: str, parameters: dict[str, Any], batch: Batch) -> float:
    """-mean min(r A, clip(r) A) + c_v mean L_V - c_e mean H of an MLP, one sample after the other."""
    total = 0.0
    for i in range(len(batch.obs)):
        layers = [batch.obs[i], batch.obs[i]]  # of the actor, of the critic
        for n in (0, 2):
            weight, bias = parameters[f"body.{n}.weight"], parameters[f"body.{n}.bias"].reshape(2, -1)
            layers = [np.tanh(weight[k] @ layers[k] + bias[k]) for k in (0, 1)]
        output = parameters["actor.weight"] @ layers[0] + parameters["actor.bias"]
        value = float(parameters["critic.weight"][0] @ layers[1] + parameters["critic.bias"][0])
        logp, entropy = logp_and_entropy(head, output, parameters.get("log_std"), batch.action[i])
        r, a, old, goal = math.exp(logp - batch.logp_old[i]), batch.advantage[i], batch.value_old[i], batch.returns[i]
        gain = min(r * a, min(max(r, 1 - EPS), 1 + EPS) * a)
        moved = min(max(value - old, -VALUE_CLIP), VALUE_CLIP)
        total += -gain + VALUE_COEF * max((value - goal) ** 2, (old + moved - goal) ** 2) - COEF * entropy
    return total / len(batch.obs)


@both_ways
@pytest.mark.parametrize("head", HEADS)
def test_three_updates_are_the_written_formulas(small: Config, fast: bool, head: str) -> None:
    """Finite differences of the written loss, clipped to a norm of 0.4, stepped by Adam as its paper writes it."""
    cfg = replace(small, objective=ClippedSurrogate(EPS), entropy=Entropy(COEF), value_coef=VALUE_COEF)
    cfg = replace(cfg, value_clip=VALUE_CLIP, max_grad_norm=MAX_NORM, learning_rate=FixedRate(RATE))
    cfg = replace(cfg, normalize=Unnormalized())
    torch.manual_seed(3)
    learner = MLP((3, 2)).build(spaces.Box(-1, 1, (2,)), HEADS[head]).double()
    for parameter in learner.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    n = 11
    obs, noise = torch.randn(n, 2).double(), torch.rand(n, *learner.noise_shape).double()
    with torch.no_grad():
        dist, value = learner.evaluate(obs)
        action = dist.sample(noise)
        logp = dist.log_prob(action) + 0.3 * torch.randn(n)
        batch = Batch(
            obs,
            action,
            logp,
            dist.params,
            2 * torch.randn(n).double(),
            value + torch.randn(n),
            value + 0.5 * torch.randn(n),
        )
    arrays = batch.each(torch.Tensor.numpy)
    state = state_of(learner, cfg, fast)
    own = {name: p.detach().numpy().copy() for name, p in learner.named_parameters()}
    mean, square = ({name: np.zeros_like(p) for name, p in own.items()} for _ in range(2))
    for k in (1, 2, 3):
        info = update(state, arrays if fast else batch, cfg, Alone())
        gradient = {name: np.zeros_like(p) for name, p in own.items()}
        for name, p in own.items():
            for at in np.ndindex(p.shape):
                here, losses = p[at], []
                for step in (1e-6, -1e-6):
                    p[at] = here + step
                    losses.append(written_loss(head, own, arrays))
                p[at] = here
                gradient[name][at] = (losses[0] - losses[1]) / 2e-6
        length = math.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
        assert info.grad_norm == pytest.approx(length, rel=1e-6)
        assert length > MAX_NORM
        for name, p in own.items():
            g = gradient[name] * (MAX_NORM / length)
            mean[name], square[name] = 0.9 * mean[name] + 0.1 * g, 0.999 * square[name] + 0.001 * g * g
            p -= RATE * (mean[name] / (1 - 0.9**k)) / (np.sqrt(square[name] / (1 - 0.999**k)) + cfg.optimizer.eps)
        for name, p in learner.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), own[name], rtol=0, atol=2e-6, err_msg=name)


def test_explained_variance_by_hand(small: Config, tmp_path: Path) -> None:
    """1 - var(R - V) / var(R): 1 for a critic that knows, 0 for a constant, below 0 for one that is worse."""
    state, rollout, batch = first_batch(small)
    state.envs.close()
    metrics = update_metrics([update(state, batch, small, Alone())], state, small, Alone())
    reporter = Reporter(small, tmp_path, Alone(), state, 0.0, True)
    returns = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)
    for values in ([[1, 1], [4, 4]], [[1, 2], [3, 6]], [[7, 7], [7, 7]], [[-1, -2], [-3, -6]], [[2, 3], [4, 7]]):
        rollout.value, rollout.reward = torch.tensor(values, dtype=torch.float64), torch.zeros(2, 2)
        state.steps += 4
        reporter.on_iteration(state, rollout, returns, metrics, 0.1)
    reporter.close()
    # var(R): mean 3, (4 + 1 + 0 + 9) / 4 = 3.5. R - V = 0, 1, -1, 2: mean 1/2, squares 6 / 4 - 1/4 = 1.25
    # then nothing is left; all of it is; R - V = 2 R, whose variance is 4 times as large; a constant error of -1
    want = [1 - 1.25 / 3.5, 1, 0, 1 - 4, 1]
    assert [row["explained_variance"] for row in read(tmp_path)] == pytest.approx(want, abs=1e-12)
