"""Measures of scores, without PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def middle_mean(scores: Array) -> Array:
    """Mean of the middle half along the last axis: a quarter, rounded down, is cut off at each end.

    Source: Agarwal et al. 2021, the interquartile mean.
    """
    cut = scores.shape[-1] // 4
    mean: Array = np.sort(scores)[..., cut : scores.shape[-1] - cut].mean(-1)
    return mean
