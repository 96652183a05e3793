"""The race: training time and decisions until a policy scores 18 in Pong, for surefoot and for Stable-Baselines3.

    python bench/race.py --seeds 71 72 73 74 75 --out bench/records/DATE_race [-- --stop-at 19]
    python bench/race.py --seeds --peer-seeds 71 --peer-python VENV/bin/python --peer-minutes 60 --out ...

Policies are saved every 5 s of training (the peer's: every 60 s) and judged afterwards, in order: 10 full games, from a
mean of 12 on 100 others (fresh seeds, actions sampled, up to 30 no-ops). The first that averages 18 counts, if the next
one does too; its time is the moment it was saved, from the process's start, imports and ROMs included. Beside it the
slower yardstick: the mean of the last 100 finished training games reaches 18. The bare emulator is measured on all
cores at once before and after each run, and times are also given as they would be at 5,700 steps/s a core.

What is after `--` goes to `surefoot train`. Runs stay in --work: one that is there is not trained again, only judged.
Writes OUT/record.json and OUT/race.png after every run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path

from common import REFERENCE, Row, Rule, attend, bare_rates, plan, reached, read_rows

HERE = Path(__file__).parent
FRAMES = 4  # in a decision


def keep(run: Path, policies: Path) -> None:
    """Link the policy of each checkpoint that has appeared; the link has the time at which it was written."""
    for checkpoint in (run / "checkpoints").glob("[0-9]*"):
        mine = policies / f"{checkpoint.name}.safetensors"
        if not mine.exists():
            with suppress(FileNotFoundError):  # dropped just now
                os.link(checkpoint / "policy.safetensors", mine)


def revision() -> str:
    """The commit of this tree, `+` where it was changed."""
    call = ["git", "describe", "--always", "--dirty=+", "--abbrev=40"]
    return subprocess.run(call, cwd=HERE, capture_output=True, text=True).stdout.strip()


def train(who: str, seed: int, args: argparse.Namespace) -> Path | None:
    """Train one seed in its folder, unless that has been done; leaves run.json, metrics.jsonl and the policies."""
    where: Path = args.work / f"{who}-s{seed}"
    run, settings = where / "run", [args.task, "--save-every", "5", "--eval-episodes", "0", *args.more]
    if who != "surefoot":
        run, settings = where, ["--save-every", "60", "--seconds", str(60 * args.peer_minutes), "--vec", args.peer_vec]
        settings += ["--stop-at", str(args.rule.bar + 1)]
    same = {"settings": settings, "git": revision() if who == "surefoot" else None}
    if (where / "run.json").exists():
        found = json.loads((where / "run.json").read_text())
        if {key: found.get(key) for key in same} != same:
            raise SystemExit(
                f"'{where}' is of another commit or of other settings: choose another --work, or remove it"
            )
        print("  it is there and is not trained again", flush=True)
        return where
    shutil.rmtree(where, ignore_errors=True)  # broken off
    (where / "policies").mkdir(parents=True)
    before = bare_rates(args.bare_seconds)
    if who == "surefoot":
        command = [sys.executable, "-m", "surefoot", "train", *settings, "--seed", str(seed), "--run-dir", str(run)]
    else:
        command = [args.peer_python, str(HERE / "peer.py"), "run", *settings, "--seed", str(seed), "--out", str(where)]
        command += ["--began", str(time.time())]
    look = (lambda: keep(run, where / "policies")) if who == "surefoot" else lambda: None
    began, code, peak = attend(command, where / "log.txt", look)
    after = bare_rates(args.bare_seconds)
    if code:
        print(f"{who} {seed} ended with code {code}: {(where / 'log.txt').read_text()[-400:]}", file=sys.stderr)
        return None
    if run != where:
        (run / "metrics.jsonl").rename(where / "metrics.jsonl")
    facts = {"who": who, "seed": seed, **same, "began": began, "bare": [before, after], "peak_memory": peak}
    (where / "run.json").write_text(json.dumps(facts))
    return where


def judge_all(command: list[str], where: Path, rule: Rule, workers: int) -> dict[int, Row]:
    """Judge a run's policies side by side until the race is decided; what has been judged is kept in judged.json."""
    policies = sorted((where / "policies").glob("[0-9]*"))
    file = where / "judged.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    known: dict[int, Row] = {
        int(i): row for i, row in before.get("known", {}).items() if before["rule"] == asdict(rule)
    }
    under_way = set[int]()
    turn = threading.Condition()

    def work() -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=env) as judge:
            assert judge.stdin is not None
            assert judge.stdout is not None
            while True:
                with turn:
                    while True:
                        wanted = plan({i: rule.passed(row) for i, row in known.items()}, len(policies))
                        mine = next((i for i in wanted if i not in under_way), None)
                        if mine is not None or not wanted or not under_way:
                            break
                        turn.wait()
                    if mine is None:
                        turn.notify_all()
                        judge.stdin.close()
                        return
                    under_way.add(mine)
                order = [str(policies[mine]), 1_000_003 + 1_000 * mine, asdict(rule)]
                judge.stdin.write(json.dumps(order) + "\n")
                judge.stdin.flush()
                answer = judge.stdout.readline()
                with turn:
                    under_way.discard(mine)
                    if answer:
                        known[mine] = json.loads(answer)
                        file.write_text(json.dumps({"rule": asdict(rule), "known": known}))
                        games = known[mine]["scores"] or known[mine]["first"]
                        text = (
                            f"  policy {mine + 1} of {len(policies)}: {statistics.mean(games):.2f} ({len(games)} games)"
                        )
                        print(text, flush=True)
                    turn.notify_all()
                    if not answer:
                        raise RuntimeError(f"the judge of {policies[mine]} has failed")

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return known


