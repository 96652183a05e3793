"""What saving costs: a run on one rank, and the share of its time that its checkpoints took.

    python bench/saving.py [TASK] [--minutes 5] [--save-every 60]

Prints one JSON object. The closing checkpoint is left out of the share: a run has only one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import surefoot
from surefoot.runs import worker as runner
from surefoot.runs.reporter import Reporter


class Timed(Reporter):
    """A reporter that times its saves."""

    spent: list[float] = []  # noqa: RUF012 (of the one run there is)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Save, by the clock."""
        began = perf_counter()
        super().on_save(*args, **kwargs)
        self.spent.append(perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", nargs="?", default="pong")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--save-every", type=float, default=60.0)
    args = parser.parse_args()
    runner.Reporter = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory(dir=".") as folder:  # not /tmp, which may be memory
        where = Path(folder, "run")
        end = {"max_seconds": 60 * args.minutes, "save_every": args.save_every, "eval_episodes": 0}
        run = surefoot.train(args.task, run_dir=where, ranks=1, quiet=True, **end)
        size = sum(p.stat().st_size for p in max((where / "checkpoints").iterdir()).iterdir())
    times = Timed.spent[:-1]
    facts = {
        "task": args.task,
        "seconds": round(run.seconds, 1),
        "decisions": run.steps,
        "checkpoint_bytes": size,
        "saves": len(times),
        "ms_per_save": [round(1000 * t, 1) for t in times],
        "share": sum(times) / run.seconds,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
