"""The steps of `optimizers.Muon`: Newton and Schulz's iteration, and the optimizer around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from surefoot.policy import Policy, matrices

DECAY = 0.999  # of the squared gradient's mean, Adam's


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T for `matrix` = U S V^T [rows, columns]: singular values between 0.7 and 1.2 instead of S.

    X <- a X + (b X X^T + c (X X^T)^2) X, five times from X = matrix / |matrix|, computed in `dtype`; the constants
    lift small singular values fastest. Source: Jordan et al. 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype)
    x = x if len(x) <= x.shape[1] else x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x if len(matrix) <= matrix.shape[1] else x.mT).to(matrix.dtype)


class OrthogonalSteps(torch.optim.Optimizer):
    """Moves the matrices of a policy's body by orthogonalised momentum (Nesterov's), all else by Adam's rule.

    `flat` holds the policy's parameters, those of `matrices(policy)` first. The state has the names of Adam's.
    """

    def __init__(self, policy: Policy, flat: nn.Parameter, momentum: float, eps: float) -> None:
        super().__init__([flat], {"lr": 1e-3})
        self.flat, self.momentum, self.eps = flat, momentum, eps
        self.dtype = torch.bfloat16 if policy.bf16 else flat.dtype
        self.shapes = [(len(p), p.numel() // len(p)) for p in matrices(policy)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step down the gradient in `flat.grad`."""
        state, gradient, rate = self.state[self.flat], self.flat.grad, self.param_groups[0]["lr"]
        assert gradient is not None
        rest = sum(math.prod(shape) for shape in self.shapes)
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient[rest:])
        state["step"] += 1
        mean, square, kept = state["exp_avg"], state["exp_avg_sq"], self.momentum
        mean.lerp_(gradient, 1 - kept)
        start = 0
        for rows, columns in self.shapes:
            part = slice(start, start := start + rows * columns)
            ahead = mean[part].lerp(gradient[part], 1 - kept).view(rows, columns)
            length = 0.2 * math.sqrt(max(rows, columns))
            self.flat[part].view(rows, columns).add_(orthogonalize(ahead, self.dtype), alpha=-rate * length)
        square.lerp_(gradient[rest:].square(), 1 - DECAY)
        fresh, fresh_square = 1 - kept ** state["step"].item(), 1 - DECAY ** state["step"].item()
        size = (square / fresh_square).sqrt_().add_(self.eps)
        self.flat[rest:].addcdiv_(mean[rest:], size, value=-rate / fresh)
