"""Write what the lesson's pages draw of our records: src/surefoot/lesson/records/*.json.

python bench/lesson_records.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surefoot.lesson.ladder_rungs import frames_per_step
from surefoot.presets import PRESETS
from surefoot.runs.metrics import Row

ROOT = Path(__file__).parent.parent
RECORDS, OUT = ROOT / "bench" / "records", ROOT / "src" / "surefoot" / "lesson" / "records"
NORMAL = "2026-11-30_normal"  # bench/normal.py
LADDERS = {"ladder": "2026-11-30_ladder-quick", "ladder-pong": "2026-11-30_ladder-pong"}  # surefoot ladder [--quick]
PONG = {
    "pong-reinforce": "2026-11-22_lesson/pong-reinforce-s*.jsonl",
    "pong-lesson": "2026-11-22_lesson/pong-lesson-s*.jsonl",
    "pong": "2026-11-29_race-512/*.jsonl",
}


def rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(path: Path, names: tuple[str, ...], frames: int = 1) -> dict[str, Any]:
    """A run's columns, with the emulated frames of its steps, and where it is from."""
    table = [row for row in rows(path) if row["return_mean"] is not None]
    columns = {name: [round(row[name], 4) for row in table] for name in names}
    return {"source": path.relative_to(RECORDS).as_posix(), "frames": [frames * r["step"] for r in table], **columns}


def columns(name: str) -> dict[str, list[float | None]]:
    """A case's metrics, each to four digits."""
    table = rows(RECORDS / NORMAL / f"{name}.jsonl")
    return {key: [None if row[key] is None else float(f"{row[key]:.4g}") for row in table] for key in table[0]}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    found = {
        name: [curve(path, ("return_mean",), frames_per_step(PRESETS[name])) for path in sorted(RECORDS.glob(pattern))]
        for name, pattern in PONG.items()
    }
    (OUT / "pong.json").write_text(json.dumps(found) + "\n")
    for name, folder in LADDERS.items():
        (OUT / f"{name}.json").write_text((RECORDS / folder / "ladder.json").read_text() + "\n")
    commands = json.loads((RECORDS / NORMAL / "commands.json").read_text())
    cases = {name: {"command": text, "columns": columns(name)} for name, text in commands.items()}
    (OUT / "normal.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
