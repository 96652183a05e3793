"""End-to-end decisions per second at equal settings, against Stable-Baselines3, alternating, beside the bare emulator.

    python bench/speed.py --peer-python VENV/bin/python --rounds 5 --out bench/records/DATE_speed

Each round runs every contestant once, as a process of its own, with the bare emulator on all cores before and after:
the machine's speed drifts, so what counts are ratios to it, and to the peer within a round. A decision's time is told
by stages (emulate, act, learn, and the rest: metrics, waiting). Writes OUT/record.json and OUT/speed.png after every
round.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from common import Row, attend, bare_rates, read_rows
from surefoot.presets import PONG

HERE = Path(__file__).parent
STAGES = {"emulate": "env_s", "act": "act_s", "learn": "learn_s"}
ATARI, POLE, CHEETAH, FP32 = "PongNoFrameskip-v4", "CartPole-v1", "HalfCheetah-v5", ("--no-bf16",)
TWICE = ("--num-envs", "16", "--minibatch-size", "512")  # on 2 ranks: what 1 rank does with 8 games and 256
EQUAL = ("--num-steps", "256", "--minibatch-size", "256", "--no-recompute")  # what the peer can do
HALF = ("--num-envs", str(PONG.num_envs // 2), "--minibatch-size", str(PONG.minibatch_size // 2))


@dataclass(frozen=True)
class Contestant:
    """A command that trains for some time."""

    name: str
    task: str
    ranks: int
    """0: the peer"""
    more: tuple[str, ...] = ()

    def command(self, seconds: float, where: Path, peer: str) -> list[str]:
        if not self.ranks:
            time_and_place = ["--seconds", str(seconds), "--began", str(time.time()), "--out", str(where)]
            return [peer, str(HERE / "peer.py"), "run", "--env", self.task, *self.more, *time_and_place]
        care = [
            "--eval-episodes",
            "0",
            "--save-every",
            "1e9",
            "--total-steps",
            "100000000",
            "--max-seconds",
            str(seconds),
        ]
        call = [sys.executable, "-m", "surefoot", "train", self.task, "--ranks", str(self.ranks)]
        return [*call, *care, *self.more, "--run-dir", str(where / "run")]


CONTESTANTS = (
    Contestant("Atari, 2 ranks, fp32", ATARI, 2, FP32),
    Contestant("Atari, 2 ranks, bf16", ATARI, 2),
    Contestant("Atari, peer, DummyVecEnv", ATARI, 0, ("--vec", "dummy", "--threads", "2")),
    Contestant("Atari, peer, SubprocVecEnv", ATARI, 0, ("--vec", "subproc", "--threads", "2")),
    Contestant("Atari, 1 rank, fp32", ATARI, 1, FP32),
    Contestant("Atari, 2 ranks, 16 games, fp32", ATARI, 2, (*FP32, *TWICE)),
    Contestant("Atari, 1 rank, bf16", ATARI, 1),
    Contestant("Atari, 2 ranks, 16 games, bf16", ATARI, 2, TWICE),
    Contestant("pong, 1 rank, half the games", "pong", 1, HALF),
    Contestant("pong, 2 ranks", "pong", 2),
    Contestant("CartPole, 1 rank", POLE, 1),
    Contestant("CartPole, 2 ranks", POLE, 2),
    Contestant("CartPole, peer, 1 thread", POLE, 0, ("--threads", "1")),
    Contestant("CartPole, peer, 2 threads", POLE, 0, ("--threads", "2")),
    Contestant("HalfCheetah, 1 rank", CHEETAH, 1, EQUAL),
    Contestant("HalfCheetah, 2 ranks", CHEETAH, 2, EQUAL),
    Contestant("HalfCheetah, peer, 1 thread", CHEETAH, 0, ("--threads", "1")),
    Contestant("HalfCheetah, peer, 2 threads", CHEETAH, 0, ("--threads", "2")),
    Contestant("HalfCheetah, peer, SubprocVecEnv", CHEETAH, 0, ("--threads", "2", "--vec", "subproc")),
)

# What is divided by what, within a round; a pattern that several match means the fastest of them.
RATIOS = {
    "fp32 / peer": ("Atari, 2 ranks, fp32", "Atari, peer, .*"),
    "bf16 / peer": ("Atari, 2 ranks, bf16", "Atari, peer, .*"),
    "2 ranks / 1, the same work a rank, fp32": ("Atari, 2 ranks, 16 games, fp32", "Atari, 1 rank, fp32"),
    "2 ranks / 1, the same work a rank, bf16": ("Atari, 2 ranks, 16 games, bf16", "Atari, 1 rank, bf16"),
    "2 ranks / 1, the same work a rank, pong": ("pong, 2 ranks", "pong, 1 rank, half the games"),
    "CartPole / peer": ("CartPole, . ranks?", "CartPole, peer, .*"),
    "HalfCheetah / peer": ("HalfCheetah, . ranks?", "HalfCheetah, peer, .*"),
}


def measured(rows: list[Row], warm: float) -> Row:
    """Decisions per second, and microseconds a decision by stage, from the first row that is `warm` seconds old on."""
    begin = next((i for i, row in enumerate(rows) if row["seconds"] >= rows[0]["seconds"] + warm), len(rows))
    if begin > len(rows) - 2:
        raise ValueError(f"only {len(rows)} rollouts: give it more --seconds")
    first, last = rows[begin], rows[-1]
    steps, spent = last["step"] - first["step"], last["seconds"] - first["seconds"]
    stages = {name: sum(row[key] for row in rows[begin + 1 :]) / steps * 1e6 for name, key in STAGES.items()}
    stages["rest"] = spent / steps * 1e6 - sum(stages.values())
    return {"rate": round(steps / spent, 1), "stages": {name: round(us, 2) for name, us in stages.items()}}


def ratio(results: dict[str, Row], above: str, below: str) -> float | None:
    """The fastest contestant that `above` matches, divided by the fastest that `below` does, of one round."""
    best = []
    for pattern in (above, below):
        best.append(max((row["rate"] for name, row in results.items() if re.fullmatch(pattern, name)), default=None))
    return round(best[0] / best[1], 3) if best[0] and best[1] else None


def spread(values: list[float]) -> Row:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(rounds: list[dict[str, Row]]) -> Row:
    """Of each contestant and each ratio: median and range over the rounds."""
    table: dict[str, Row] = {}
    for name in dict.fromkeys(name for results in rounds for name in results):
        mine = [results[name] for results in rounds if name in results]
        table[name] = {key: spread([row[key] for row in mine]) for key in ("rate", "of_bare", "peak_memory")}
        table[name]["stages"] = {s: statistics.median(row["stages"][s] for row in mine) for s in mine[0]["stages"]}
        in_bare = [{s: us * row["bare"] / 1e6 for s, us in row["stages"].items()} for row in mine]
        table[name]["stages_in_bare_steps"] = {s: statistics.median(r[s] for r in in_bare) for s in in_bare[0]}
    ratios = {}
    for name, (above, below) in RATIOS.items():
        found = [r for results in rounds if (r := ratio(results, above, below)) is not None]
        if found:
            ratios[name] = spread(found)
    bare = spread([row["bare"] for results in rounds for row in results.values()])
    return {"contestants": table, "ratios": ratios, "bare_all_cores": bare}


def show(facts: Row) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    titles = "contestant|steps/s|of bare, all cores|emulate|act|learn|rest|MB"
    table = Table(*titles.split("|"), title="medians; stages in microseconds a decision, all ranks together")
    for name, row in facts["contestants"].items():
        share, stages = row["of_bare"], [f"{us:,.0f}" for us in row["stages"].values()]
        of_bare = f"{share['median']:.1%} ({share['min']:.1%} to {share['max']:.1%})"
        memory = f"{row['peak_memory']['max'] / 1e6:,.0f}"
        table.add_row(name, f"{row['rate']['median']:,.0f}", of_bare, *stages, memory)
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for name, row in facts["ratios"].items():
        text = f"{name}: {row['median']:.2f} (from {row['min']:.2f} to {row['max']:.2f})"
        console.print(text, highlight=False)


def picture(facts: Row, path: Path) -> None:
    """What a decision costs, stage by stage, in steps that the bare emulator would make meanwhile on the same cores."""
    from matplotlib.figure import Figure

    kinds = {
        n: row["stages_in_bare_steps"] for n, row in facts["contestants"].items() if n.startswith(("Atari", "pong"))
    }
    if not kinds:
        return
    figure = Figure((8, 1 + 0.4 * len(kinds)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(kinds)
    for stage in next(iter(kinds.values())):
        widths = [max(0.0, stages[stage]) for stages in kinds.values()]
        axes.barh(list(kinds), widths, left=left, label=stage, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, (name, end) in enumerate(zip(kinds, left, strict=True)):
        axes.text(end, i, f" {facts['contestants'][name]['rate']['median']:,.0f}/s", va="center", fontsize=8)
    axes.axvline(1.0, color="0.6", lw=0.8)
    axes.set_xlim(0, max(left) * 1.12)
    axes.set_xlabel("time of a decision, in steps of the bare emulator on all cores")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="each contestant's time, its start included")
    parser.add_argument("--warm", type=float, default=5.0, help="seconds after the first rollout that are left out")
    parser.add_argument("--bare-seconds", type=float, default=3.0)
    parser.add_argument("--only", default=".*", help="contestants whose name this pattern finds")
    parser.add_argument("--peer-python", help="a Python that has stable-baselines3; without it there is no peer")
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="where runs are written, and removed")
    parser.add_argument("--out", type=Path, default=Path(f"bench/records/{date.today()}_speed"))
    args = parser.parse_args()
    chosen = [c for c in CONTESTANTS if re.search(args.only, c.name) and (c.ranks or args.peer_python)]
    args.work, rounds = args.work.resolve(), list[dict[str, Row]]()
    bare = bare_rates(args.bare_seconds)
    for k in range(args.rounds):
        results: dict[str, Row] = {}
        for contestant in chosen if k % 2 == 0 else reversed(chosen):
            where = args.work / re.sub(r"\W+", "-", contestant.name)
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir(parents=True)
            command = contestant.command(args.seconds, where, args.peer_python)
            _, code, peak = attend(command, where / "log.txt")
            before, bare = bare, bare_rates(args.bare_seconds)
            try:
                if code:
                    raise ValueError(f"it ended with code {code}: {(where / 'log.txt').read_text()[-400:]}")
                row = measured(read_rows((where / "run" if contestant.ranks else where) / "metrics.jsonl"), args.warm)
            except ValueError as error:  # the others are measured all the same
                print(f"round {k + 1}, {contestant.name} is left out: {error}", file=sys.stderr)
                continue
            around = statistics.mean((sum(before), sum(bare)))
            row |= {"bare": around, "of_bare": round(row["rate"] / around, 4), "peak_memory": peak}
            results[contestant.name] = row
            text = f"{contestant.name}: {row['rate']:,.0f} steps/s, {row['of_bare']:.1%} of {around:,.0f}"
            print(f"round {k + 1}, {text}", flush=True)
            shutil.rmtree(where)
        if not results:
            raise SystemExit("nothing could be measured")
        rounds.append({c.name: results[c.name] for c in chosen if c.name in results})
        write(rounds, args)
    show(summary(rounds))


def write(rounds: list[dict[str, Row]], args: argparse.Namespace) -> None:
    """The record and the picture, of the rounds so far."""
    from surefoot.runs.worker import machine

    args.out.mkdir(parents=True, exist_ok=True)
    facts: Row = {"seconds": args.seconds, "warm": args.warm, "machine": machine()}
    if args.peer_python:
        call = [args.peer_python, str(HERE / "peer.py"), "settings"]
        facts["peer"] = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    facts |= {"summary": summary(rounds), "rounds": rounds}
    (args.out / "record.json").write_text(json.dumps(facts, indent=1))
    picture(facts["summary"], args.out / "speed.png")


if __name__ == "__main__":
    main()
