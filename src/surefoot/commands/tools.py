"""The commands that connect runs with other tools, as in `cli`: dataclasses of their options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from surefoot.errors import UserError, needs_extra
from surefoot.output import out
from surefoot.presets import find


@dataclass(frozen=True)
class Export:
    """Write a policy for other programs: as an ONNX graph from the environment's observation to its action."""

    run: tyro.conf.Positional[Path]
    """a run directory or policy file"""
    onnx: Path | None = None
    """file to write, .onnx"""
    task: str | None = None
    """another task with the same observations and actions, whose spaces are taken; default: the policy's own"""
    trust: bool = False
    """run the code that the file names, although it was not written here"""

    def __call__(self) -> None:
        if self.onnx is None:
            raise UserError("name what to write: --onnx FILE")
        with needs_extra("onnx"):
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401

            from surefoot.connect.export import export

        file, largest = export(self.run, self.onnx, find(self.task).env if self.task else None, self.trust)
        print(f"{file}, which differs from PyTorch by at most {largest:.1e}", file=out())
