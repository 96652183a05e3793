"""What several finished runs say together: curves with their seeds, final scores, a table and a picture.

    python bench/runs.py RUN ... --episodes 100 --greedy --sticky 0.25 --out bench/records/DATE_what

Writes OUT/summary.json (figures and every episode's score), OUT/curves.png, and for each run OUT/NAME.jsonl (its
metrics, thinned) and OUT/NAME.config.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import surefoot
from surefoot.runs.metrics import Row, read
from surefoot.runs.report_card import STAGES

KEEP = (
    "step",
    "iteration",
    "seconds",
    "episodes",
    "return_mean",
    "return_iteration",
    "steps_per_second",
    "kl",
    "entropy",
)


def first_at(rows: list[Row], score: float) -> int | None:
    """Decisions until the last 100 training episodes averaged `score`."""
    seen = (row for row in rows if row["return_mean"] is not None and row["return_window"] == 100)
    return next((row["step"] for row in seen if row["return_mean"] >= score), None)


def describe(run: Path, name: str, args: argparse.Namespace) -> Row:
    rows = read(run)
    busy = sum(row[key] for row in rows for _, key in STAGES)
    facts: Row = {
        "run": name,
        "decisions": rows[-1]["step"],
        "iterations": rows[-1]["iteration"],
        "busy_seconds": round(busy, 1),
        "shares": {stage: round(sum(row[key] for row in rows) / busy, 3) for stage, key in STAGES},
        "training_score_last_100": rows[-1]["return_mean"],
        "reached": {str(s): first_at(rows, s) for s in (0, 10, 15, 18)},
    }
    last = [row["return_iteration"] for row in rows if row["return_iteration"] is not None][-12:]
    facts["mean_of_last_12_iterations"] = statistics.mean(last)
    if args.episodes:
        for key, greedy, sticky in (("sampled", False, 0.0), ("greedy", True, 0.0), ("sticky", False, args.sticky)):
            if key == "sampled" or (key == "greedy" and args.greedy) or sticky:
                result = surefoot.evaluate(
                    run, episodes=args.episodes, seed=args.seed, greedy=greedy, sticky=sticky or None
                )
                facts[key] = result.to_json()
                print(name, key, round(result.mean, 2), result.interval, flush=True)
    return facts


def picture(runs: dict[str, list[Row]], path: Path, by: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure((7, 4), layout="constrained")
    axes = figure.add_subplot()
    kinds = sorted({name.rsplit("-s", 1)[0] for name in runs})
    for name, rows in runs.items():
        seen = [row for row in rows if row["return_mean"] is not None]
        kind = name.rsplit("-s", 1)[0]
        label = kind if kind not in {t.get_label() for t in axes.lines} else None
        axes.plot([r[by] for r in seen], [r["return_mean"] for r in seen], f"C{kinds.index(kind)}", lw=1.2, label=label)
    axes.set(xlabel={"step": "decisions", "iteration": "iterations (the lesson's episodes)"}[by])
    axes.set(ylabel="score, mean of the last 100 episodes")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1_000_003)
    parser.add_argument("--sticky", type=float, default=0.0, help="also with sticky actions")
    parser.add_argument("--greedy", action="store_true", help="also greedy")
    parser.add_argument("--by", choices=("step", "iteration"), default="step")
    parser.add_argument("--thin", type=int, default=5, help="keep each so many rows of the metrics")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    facts = []
    for run in args.runs:
        rows = [{k: row[k] for k in KEEP} for row in read(run)]
        thinned = rows[:: args.thin] + ([rows[-1]] if (len(rows) - 1) % args.thin else [])
        (args.out / f"{run.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thinned))
        config = json.loads((run / "config.json").read_text())
        for entry in config["history"]:
            entry.pop("command")  # it names places of the machine it ran on
        (args.out / f"{run.name}.config.json").write_text(json.dumps(config, indent=1))
        facts.append(describe(run, run.name, args))
        (args.out / "summary.json").write_text(json.dumps(facts, indent=1))
    picture({run.name: read(run) for run in args.runs}, args.out / "curves.png", args.by)


if __name__ == "__main__":
    main()
