"""TRPO: the natural gradient by hand, the bound, the line search, and a critic whose learning moves no policy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import surefoot
import surefoot.loop
from heads import HEADS, batch_for, policy_for
from helpers import assert_same_run, interrupt_at, rows, state_of
from surefoot.algorithm import trpo
from surefoot.algorithm.objectives import Entropy, TrustRegion
from surefoot.algorithm.schedules import FixedRate
from surefoot.algorithm.state import State, initial
from surefoot.algorithm.trpo import WholeRollout, conjugate_gradient, fisher_product, gain_and_kl, kl_gradients
from surefoot.algorithm.update import Batch, update_metrics
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.errors import Fault, UserError
from surefoot.models.memory import GRU, LSTM
from surefoot.models.networks import MLP, SmallCNN
from surefoot.models.optimizers import Muon
from surefoot.models.policy import Policy
from surefoot.parallel.ranks import Alone
from surefoot.presets import CARTPOLE, LADDER, TRPO
from surefoot.runs import worker

PLAIN = replace(CARTPOLE, objective=TrustRegion(damping=0.0), learning_rate=FixedRate(1e-3))


@pytest.fixture
def region(small: Config) -> Config:
    return replace(small, objective=TrustRegion(), learning_rate=FixedRate(1e-3))


def at_present(policy: Policy, batch: Batch) -> WholeRollout:
    """The batch as if `policy` had played it."""
    with torch.no_grad():
        dist = policy.evaluate(batch.obs)[0]
    return WholeRollout(**vars(replace(batch, params_old=dist.params, logp_old=dist.log_prob(batch.action))))


@pytest.mark.parametrize("damping", [0.0, 1e6])
def test_the_step_of_a_softmax_by_hand(damping: float, region: Config) -> None:
    """Without damping along the natural gradient, with very much of it along the gradient.

    One state, three actions with probabilities p, their logits the only parameters that matter.
    g = F a with F = diag(p) - p p^T and a_k the mean advantage of action k: F^-1 g is a, up to a constant that changes
    no probability; the conjugate gradient's has sum 0. The step of length delta: s^T F s = 2 delta.
    """
    p, advantage = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.3, 0.2], [2.0, -1.0, 3.0]))
    policy = MLP((4,)).build(spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)).double()
    for parameter in policy.parameters():
        parameter.data.zero_()
    policy.actor.bias.data.copy_(p.log())
    counts = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)  # every action as often as it is probable
    zeros = torch.zeros(10).double()
    played = zeros[:, None].expand(10, 2), counts, p.log()[counts], p.log().expand(10, 3)
    batch = WholeRollout(*played, advantage[counts], zeros, zeros)
    delta = 1e-8
    cfg = replace(region, objective=TrustRegion(max_kl=delta, damping=damping), entropy=Entropy(0.0))
    state = state_of(policy, cfg)
    before = policy.actor.bias.detach().clone()
    info = trpo.update(state, batch, cfg, Alone())
    moved = policy.actor.bias.detach() - before
    # p . a = 1 - 0.3 + 0.6 = 1.3; a - mean(a) = (2/3, -7/3, 5/3); a^T F a = 2 + 0.3 + 1.8 - 1.69 = 2.41
    direction = torch.tensor([2 / 3, -7 / 3, 5 / 3], dtype=torch.float64)
    full = math.sqrt(2 * delta / 2.41) * direction
    if damping:  # H + damping is nearly damping: x = g / damping, x^T H x = |g|^2 / damping
        gradient = torch.tensor([0.35, -0.69, 0.34], dtype=torch.float64)  # p (a - 1.3)
        full = math.sqrt(2 * delta / damping) * gradient / gradient.norm()
    apart = [float((moved - length * full).abs().max() / full.abs().max()) for length in (1.0, 0.8)]
    assert min(apart) < 1e-6  # the quadratic is not quite the divergence
    assert info.kl <= delta
    assert (info.kl > 0.6 * delta) == (damping == 0)
    others = [x for name, x in policy.named_parameters() if name != "actor.bias"]
    assert all((x == 0).all() for x in others)


@pytest.mark.parametrize("head", HEADS)
def test_the_fisher_product_is_what_the_divergence_grows_by(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL(pi || pi moved by e v) = e^2 / 2 v^T H v, in random directions."""
    monkeypatch.setattr("surefoot.models.policy.MICROBATCH", 10)
    policy = policy_for(head)
    state = state_of(policy, PLAIN)
    batch = at_present(policy, batch_for(policy, head))
    before, draw = state.flat.detach().clone(), torch.Generator().manual_seed(0)
    for _ in range(3):
        v = torch.randn(len(before), generator=draw, dtype=torch.float64)
        curvature = float(v.dot(fisher_product(state, kl_gradients(state, batch, 1), v, Alone())))
        e = 1e-4 / float(v.norm())
        found = []
        for sign in (1, -1):  # the cubic term goes
            state.flat.data.copy_(before + sign * e * v)
            found.append(gain_and_kl(state, batch, PLAIN, Alone())[1])
        state.flat.data.copy_(before)
        assert curvature > 0
        assert sum(found) / 2 == pytest.approx(e * e / 2 * curvature, rel=1e-4)


