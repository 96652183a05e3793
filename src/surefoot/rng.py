"""Counter-based random numbers: every stream is a pure function of (seed, purpose, counters), with no state to save.

NumPy's Philox gets seed and purpose as key and the counters as start, so two purposes never share a stream and an
environment's random numbers do not depend on the number of ranks.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of the file format: never renumber."""

    WEIGHTS = 1
    ACTIONS = 2
    RESETS = 3
    NOOPS = 4
    STICKY = 5
    FRAME_SKIPS = 6
    MINIBATCHES = 7
    EVALUATION = 8
    BOOTSTRAP = 9
    OPENINGS = 10


def stream(seed: int, purpose: Purpose, *counters: int) -> Generator:
    """A generator for (seed, purpose, up to three counters); the same arguments give the same numbers."""
    words = [0, *counters, 0, 0, 0][:4]
    return Generator(Philox(counter=np.array(words, np.uint64), key=np.array([seed, purpose], np.uint64)))


def integer(seed: int, purpose: Purpose, *counters: int) -> int:
    """A seed in [0, 2^31) for an episode or for torch's generator."""
    return int(stream(seed, purpose, *counters).integers(2**31))
