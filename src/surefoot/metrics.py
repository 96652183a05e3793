"""Where a run writes its figures: metrics.jsonl, one object per iteration, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Metrics:
    """Both files of one run; opened again after `step` they lose everything later, so nothing stands there twice."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / "metrics.jsonl"
        kept = [row for row in read(run_dir) if row["step"] <= step]
        beside = path.with_suffix(".writing")
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        beside.replace(path)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the run)
        purge = step + 1 if step else None
        self.board = SummaryWriter(str(run_dir / "tb"), purge_step=purge)

    def add(self, row: Row) -> None:
        """Append one iteration; NaN and infinity become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.file.write(json.dumps(clean) + "\n")
        for name, value in clean.items():
            if value is not None and name != "step":
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self.file.close()
        self.board.close()


def read(run_dir: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl; a last line that was cut off while being written is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