@pytest.mark.parametrize(("every", "copies", "learned_from"), [(1, 16, 80), (2, 16, 40), (4, 32, 40)])
def test_a_part_of_the_rollout_estimates_the_fisher_matrix_of_all(
    every: int, copies: int, learned_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same 5 rows several times: parts of whole copies have the product of all, and a weight stays what it is."""
    policy = policy_for("categorical")
    state = state_of(policy, PLAIN)
    five = at_present(policy, batch_for(policy, "categorical")).each(lambda x: x[:5])
    many = replace(five.each(lambda x: torch.cat([x] * copies)), weight=1.5)
    v = torch.randn(len(state.flat), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 1.5 * fisher_product(state, kl_gradients(state, five, 1), v, Alone())
    rows, evaluate = list[int](), Policy.evaluate
    monkeypatch.setattr(
        Policy, "evaluate", lambda self, obs, *more: (rows.append(len(obs)), evaluate(self, obs, *more))[1]
    )
    found = fisher_product(state, kl_gradients(state, many, every), v, Alone())
    assert torch.allclose(found, expected, rtol=1e-10, atol=0)
    assert sum(rows) == learned_from
    nothing = replace(many, weight=0.0)  # a rank without a valid step
    assert not fisher_product(state, kl_gradients(state, nothing, every), v, Alone()).any()


def test_conjugate_gradients_solve_what_a_matrix_solver_solves() -> None:
    draw = torch.Generator().manual_seed(0)
    root, b = (torch.randn(6, *shape, generator=draw, dtype=torch.float64) for shape in ((6,), ()))
    matrix = root @ root.T + 0.1 * torch.eye(6)
    x, curvature = conjugate_gradient(lambda v: matrix @ v, b, 20)
    assert torch.allclose(x, torch.linalg.solve(matrix, b), rtol=1e-8)
    assert curvature == pytest.approx(float(x @ matrix @ x), rel=1e-8)
    early, curvature = conjugate_gradient(lambda v: matrix @ v, b, 2)
    assert curvature == pytest.approx(float(early @ matrix @ early), rel=1e-8)
    nothing, curvature = conjugate_gradient(lambda v: matrix @ v, 0 * b, 20)
    assert (float(nothing.abs().max()), curvature) == (0, 0)


def test_rounding_does_not_lead_conjugate_gradients_elsewhere() -> None:
    """Two large eigenvalues beside many small ones: the last bit of b must not become the sixth digit of x."""
    draw = torch.Generator().manual_seed(0)
    eigenvalues = torch.cat((torch.tensor([100.0, 14.0]), torch.linspace(0.1, 0.5, 38))).double()
    vectors = torch.linalg.qr(torch.randn(40, 40, generator=draw, dtype=torch.float64))[0]
    b, noise = torch.randn(2, 40, generator=draw, dtype=torch.float64)
    found = [
        conjugate_gradient(lambda v: vectors @ (eigenvalues * (vectors.T @ v)), some, 10)
        for some in (b, b * (1 + 1e-15 * noise))
    ]
    (x, curvature), (y, other) = found
    assert float((x - y).norm() / x.norm()) < 1e-12
    assert curvature == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("max_kl", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("head", HEADS)
def test_a_step_obeys_the_bound_and_is_better(head: str, max_kl: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on the divergence from the policy that played, also where that is not quite the present one."""
    monkeypatch.setattr("surefoot.models.policy.MICROBATCH", 10)
    policy = policy_for(head)
    cfg = replace(PLAIN, objective=TrustRegion(max_kl, damping=1e-3), entropy=Entropy(0.01))
    batch = at_present(policy, batch_for(policy, head))
    state = state_of(policy, cfg)
    before, (start, _) = state.flat.detach().clone(), gain_and_kl(state, batch, replace(cfg, value_coef=0.0), Alone())
    info = trpo.update(state, batch, cfg, Alone())
    gain, kl = gain_and_kl(state, batch, replace(cfg, value_coef=0.0), Alone())
    assert 0 < kl <= max_kl
    assert info.kl == pytest.approx(kl, rel=1e-12)
    assert float(update_metrics([info], state, cfg, Alone())[0, 0]) == info.kl
    if max_kl < 1:
        assert kl > 0.3 * max_kl
    assert gain > start
    critic = [x for name, x in policy.named_parameters() if name.startswith("critic")]
    assert not torch.equal(before, state.flat)
    state.flat.data.copy_(before)
    assert all((x.grad == 0).all() for x in critic)


@pytest.mark.parametrize("seen", ["nothing is better", "nothing is near"])
def test_where_no_length_of_the_step_will_do_nothing_moves(seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_for("gaussian")
    state = state_of(policy, PLAIN)
    before, tried = state.flat.detach().clone(), list[torch.Tensor]()

    def measured(*_: Any) -> tuple[float, float]:
        tried.append(state.flat.detach().clone())
        return (0.0, 0.0) if seen == "nothing is better" else (float(len(tried)), 1.0)

    monkeypatch.setattr(trpo, "gain_and_kl", measured)
    batch = at_present(policy, batch_for(policy, "gaussian"))
    assert trpo.update(state, batch, PLAIN, Alone()).kl == 0
    assert torch.equal(before, state.flat)
    steps = [float((x - before).norm()) for x in tried]
    assert len(steps) == 1 + 10
    assert steps[0] == 0
    assert steps[2:] == pytest.approx([0.8 * x for x in steps[1:-1]], rel=1e-9)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    policy = policy_for("categorical")
    batch = at_present(policy, batch_for(policy, "categorical"))
    batch.advantage[3] = math.nan
    state = state_of(policy, replace(PLAIN, skip_updates=1))
    before = state.flat.detach().clone()
    trpo.update(state, batch, replace(PLAIN, skip_updates=1), Alone())
    assert torch.equal(before, state.flat)
    with pytest.raises(Fault, match="not finite"):
        trpo.update(state, batch, PLAIN, Alone())


IMAGES: dict[str, Any] = {"env": Gymnasium("makers:Image"), "network": SmallCNN((4, 8), hidden=32)}
SEPARATE: dict[str, Any] = {"network": SmallCNN((4, 8), hidden=32, separate_critic=True)}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        IMAGES,
        IMAGES | SEPARATE,
        IMAGES | {"optimizer": Muon(units=16)},
        {"memory": GRU(6)},
        IMAGES | {"memory": LSTM(6)},
        IMAGES | SEPARATE | {"memory": LSTM(6)},
    ],
    ids=["mlp", "images", "separate", "muon", "remembering mlp", "remembering images", "remembering separate"],
)
def test_the_critic_learns_and_the_policy_stays_to_the_bit(region: Config, fields: dict[str, Any]) -> None:
    """Also where they share a network; the first batch of a rollout is the policy's, which leaves the critic alone."""
    cfg = replace(region, **fields, num_steps=(8,), minibatch_size=32)
    state: State = initial(cfg, Alone())
    if state.policy.memory is not None:  # it has learned to remember
        torch.nn.init.normal_(state.policy.memory.add.weight)
    rollout = surefoot.loop.collect(cfg, state)
    advantage, returns = surefoot.loop.advantages(rollout, cfg, state)
    params, value = rollout.evaluated_by(state.policy)
    begun = {k: v.clone() for k, v in state.policy.state_dict().items() if k.startswith("critic")}
    first, *rest = trpo.batches(rollout, advantage, returns, cfg, state, Alone())
    assert len(first.obs) == 64
    assert len(rest) == 2 * 2
    for batch in rest:
        trpo.update(state, batch, cfg, Alone())
    now, later = rollout.evaluated_by(state.policy)
    assert torch.equal(now, params)
    assert not torch.equal(later, value)
    assert (later[:64] - returns.flatten()).square().mean() < (value[:64] - returns.flatten()).square().mean()
    critic = {k: state.policy.state_dict()[k].clone() for k in begun}
    seen = "critic_body" if state.policy.memory is not None else "nothing"  # by the memory, and so by the policy
    assert all(torch.equal(v, critic[k]) == k.startswith(seen) for k, v in begun.items())
    info = trpo.update(state, first, cfg, Alone())
    assert not torch.equal(rollout.evaluated_by(state.policy)[0], params)
    assert 0 < info.kl <= 0.01
    assert all(torch.equal(v, state.policy.state_dict()[k]) != k.startswith(seen) for k, v in critic.items())
    state.envs.close()
    alone = replace(cfg, value_coef=0.0)
    assert len([*trpo.batches(rollout, advantage, returns, alone, state, Alone())]) == 1


