"""What surefoot chooses by itself beside other libraries, at equal steps: scores, and wall time.

    VENV/bin/python bench/suite.py memory --work runs/suite --out bench/records/DATE_memory
    VENV/bin/python bench/suite.py vectors --work runs/suite --out bench/records/DATE_suite --tasks FrozenLake-v1

`vectors`: the settings of environments that have no preset (`presets.VECTORS`, also where there is one), the defaults
of Stable-Baselines3's PPO, and its zoo's settings for the task where it has some. `memory`: two of POPGym's tasks,
without a memory and with a GRU, and sb3-contrib's RecurrentPPO with its defaults and as many environments.

Each run is a process of its own with one thread, and as many run as there are cores. A score is the mean of the last
100 training episodes, after each eighth of the run; the zoo's seconds include its start. Runs stay in --work: the same
command goes on where it was stopped. Writes OUT/record.json after every run. VENV holds surefoot, stable-baselines3,
sb3-contrib, rl_zoo3 and popgym.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from common import Row

EIGHTHS, WINDOW, ENVS = 8, 100, 8
GRU, RECURRENT, ZOO = "surefoot, GRU", "RecurrentPPO", "Stable-Baselines3, zoo"
TASKS = {  # steps
    "vectors": {
        **dict.fromkeys(("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"), 102_400),
        **dict.fromkeys(("Pendulum-v1", "FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1"), 102_400),
        **dict.fromkeys(("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3", "Taxi-v4"), 307_200),
        **dict.fromkeys(("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Reacher-v5"), 307_200),
    },
    "memory": {"popgym-RepeatPreviousEasy-v0": 102_400, "popgym-PositionOnlyCartPoleEasy-v0": 51_200},
}
WHO = {"vectors": ("surefoot", "Stable-Baselines3", ZOO), "memory": ("surefoot", GRU, RECURRENT)}


def surefoot_run(who: str, task: str, seed: int, steps: int, where: Path) -> None:
    """surefoot, with the settings that an environment without a preset has."""
    from dataclasses import replace

    import surefoot
    from surefoot.models.memory import GRU as Unit
    from surefoot.presets import VECTORS, find

    name = f"popgym:{task}" if task.startswith("popgym") else task
    cfg = find(name, memory=Unit()) if who == GRU else replace(VECTORS, env=find(name).env, task=task)  # no preset
    cfg = replace(cfg, seed=seed, total_steps=steps, eval_episodes=0)
    surefoot.train(cfg, run_dir=where / "run", ranks=1, quiet=True)
    shutil.move(where / "run" / "metrics.jsonl", where / "rows.jsonl")


def peer_run(who: str, task: str, seed: int, steps: int, where: Path) -> None:
    """Stable-Baselines3's PPO or RecurrentPPO with their defaults."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    if task.startswith("popgym"):
        import popgym  # noqa: F401  its environments are registered by the import
    began, scores = time.time(), list[float]()

    class Rows(BaseCallback):
        def _on_step(self) -> bool:
            scores.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            return True

        def _on_rollout_end(self) -> None:
            mean = statistics.fmean(scores[-WINDOW:]) if scores else None
            with open(where / "rows.jsonl", "a") as file:
                row = {"step": self.num_timesteps, "seconds": time.time() - began, "return_mean": mean}
                file.write(json.dumps(row) + "\n")

    if who == RECURRENT:
        from sb3_contrib import RecurrentPPO

        model: Any = RecurrentPPO("MlpLstmPolicy", make_vec_env(task, ENVS, seed), seed=seed, device="cpu")
    else:
        model = PPO("MlpPolicy", make_vec_env(task, 1, seed), seed=seed, device="cpu")
    model.learn(steps, Rows())


