"""One update: its gradient against finite differences, its pieces, its figures, and the learning rate that follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import surefoot
from surefoot.algorithm.advantages import FutureReturn, OverGames
from surefoot.algorithm.objectives import ClippedSurrogate, Entropy, Reinforce
from surefoot.algorithm.rollout import Rollout, collect
from surefoot.algorithm.schedules import AdaptiveRate, LinearRate, annealed
from surefoot.algorithm.state import State, flat_parameters, initial
from surefoot.algorithm.update import METRIC_NAMES, Batch, minibatches, update, update_metrics
from surefoot.config import Config
from surefoot.envs.gym import GymnasiumEnv
from surefoot.errors import Fault, UserError
from surefoot.models import policy
from surefoot.parallel.ranks import Alone


def preprocessed(cfg: Config) -> tuple[State, Rollout, Batch]:
    state = initial(cfg, Alone())
    state.policy.double()
    vars(state).update(flat_parameters(state.policy, cfg, Alone()))
    noise = torch.rand(16, cfg.num_envs, generator=torch.Generator().manual_seed(0))
    r = collect(state.policy, state.envs, noise)
    weight = torch.randn(16, cfg.num_envs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.randn(16, cfg.num_envs, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = replace(cfg, minibatch_size=0)
    return state, r, next(minibatches(r, weight, target, whole, 0, 0, slice(0, cfg.num_envs), True))


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
    state, _, batch = preprocessed(cfg)
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
    state, _, batch = preprocessed(cfg)
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
    state, _, batch = preprocessed(small)
    rows = update_metrics([update(state, batch, small, Alone()) for _ in range(2)], state, small, Alone())
    stats, second = (dict(zip(METRIC_NAMES, row.tolist(), strict=True)) for row in rows)
    assert stats["kl"] == pytest.approx(0, abs=1e-12)
    assert stats["ratio_drift"] == pytest.approx(0, abs=1e-12)
    assert stats["clip_fraction"] == 0
    assert 0 < stats["entropy"] <= 1.0987  # log 3
    assert second["kl"] > 0
    assert second["ratio_drift"] > 0


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


def test_long_gradients_are_shortened(small: Config) -> None:
    cfg = replace(small, max_grad_norm=1e-3)
    state, _, batch = preprocessed(cfg)
    update(state, batch, cfg, Alone())
    assert float(state.gradient.norm()) == pytest.approx(1e-3)


def test_a_gradient_that_is_not_finite_changes_nothing(small: Config) -> None:
    state, _, batch = preprocessed(small)
    before = state.flat.detach().clone()
    batch.advantage[3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        update(state, batch, small, Alone())
    assert torch.equal(before, state.flat)


def test_nothing_is_learned_from_games_that_all_agree(small: Config) -> None:
    """The lesson's zero gradient: equal games normalise to weight 0, and REINFORCE then has nothing to push."""
    cfg = replace(small, objective=Reinforce(), entropy=Entropy(0.0), value_coef=0.0)
    state, r, _ = preprocessed(cfg)
    r.reward[:] = 0.1
    r.terminated[:] = False
    weight, target = FutureReturn(0.9)(r)
    batch = next(minibatches(r, OverGames()(weight), target, replace(cfg, minibatch_size=0), 0, 0, slice(0, 8), True))
    update(state, batch, cfg, Alone())
    assert float(state.gradient.abs().max()) == 0


def test_clipping_uses_the_iterations_epsilon(small: Config) -> None:
    """With decay 0.5, clip_range at iteration 3 is an eighth: a ratio of 1.05 is clipped then and not at the start."""
    cfg = replace(small, objective=ClippedSurrogate(0.2, 0.5), entropy=Entropy(0.0), value_coef=0.0)
    state, _, batch = preprocessed(cfg)
    batch.logp = batch.logp - 0.0488  # ratio 1.05 everywhere
    batch.advantage = batch.advantage * 0 + 1
    update(state, batch, annealed(cfg, state.iteration, state.progress(cfg)), Alone())
    assert float(state.gradient.norm()) > 0
    state, _, batch2 = preprocessed(cfg)
    batch2.logp, batch2.advantage = batch2.logp - 0.0488, batch2.advantage * 0 + 1
    state.iteration = 3
    update(state, batch2, annealed(cfg, state.iteration, state.progress(cfg)), Alone())
    assert float(state.gradient.norm()) == 0


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
    assert LinearRate(1e-3)(0.5, 0.0, 0.25) == pytest.approx(7.5e-4)
    assert LinearRate(1e-3)(0.5, 0.0, 1.5) == 0.0