@pytest.mark.usefixtures("signals_interrupt")
def test_a_run_resumes_to_the_same_bits(region: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surefoot.train(region, run_dir=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "Reporter", interrupt_at(2))
        with pytest.raises(KeyboardInterrupt):
            surefoot.train(region, run_dir=tmp_path / "parts", quiet=True)
    surefoot.resume(tmp_path / "parts", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    found = rows(tmp_path / "whole")
    assert all(0 < float(str(row["kl"])) <= 0.01 for row in found)
    assert found[0]["ratio_drift_first"] == pytest.approx(0, abs=1e-6)


def test_the_rung_stands_beside_the_last_and_changes_the_objective_alone() -> None:
    assert replace(TRPO, task="ppo", objective=LADDER[-1].objective) == LADDER[-1]


def test_what_bounds_the_divergence_twice_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^learning_rate is AdaptiveRate; allowed is FixedRate or LinearRate: .*max_kl"
    ):
        replace(CARTPOLE, objective=TrustRegion())
    with pytest.raises(UserError, match=r"^target_kl is 0\.02; allowed is inf: .*max_kl"):
        replace(TRPO, target_kl=0.02)


@pytest.mark.slow
def test_it_solves_cartpole(tmp_path: Path) -> None:
    how: dict[str, Any] = {"num_steps": (128,), "num_epochs": 10, "learning_rate": FixedRate(1e-3)}
    run = surefoot.train("cartpole", objective=TrustRegion(), **how, run_dir=tmp_path / "a", quiet=True)
    assert run.evaluation.mean > 475
