"""Adam's steps over one flat parameter, without `torch.optim`, whose first use imports PyTorch's compiler: a second."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def parts(size: int, count: int, ends: Sequence[int] = (0,)) -> list[slice]:
    """What each of `count` ranks steps of [size]: equal shares, but up to the last of `ends` cut at one of them."""
    cuts = (size * rank // count for rank in range(count + 1))
    whole = [cut if cut >= ends[-1] else min((0, *ends), key=lambda end: abs(end - cut)) for cut in cuts]
    return [slice(*pair) for pair in pairwise(whole)]


class AdamSteps:
    """Adam's, down `gradient` [P] for `parameters` [P], both changed elsewhere in place.

    `moments` [2, P]: where they are kept, zeros; `parts`: who steps what, and this is `rank`.
    """

    def __init__(
        self,
        parameters: Tensor,
        gradient: Tensor,
        eps: float,
        moments: Tensor | None = None,
        parts: Sequence[slice] = (slice(None),),
        rank: int = 0,
    ) -> None:
        self.eps, count = eps, torch.zeros((), device=gradient.device)
        mean, square = gradient.new_zeros(2, len(gradient)) if moments is None else moments
        self.part = parts[rank]
        self.shards = [[x[self.part]] for x in (parameters, gradient, mean, square)]
        self.moments = {"step": count, "exp_avg": mean, "exp_avg_sq": square}
        self.count = count.numpy() if count.is_cpu else count  # the same memory: PyTorch counts three times as slowly

    def step(self, rate: float) -> None:
        """One step of size `rate`."""
        parameters, gradient, mean, square = self.shards
        self.count += 1
        torch._fused_adam_(  # what torch.optim's Adam comes to: its way there takes longer than an MLP's step
            parameters,
            gradient,
            mean,
            square,
            [],
            [self.moments["step"]],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