def describe(where: Path, known: dict[int, Row], rule: Rule) -> Row:
    """What a run's files say: its policies with their scores, where it reached the bar, and the yardstick."""
    facts: Row = json.loads((where / "run.json").read_text())
    policies = sorted((where / "policies").glob("[0-9]*"))
    rows = read_rows(where / "metrics.jsonl")
    began, bare = facts.pop("began"), [rate for core in facts["bare"] for rate in core]
    scale = statistics.mean(bare) / REFERENCE
    at = [p.stat().st_mtime - began for p in policies]
    clock = {row["step"]: row["seconds"] for row in rows}
    late = min((s - clock[int(p.stem)] for s, p in zip(at, policies, strict=True) if int(p.stem) in clock), default=0.0)

    def point(seconds: float, decisions: int) -> Row:
        scaled = {"seconds": round(seconds, 2), "scaled_seconds": round(seconds * scale, 2)}
        return scaled | {"decisions": decisions, "frames": FRAMES * decisions}

    points = [point(s, int(p.stem)) for s, p in zip(at, policies, strict=True)]
    judged = [points[i] | known[i] | {"policy": i} for i in sorted(known)]
    for row in judged:
        row["score"] = round(statistics.mean(row["scores"] or row["first"]), 3)
    first = reached({i: rule.passed(row) for i, row in known.items()})
    full = (row for row in rows if row["return_window"] == 100 and row["return_mean"] >= rule.bar)
    slow = next(full, None)
    facts |= {
        "scale": round(scale, 4),
        "trained": points[-1] if points else None,
        "saved_policies": len(policies),
        "seconds_a_save": save_cost(rows, {int(p.stem) for p in policies}),
        "reached": next((row for row in judged if row["policy"] == first), None),
        "last": judged[-1] if judged else None,
        "yardstick": point(slow["seconds"] + late, slow["step"]) if slow else None,
        "judged": judged,
        "training": [
            [round(r["seconds"] + late, 1), r["step"], r["return_mean"]] for r in rows[:: max(1, len(rows) // 100)]
        ],
    }
    return facts


def save_cost(rows: list[Row], saved: set[int]) -> float | None:
    """Seconds that a save takes on training's clock: what iterations after one take longer outside of their stages."""
    rest: dict[bool, list[float]] = {True: [], False: []}
    for before, row in itertools.pairwise(rows):
        spent = row["seconds"] - before["seconds"] - sum(row[key] for key in ("env_s", "act_s", "learn_s"))
        rest[before["step"] in saved].append(spent)
    if not rest[True] or not rest[False]:
        return None
    return round(statistics.median(rest[True]) - statistics.median(rest[False]), 4)


def summary(runs: list[Row]) -> Row:
    """Of each side: how many reached the bar, and the median and the worst of what it took."""
    found: Row = {}
    for who in dict.fromkeys(run["who"] for run in runs):
        mine = [run for run in runs if run["who"] == who]
        there = [run["reached"] for run in mine if run["reached"]]
        slow = [run["yardstick"] for run in mine if run["yardstick"]]
        found[who] = {"seeds": len(mine), "reached": len(there), "peak_memory": max(run["peak_memory"] for run in mine)}
        for name, rows in (("policy", there), ("yardstick", slow)):
            if len(rows) == len(mine):  # a median over those that came there alone would flatter
                for key in ("seconds", "scaled_seconds", "decisions"):
                    values = [row[key] for row in rows]
                    found[who][f"{name}_{key}"] = {"median": statistics.median(values), "worst": max(values)}
    return found


def show(runs: list[Row], rule: Rule) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    titles = f"|seed|score of {rule.bar:g} after s|scaled s|decisions|last-100 yardstick s|scaled s|score|MB|bare/core"
    table = Table(*titles.split("|"), title="the race")
    for run in runs:
        hit, slow, last = run["reached"], run["yardstick"], run["last"]
        cells = [f"{hit['seconds']:.1f}", f"{hit['scaled_seconds']:.1f}", f"{hit['decisions']:,}"] if hit else []
        if not hit:
            where = f"score {last['score']:.1f} after {run['trained']['seconds'] / 60:.1f} min" if last else "no policy"
            cells = [f"not reached: {where}", "", ""]
        cells += [f"{slow['seconds']:.1f}", f"{slow['scaled_seconds']:.1f}"] if slow else ["not reached", ""]
        cells += [f"{(hit or last or {'score': float('nan')})['score']:.2f}", f"{run['peak_memory'] / 1e6:,.0f}"]
        table.add_row(run["who"], str(run["seed"]), *cells, f"{run['scale'] * REFERENCE:,.0f}")
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for who, facts in summary(runs).items():
        parts = [f"{facts['reached']} of {facts['seeds']} seeds reached {rule.bar:g}"]
        for name, unit in (("policy_scaled_seconds", "scaled s"), ("policy_decisions", "decisions")):
            if name in facts:
                parts.append(f"median {facts[name]['median']:,.0f}, worst {facts[name]['worst']:,.0f} {unit}")
        if "yardstick_scaled_seconds" in facts:
            parts.append(f"yardstick median {facts['yardstick_scaled_seconds']['median']:,.0f} scaled s")
        console.print(f"{who}: " + "; ".join(parts), highlight=False)


def picture(runs: list[Row], rule: Rule, path: Path) -> None:
    """Score against scaled time: judged policies, one line per seed, and where the bar was reached."""
    from matplotlib.figure import Figure

    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ours = [run for run in runs if run["who"] == "surefoot"]
    for run in runs:
        colour = f"C{ours.index(run) % 10}" if run in ours else "0.45"
        style = {"color": colour, "ls": "-" if run in ours else "--"}
        xs, ys = [row["scaled_seconds"] for row in run["judged"]], [row["score"] for row in run["judged"]]
        axes.plot(xs, ys, marker=".", ms=4, lw=1.2, label=f"{run['who']}, seed {run['seed']}", **style)
        if hit := run["reached"]:
            axes.plot(hit["scaled_seconds"], hit["score"], marker="*", ms=14, color=colour)
    axes.axhline(rule.bar, color="0.7", lw=0.8)
    if len(ours) < len(runs) and ours:
        axes.set_xscale("log")
    axes.set(xlabel=f"seconds of training, at {REFERENCE:,.0f} bare emulator steps/s a core", ylabel="score")
    axes.set_title(f"policies as they were saved; star: the first of two in a row that score {rule.bar:g}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def judge() -> None:
    """Answer orders on standard input: [policy file, seed, rule] gets the scores of its games."""
    import torch

    from surefoot.runs.evaluation import evaluate
    from surefoot.runs.policy_file import load_policy

    torch.set_num_threads(1)

    class Kept:
        """An environment's description that makes its games once: loading a ROM takes as long as playing seconds."""

        def __init__(self, env) -> None:
            self.env, self.games, self.given = env, [], 0

        def make(self, render: bool = False):
            if self.given == len(self.games):
                self.games.append(self.env.make())
            self.given += 1
            return self.games[self.given - 1]

    games: dict = {}
    for line in sys.stdin:
        file, seed, rule = json.loads(line)
        policy, env, _ = load_policy(file)
        kept = games.setdefault(env, Kept(env))

        def play(episodes: range, policy=policy, kept=kept, seed: int = seed) -> list[float]:
            kept.given = 0
            return evaluate(policy, kept, episodes, seed, parallel=25).scores

        print(json.dumps(Rule(**rule).judge(play)), flush=True)


def main() -> None:
    more = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[71, 72, 73, 74, 75])
    parser.add_argument("--task", default="pong")
    parser.add_argument("--peer-seeds", type=int, nargs="*", default=[])
    parser.add_argument("--peer-python", help="a Python that has stable-baselines3")
    parser.add_argument("--peer-minutes", type=float, default=60.0, help="the peer stops there, or at bar + 1")
    parser.add_argument("--peer-vec", choices=("dummy", "subproc"), default="dummy", help="the faster one, by speed.py")
    parser.add_argument("--work", type=Path, default=Path("runs/race"), help="where runs and policies stay")
    parser.add_argument("--out", type=Path, default=Path(f"bench/records/{date.today()}_race"))
    parser.add_argument("--bare-seconds", type=float, default=5.0)
    for name, value in asdict(Rule()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="of the rule; for trials")
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(sys.argv[1:more])
    if args.judge:
        return judge()
    if args.peer_seeds and not args.peer_python:
        parser.error("--peer-seeds needs --peer-python")
    args.more, args.work = sys.argv[more + 1 :], args.work.resolve()
    args.rule = Rule(**{name: getattr(args, name) for name in asdict(Rule())})
    cores, runs = len(os.sched_getaffinity(0)), []
    for who, seed in [("surefoot", s) for s in args.seeds] + [("Stable-Baselines3", s) for s in args.peer_seeds]:
        print(f"{who}, seed {seed}: training", flush=True)
        where = train(who, seed, args)
        if where is None:
            continue
        ours = [sys.executable, str(HERE / "race.py"), "--judge"]
        judges = ours if who == "surefoot" else [args.peer_python, str(HERE / "peer.py"), "judge"]
        known = judge_all(judges, where, args.rule, cores)
        runs.append(describe(where, known, args.rule))
        write(runs, args)
    return show(runs, args.rule)


def write(runs: list[Row], args: argparse.Namespace) -> None:
    """The record and the picture, of the runs so far."""
    from surefoot.runs.worker import machine

    args.out.mkdir(parents=True, exist_ok=True)
    facts: Row = {"task": args.task, "more": args.more, "rule": asdict(args.rule), "machine": machine()}
    if args.peer_seeds:
        call = [args.peer_python, str(HERE / "peer.py"), "settings"]
        facts["peer"] = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    facts |= {"reference": REFERENCE, "summary": summary(runs), "runs": runs}
    (args.out / "record.json").write_text(json.dumps(facts, indent=1))
    picture(runs, args.rule, args.out / "race.png")


if __name__ == "__main__":
    main()
