"""Adam and Muon over the flat parameter: against PyTorch's own, their directions, and their state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from surefoot.algorithm.state import initial
from surefoot.config import Config
from surefoot.models.adam import AdamSteps
from surefoot.models.distributions import Categorical, Head
from surefoot.models.muon import orthogonalize
from surefoot.models.optimizers import Adam, Muon
from surefoot.models.policy import Policy, flatten, matrices
from surefoot.parallel.ranks import Alone
from surefoot.presets import PONG


def small_policy() -> Policy:
    torch.manual_seed(0)
    from torch import nn

    body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8))
    return Policy(nn.Identity(), body, nn.Linear(8, 3), nn.Linear(8, 1), Head(3, (), Categorical)).double()


@pytest.mark.parametrize(("rows", "columns"), [(16, 128), (128, 16), (32, 32)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_lengths(
    rows: int, columns: int, dtype: torch.dtype, error: float
) -> None:
    torch.manual_seed(1)
    u, _, vh = torch.linalg.svd(torch.randn(rows, columns, dtype=torch.float64), full_matrices=False)
    lengths = torch.linspace(1, 0.05, 16 if rows != columns else 32, dtype=torch.float64)
    inside = u.mT @ orthogonalize((u @ lengths.diag() @ vh).to(dtype)).double() @ vh.mT
    assert inside.diagonal().min() > 0.6
    assert inside.diagonal().max() < 1.3
    assert (inside - inside.diagonal().diag()).abs().max() < error


@pytest.mark.parametrize("units", [0, 4, 5])
def test_heads_and_biases_move_as_by_pytorchs_adam_and_matrices_as_by_pytorchs_muon(units: int) -> None:
    """Of layers with 6 and 8 units: whole; the second as two matrices of 4; whole again."""
    policy = small_policy()
    flat = flatten(policy)
    assert flat.grad is not None
    optimizer = Muon(momentum=0.9, units=units).build(policy, flat)
    first = {id(p) for p in matrices(policy)}
    twins = {id(p): torch.nn.Parameter(p.detach().clone()) for p in policy.parameters()}
    size = {6: 6, 8: 4 if units == 4 else 8}
    parts = [
        [torch.nn.Parameter(x.clone()) for x in p.detach().flatten(1).split(size[len(p)])] for p in matrices(policy)
    ]
    flattened = [part for some in parts for part in some]
    theirs = torch.optim.Muon(flattened, 0.01, weight_decay=0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam([twins[id(p)] for p in policy.parameters() if id(p) not in first], lr=0.01)
    for _ in range(3):
        flat.grad.copy_(torch.randn_like(flat))
        for p in policy.parameters():
            twins[id(p)].grad = p.grad
        for p, some in zip(matrices(policy), parts, strict=True):
            assert p.grad is not None
            for part, grad in zip(some, p.grad.flatten(1).split(size[len(p)]), strict=True):
                part.grad = grad
        optimizer.step(0.01)
        theirs.step()
        adam.step()
    rest = [p for p in policy.parameters() if id(p) not in first]
    assert len(first) == 2
    assert len(rest) == 6
    for p in rest:
        assert torch.allclose(p, twins[id(p)], rtol=0, atol=1e-12)
    for p, some in zip(matrices(policy), parts, strict=True):  # theirs computes in bfloat16
        twin = torch.cat([*some])
        moved, their_move = p.detach().flatten(1) - twins[id(p)].flatten(1), twin - twins[id(p)].flatten(1)
        assert torch.nn.functional.cosine_similarity(moved.flatten(), their_move.flatten(), 0) > 0.999
        assert 0.97 < moved.norm() / their_move.norm() < 1.03


@pytest.mark.parametrize("kind", [Adam(), Muon(units=4), Muon(units=0)], ids=str)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_ranks_that_step_parts_step_the_whole(kind: Adam | Muon, count: int) -> None:
    """Each steps what the others exit_now, also where some have nothing; moments are in one place."""
    whole, shared = small_policy(), small_policy()
    flat, numbers = flatten(whole), flatten(shared)
    moments = torch.zeros(2, len(flat), dtype=torch.float64)
    alone = kind.build(whole, flat)
    parts = [kind.build(shared, numbers, moments, rank, count) for rank in range(count)]
    assert [*range(len(flat))] == [i for each in parts for i in range(len(flat))[each.part]]
    assert flat.grad is not None
    assert numbers.grad is not None
    for _ in range(3):
        flat.grad.copy_(torch.randn_like(flat))
        numbers.grad.copy_(flat.grad)
        for each in (alone, *parts):
            each.step(0.01)
    torch.testing.assert_close(numbers, flat, rtol=0, atol=1e-13)
    for name, moment in alone.moments.items():
        torch.testing.assert_close(parts[0].moments[name], moment, rtol=0, atol=1e-13)


def test_a_config_chooses_its_optimizer(small: Config) -> None:
    assert isinstance(initial(replace(small, optimizer=Adam(eps=1e-5)), Alone()).optimizer, AdamSteps)
    state = initial(replace(small, optimizer=Muon()), Alone())
    state.gradient.fill_(1.0)
    before = state.flat.detach().clone()
    state.optimizer.step(1e-3)
    assert (state.flat != before).all()
    assert isinstance(PONG.optimizer, Muon)
