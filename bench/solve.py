"""Time until the last 100 training episodes of CartPole average 475, beside Stable-Baselines3, alternating.

    python bench/solve.py --peer-python VENV/bin/python --seeds 1 2 3 --out bench/records/DATE_what

At equal settings, those of our preset (peer.py has them; the peer's learning rate stays where ours begins). Seconds
are from the start of the process, imports included, until the row that says so is written. Writes OUT/solve.json after
every pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Row, read_rows

HERE = Path(__file__).parent


def solved(rows: list[Row], score: float) -> Row | None:
    """The first row whose window of 100 episodes is full and averages `score`."""
    return next((row for row in rows if row["return_window"] == 100 and row["return_mean"] >= score), None)


def contest(seed: int, peer: str, score: float, limit: float) -> Row:
    """Both, one after the other: seconds and decisions until solved, None where that took longer than `limit`."""
    found: Row = {"seed": seed}
    for name in ("surefoot", "peer"):
        with tempfile.TemporaryDirectory() as folder:
            began = time.time()
            if name == "peer":
                more = ["--env", "CartPole-v1", "--threads", "1", "--began", str(began), "--out", folder]
                ends = ["--stop-at", str(score), "--seconds", str(limit)]
                call = [peer, str(HERE / "peer.py"), "run", "--seed", str(seed), *more, *ends]
            else:
                run = ["--run-dir", f"{folder}/run", "--eval-episodes", "0", "--total-steps", "0", "--quiet"]
                ends = ["--total-iterations", "1000000", "--stop-at", str(score), "--max-seconds", str(limit)]
                call = [sys.executable, "-m", "surefoot", "train", "CartPole-v1", "--seed", str(seed), *run, *ends]
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            metrics = Path(folder, "metrics.jsonl" if name == "peer" else "run/metrics.jsonl")
            rows, took = read_rows(metrics), metrics.stat().st_mtime - began
        row = solved(rows, score)
        found[name] = row and {"seconds": round(took, 2), "decisions": row["step"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--score", type=float, default=475.0)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = []
    for seed in args.seeds:
        pairs.append(contest(seed, args.peer_python, args.score, args.limit))
        print(pairs[-1], flush=True)
        both = [pair for pair in pairs if pair["surefoot"] and pair["peer"]]
        medians = {
            name: statistics.median(pair[name]["seconds"] for pair in both) for name in ("surefoot", "peer") if both
        }
        (args.out / "solve.json").write_text(
            json.dumps({"score": args.score, "pairs": pairs, "medians": medians}, indent=1)
        )


if __name__ == "__main__":
    main()
