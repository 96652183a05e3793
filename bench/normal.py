"""Healthy and sick trainings of CartPole, for the lesson's page "Is this normal?".

    python bench/normal.py

Trains each case with one seed in a temporary directory and writes its metrics and the commands into bench/records;
`bench/lesson_records.py` hands them to the page.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from surefoot.runs.metrics import read

OUT = Path(__file__).parent / "records" / "2026-11-30_normal"
ALWAYS = ["--total-steps", "60000", "--eval-episodes", "0", "--quiet", "--seed", "3"]
FIXED = ["learning-rate:fixed-rate", "--learning-rate.initial"]
CASES = {
    "healthy": [],
    "rate-too-large": [*FIXED, "0.1"],
    "rate-too-small": [*FIXED, "0.00001"],
    "off-the-cliff": [*FIXED, "0.01", "objective:surrogate", "--num-epochs", "20"],
    "too-much-entropy": ["--entropy.coef", "1"],
    "no-critic": ["--value-coef", "0"],
}
KEPT = ("step", "return_mean", "kl", "clip_fraction", "entropy", "value_loss", "explained_variance", "grad_norm")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    commands = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in CASES.items():
            command = ["train", "cartpole", *ALWAYS, *options]
            run = Path(folder, name)
            subprocess.run([sys.executable, "-m", "surefoot", *command, "--run-dir", str(run)], check=True)
            rows = [{key: row[key] for key in KEPT} for row in read(run)]
            (OUT / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            commands[name] = f"surefoot {' '.join(command)}"
            print(name, len(rows), rows[-1])
    (OUT / "commands.json").write_text(json.dumps(commands, indent=1) + "\n")


if __name__ == "__main__":
    main()
