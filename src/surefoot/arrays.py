"""Arrays of NumPy and of PyTorch under one name, so that a formula is written once and holds for both.

An MLP is computed with NumPy: most of its time is calls, and NumPy's take a third of PyTorch's.
"""

from __future__ import annotations

import sys
from typing import Any

Array = Any
"""a PyTorch tensor or a NumPy array"""


def namespace(x: Array) -> Any:
    """The module whose functions work on `x`: torch or numpy, alike in the names and arguments that are used here."""
    return sys.modules["numpy" if type(x).__module__ == "numpy" else "torch"]
