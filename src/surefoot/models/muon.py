"""Muon's steps over one flat parameter: matrices move along their orthogonalised momentum, all else as by Adam."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from surefoot.models.adam import AdamSteps, parts
from surefoot.models.policy import Policy, matrices


def orthogonalize(matrix: Tensor) -> Tensor:
    """About U V^T for `matrix` = U S V^T [..., rows, columns]: singular values between 0.7 and 1.2 instead of S.

    X <- (a + b X X^T + c (X X^T)^2) X, five times from X = matrix / |matrix|; the constants lift small singular values
    fastest. Source: Jordan et al. 2024. The factors are small and commute: X is multiplied with their product, a third
    of the arithmetic, but nothing for half precision.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x: Tensor = matrix if wide else matrix.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    square = x @ x.mT
    factors = last = one = torch.eye(x.shape[-2]).to(x)
    for k in range(5):
        square = last @ square @ last if k else square
        last = a * one + b * square + c * (square @ square)
        factors = factors @ last if k else last
    return factors @ x if wide else (factors @ x).mT


def blocks(matrix: Tensor, units: int) -> Tensor:
    """A view of [..., outputs, inputs] as [parts, units, inputs]; whole where `units` is 0 or does not divide them."""
    outputs, inputs = matrix.shape[-2:]
    return matrix.view(-1, outputs if not units or outputs % units else units, inputs)


class MuonSteps:
    """Moves the matrices of a policy's body by orthogonalised momentum (Nesterov's), all else by Adam's steps.

    `flat` holds the policy's parameters, those of `matrices(policy)` first. A matrix is one rank's.
    """

    def __init__(
        self,
        policy: Policy,
        flat: nn.Parameter,
        momentum: float,
        eps: float,
        units: int,
        moments: Tensor | None = None,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        assert flat.grad is not None
        self.momentum = momentum
        hidden = {id(layer.weight) for layer in policy.hidden}  # two matrices each
        whole = [blocks(p.data if id(p) in hidden else p.data.flatten(1), units) for p in matrices(policy)]
        ends = [*accumulate(some[0].numel() for some in whole for _ in some)]
        size, moments = ends[-1], flat.new_zeros(2, len(flat)).detach() if moments is None else moments
        divided = parts(len(flat), count, ends)
        self.part, before = divided[rank], 0
        self.matrices: list[Tensor] = []
        for some in whole:
            first, last = (max(0, cut - before) // some[0].numel() for cut in (self.part.start, self.part.stop))
            self.matrices += [some[first:last]] if first < min(last, len(some)) else []
            before += some.numel()
        self.sizes = [matrix.numel() for matrix in self.matrices]
        rest = [slice(max(part.start, size) - size, max(part.stop, size) - size) for part in divided]
        self.rest = AdamSteps(flat.data[size:], flat.grad[size:], eps, moments[:, size:], rest, rank)
        inside = slice(min(self.part.start, size), min(self.part.stop, size))
        self.gradient, self.mean = flat.grad[inside], moments[0, inside]
        self.moments = {"momentum": moments[0, :size], **self.rest.moments}

    def step(self, rate: float) -> None:
        """One step of size `rate`."""
        new = 1 - self.momentum
        ahead = self.mean.lerp_(self.gradient, new).lerp(self.gradient, new)
        for matrix, part in zip(self.matrices, torch.split(ahead, self.sizes), strict=True):
            matrix.add_(orthogonalize(part.view_as(matrix)), alpha=-0.2 * max(matrix.shape[1:]) ** 0.5 * rate)
        self.rest.step(rate)