def zoo_run(task: str, seed: int, steps: int, where: Path) -> None:
    """The zoo's settings for the task, those of an older version of it where there are none for this one."""
    import rl_zoo3
    import yaml

    known = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml").read_text())
    settings = [known[name] for name in known if name.partition("-v")[0] == task.partition("-v")[0]]
    if not settings:
        return
    (where / "settings.yml").write_text(yaml.safe_dump({task: settings[0]}))
    more = ["--algo", "ppo", "--device", "cpu", "--num-threads", "1", "--eval-freq", "-1", "--save-freq", "-1"]
    how = ["--env", task, "--seed", str(seed), "-n", str(steps), "-f", where, "-conf", where / "settings.yml"]
    began = time.time()
    subprocess.run([sys.executable, "-m", "rl_zoo3.train", *more, *how], check=True)
    took, played = time.time() - began, list[tuple[float, float, int]]()
    for path in where.rglob("*.monitor.csv"):
        with open(path) as file:
            file.readline()  # a comment
            played += [(float(x["t"]), float(x["r"]), int(x["l"])) for x in csv.DictReader(file)]
    done, scores, rows = 0, list[float](), list[Row]()
    for _, score, length in sorted(played):
        done, scores = done + length, [*scores, score][-WINDOW:]
        if done <= steps:
            rows.append({"step": done, "seconds": took * done / steps, "return_mean": statistics.fmean(scores)})
    rows = rows and [*rows, rows[-1] | {"step": steps, "seconds": took}]
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(which: str, who: str, task: str, seed: int, work: Path) -> Row | None:
    """One run in a process of its own, unless it is there; its scores and seconds, None where there is no such run."""
    where = work / f"{task}-{who.replace(', ', '-')}-s{seed}"
    if not (where / "done").exists():
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        call = [sys.executable, __file__, which, "--run", who, task, str(seed), str(where)]
        with open(where / "log", "ab") as log:
            if subprocess.run(call, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
                print(f"{where.name} failed: see {log.name}", file=sys.stderr, flush=True)
                return None
        (where / "done").touch()
    there, steps = where / "rows.jsonl", TASKS[which][task]
    rows: list[Row] = [json.loads(line) for line in there.read_text().splitlines()] if there.exists() else []
    if not rows:
        return None
    reached = [[row["return_mean"] for row in rows if row["step"] <= steps * (i + 1) / EIGHTHS] for i in range(EIGHTHS)]
    scores = [None if not found or found[-1] is None else round(found[-1], 3) for found in reached]
    return {"scores": scores, "seconds": round(rows[-1]["seconds"], 1)}


def main() -> None:
    """Run what is missing; write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=list(TASKS))
    parser.add_argument("--tasks", nargs="+", help="some of them only")
    parser.add_argument("--who", nargs="+", help="some of the libraries only, as the record names them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("runs/suite"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=4, metavar=("WHO", "TASK", "SEED", "WHERE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps = TASKS[args.which]
    if args.run:
        who, task, seed, where = args.run
        if who == ZOO:
            zoo_run(task, int(seed), steps[task], Path(where))
        else:
            (surefoot_run if who.startswith("surefoot") else peer_run)(who, task, int(seed), steps[task], Path(where))
        return
    if not args.out:
        parser.error("--out is missing")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "record.json"
    record: Row = json.loads(file.read_text()) if file.exists() else {}
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {
            pool.submit(run, args.which, who, task, seed, args.work.resolve()): (task, who, seed)
            for task in args.tasks or steps
            for seed in dict.fromkeys(args.seeds)
            for who in args.who or WHO[args.which]
        }
        for future in as_completed(waiting):
            task, who, seed = waiting[future]
            if found := future.result():
                record.setdefault(task, {"steps": steps[task]}).setdefault(who, {})[str(seed)] = found
                print(task, who, seed, found, flush=True)
                file.write_text(json.dumps(record, indent=1) + "\n")
    for task, runs in record.items():
        for who, seeds in runs.items():
            if who != "steps":
                last = [one["scores"][-1] for one in seeds.values()]
                took = statistics.median(one["seconds"] for one in seeds.values())
                print(f"{task:<36}{who:<24}{took:>7.0f} s  {last}")


if __name__ == "__main__":
    main()
