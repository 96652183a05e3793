"""Decisions per second of policies with an LSTM at equal settings, beside sb3-contrib's RecurrentPPO, in turns.

    python bench/memory.py --peer-python VENV/bin/python --rounds 3 --seconds 20 --out bench/records/DATE_memory

CartPole, 8 environments, 128 steps, minibatches of 128, 10 epochs, an LSTM of 256 units, all cores: the defaults of
RecurrentPPO, which has one LSTM for the actor and one for the critic, and with one for both, as surefoot has. Writes
OUT/record.json. VENV holds sb3-contrib and its dependencies; surefoot need not be there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

OURS = (
    "CartPole-v1 memory:lstm --memory.units 256 --num-envs 8 --num-steps 128 --minibatch-size 128 --num-epochs 10 "
    "--eval-episodes 0 --save-every 1e9 --total-steps 100000000 --quiet"
)
CONTESTANTS = ("surefoot, 1 rank", "surefoot, 2 ranks", "peer, one LSTM", "peer, two LSTMs")


def peer(seconds: float, several: bool) -> None:
    """RecurrentPPO for some seconds; prints when each rollout began, and the steps before it."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    began, rows = time.time(), list[tuple[float, int]]()

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            rows.append((time.time() - began, self.num_timesteps))

        def _on_step(self) -> bool:
            return time.time() - began < seconds or len(rows) < 3

    settings = {"lstm_hidden_size": 256, "enable_critic_lstm": several, "shared_lstm": not several}
    model = RecurrentPPO("MlpLstmPolicy", make_vec_env("CartPole-v1", 8), seed=1, device="cpu", policy_kwargs=settings)
    model.learn(10_000_000, Clock())
    print(json.dumps(rows))


def rate(rows: list[tuple[float, int]]) -> float:
    """Decisions per second between the second rollout and the last."""
    (start, before), (end, after) = rows[1], rows[-1]
    return (after - before) / (end - start)


def measure(name: str, seconds: float, where: Path, python: str) -> float:
    """One contestant's decisions per second."""
    if name.startswith("peer"):
        call = [python, __file__, "--seconds", str(seconds), "--peer", "two" if "two" in name else "one"]
        return rate(json.loads(subprocess.run(call, check=True, capture_output=True).stdout.splitlines()[-1]))
    ranks = "1" if "1 rank" in name else "2"
    call = [sys.executable, "-m", "surefoot", "train", *OURS.split(), "--max-seconds", str(seconds), "--ranks", ranks]
    subprocess.run([*call, "--run-dir", str(where)], check=True)
    found = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    return rate([(row["seconds"], row["step"]) for row in found])


def main() -> None:
    """Measure in turns; write the record after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", choices=("one", "two"), help="be the peer")
    args = parser.parse_args()
    if args.peer:
        peer(args.seconds, args.peer == "two")
        return
    found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    args.out.mkdir(parents=True, exist_ok=True)
    for number in range(args.rounds):
        for name in CONTESTANTS:
            run = args.out / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-{number}"
            found[name].append(round(measure(name, args.seconds, run, args.peer_python), 1))
            print(f"{name}: {found[name][-1]:,.0f} decisions a second", flush=True)
        middle = {name: statistics.median(rates) for name, rates in found.items()}
        (args.out / "record.json").write_text(json.dumps({"rates": found, "medians": middle}, indent=1) + "\n")
    best = max(rate for name, rate in middle.items() if name.startswith("surefoot"))
    for name in CONTESTANTS[2:]:
        print(f"{best / middle[name]:.1f} times {name}")


if __name__ == "__main__":
    main()
