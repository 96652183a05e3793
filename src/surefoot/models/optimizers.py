"""How a gradient becomes a step: Adam, and Muon, which moves matrices along their orthogonalised momentum.

A Config holds one of these frozen descriptions; `build` makes what takes the steps (adam.py, muon.py).
`rank`, `count`: this rank steps its part of parameters that `count` ranks share; `moments` [2, P]: where they are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.errors import require_range

if TYPE_CHECKING:
    from torch import Tensor, nn

    from surefoot.models.adam import AdamSteps
    from surefoot.models.muon import MuonSteps
    from surefoot.models.policy import Policy


@dataclass(frozen=True)
class Adam:
    """Every parameter moves by its mean gradient over its gradient's root mean square. Source: Kingma & Ba 2015."""

    eps: float = 1e-8
    """added to the root mean square of the gradient"""

    def __post_init__(self) -> None:
        require_range(self, "eps", above=True)

    def build(
        self, policy: Policy, flat: nn.Parameter, moments: Tensor | None = None, rank: int = 0, count: int = 1
    ) -> AdamSteps | MuonSteps:
        """For a policy whose parameters are views of `flat`."""
        from surefoot.models.adam import AdamSteps, parts

        assert flat.grad is not None
        return AdamSteps(flat.data, flat.grad, self.eps, moments, parts(len(flat), count), rank)


@dataclass(frozen=True)
class Muon:
    """The body's matrices move in all directions alike, so that rare ones are not drowned; heads and biases as by Adam.

    A matrix M of momentum becomes 0.2 sqrt(max(rows, columns)) U V^T with M = U S V^T, a step as long as Adam's. A
    large layer is several such matrices: that of 256 units at once takes five times the arithmetic of 64 each.
    Sources: Jordan et al. 2024; for the length Liu et al. 2025.
    """

    momentum: float = 0.9
    """decay of the moving average of gradients"""
    units: int = 64
    """units of a layer whose weights are orthogonalised together, where that divides them; 0: all"""
    eps: float = 1e-8
    """eps of Adam, for heads and biases"""

    def __post_init__(self) -> None:
        require_range(self, "momentum", high=1, below=True)
        require_range(self, "units")
        require_range(self, "eps", above=True)

    def build(
        self, policy: Policy, flat: nn.Parameter, moments: Tensor | None = None, rank: int = 0, count: int = 1
    ) -> AdamSteps | MuonSteps:
        """For a policy whose parameters are views of `flat`."""
        from surefoot.models.muon import MuonSteps

        return MuonSteps(policy, flat, self.momentum, self.eps, self.units, moments, rank, count)


Optimizer = Adam | Muon
