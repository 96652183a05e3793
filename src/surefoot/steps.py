"""The steps of the optimizers: what `optimizers.Adam` and `optimizers.Muon` build, over one flat parameter.

They do without `torch.optim.Optimizer`, whose first use imports PyTorch's compiler: a second of every start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surefoot.policy import Policy, matrices


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


class AdamSteps:
    """Adam's, down `gradient` [P] for `parameters` [P], both changed elsewhere in place."""

    def __init__(self, parameters: Tensor, gradient: Tensor, eps: float) -> None:
        self.parameters, self.gradient, self.eps = parameters, gradient, eps
        zeros, count = torch.zeros_like, torch.zeros((), device=gradient.device)
        self.moments = {"step": count, "exp_avg": zeros(gradient), "exp_avg_sq": zeros(gradient)}
        self.count = count.numpy() if count.is_cpu else count  # the same memory: PyTorch counts three times as slowly

    def step(self, rate: float) -> None:
        """One step of size `rate`."""
        count, mean, square = self.moments.values()
        self.count += 1
        torch._fused_adam_(  # what torch.optim's Adam comes to: its way there takes longer than an MLP's step
            [self.parameters],
            [self.gradient],
            [mean],
            [square],
            [],
            [count],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )


class MuonSteps:
    """Moves the matrices of a policy's body by orthogonalised momentum (Nesterov's), all else by Adam's steps.

    `flat` holds the policy's parameters, those of `matrices(policy)` first.
    """

    def __init__(self, policy: Policy, flat: nn.Parameter, momentum: float, eps: float, units: int) -> None:
        assert flat.grad is not None
        self.momentum = momentum
        pairs = {id(pair.weight) for pair in policy.pairs}  # two matrices each
        self.matrices = [blocks(p.data if id(p) in pairs else p.data.flatten(1), units) for p in matrices(policy)]
        self.sizes = [p.numel() for p in self.matrices]
        size = sum(self.sizes)
        self.rest = AdamSteps(flat.data[size:], flat.grad[size:], eps)
        self.gradient = flat.grad[:size]
        self.moments = {"momentum": torch.zeros_like(self.gradient), **self.rest.moments}

    def step(self, rate: float) -> None:
        """One step of size `rate`."""
        mean, new = self.moments["momentum"], 1 - self.momentum
        mean.lerp_(self.gradient, new)
        ahead = mean.lerp(self.gradient, new)
        for matrix, part in zip(self.matrices, torch.split(ahead, self.sizes), strict=True):
            matrix.add_(orthogonalize(part.view_as(matrix)), alpha=-0.2 * max(matrix.shape[1:]) ** 0.5 * rate)
        self.rest.step(rate)


Steps = AdamSteps | MuonSteps
