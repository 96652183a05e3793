"""The oldest NumPy and Gymnasium that surefoot runs with: other packages' installers put older ones in their place."""

from __future__ import annotations

import importlib
import re

from surefoot.errors import UserError

OLDEST = {"numpy": "2.0", "gymnasium": "1.1"}  # as in pyproject.toml


def require_versions() -> None:
    """Raise UserError where NumPy or Gymnasium is too old, or cannot be imported."""
    for name, oldest in OLDEST.items():
        try:
            installed = str(getattr(importlib.import_module(name), "__version__", "0"))
        except ImportError as error:
            raise UserError(f"{name} cannot be imported ({error}): pip install '{name}>={oldest}'") from error
        if numbers(installed) < numbers(oldest):
            needs = f"{name} {installed} is installed, and surefoot needs {oldest} or newer"
            raise UserError(f"{needs} (another package may have put it there): pip install '{name}>={oldest}'")


def numbers(version: str) -> list[int]:
    """The first two numbers of a version."""
    return [int(x) for x in re.findall(r"\d+", version)[:2]]
