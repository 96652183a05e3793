"""One and two real ranks of `pong` on this machine, started by each engine, in turns.

    python bench/engines.py bench/records/DATE_engines

`--ranks`, torchrun with one node, torchrun with two nodes that are processes of this machine and so talk by sockets
over loopback, and a Ray that is started here (`pip install 'surefoot[ray]'`). The same 32 environments are shared by
the ranks (strong scaling). Every run is a file, and is left out where that is there. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from common import tree

ROUNDS, STEPS, WARM_UP = 3, 32_768, 2
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ALIKE = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}  # Ray's workers have 15 otherwise, and wait for all others
ENGINES = ("local 1", "local 2", "torchrun 1", "torchrun 2", "torchrun 2 nodes", "ray 1", "ray 2")


def commands(engine: str, run: Path) -> list[list[str]]:
    """What is typed, on each node."""
    train = ["-m", "surefoot", "train", "pong", "--total-steps", str(STEPS), "--eval-episodes", "0", "--quiet"]
    train += ["--run-dir", str(run)]
    kind, count, *nodes = engine.split()
    if kind in ("local", "ray"):
        return [[sys.executable, *train, "--ranks", count, *(["--ray"] if kind == "ray" else [])]]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        at = ["--master-addr", "127.0.0.1", "--master-port", str(probe.getsockname()[1])]
    if not nodes:
        return [[*TORCHRUN, *at, "--nproc-per-node", count, *train]]
    each = ["--nnodes", count, "--nproc-per-node", "1"]
    return [[*TORCHRUN, *at, *each, "--node-rank", str(node), *train] for node in range(int(count))]


def used(processes: list[int]) -> dict[int, float]:
    """Seconds of the processor that each has taken."""
    found = {}
    for process in processes:
        with suppress(OSError):  # it has just ended
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            found[process] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def measure(engine: str, run: Path) -> dict[str, object]:
    """Rows of a run's metrics, what its processes have taken of the processor, and the load before it."""
    load, before = os.getloadavg(), os.times()
    nodes = [subprocess.Popen(call, env=os.environ | ALIKE) for call in commands(engine, run)]
    seen = dict[int, float]()
    while any(node.poll() is None for node in nodes):
        seen |= used(tree(os.getpid())[1:])
        time.sleep(0.5)
    if any(node.returncode for node in nodes):
        raise SystemExit(f"{engine} has failed")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    cpu = max(cpu, sum(seen.values()))  # Ray does not wait for its workers, whose times nobody is told
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: row[k] for k in ("steps_per_second", "env_s", "act_s", "learn_s", "sent_bytes")} for row in rows]
    return {"engine": engine, "began": time.strftime("%H:%M:%S"), "load": load, "cpu_s": cpu, "rows": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for number in range(ROUNDS):
        for engine in ENGINES:
            file = out / f"{engine.replace(' ', '-')}-{number}.json"
            if not file.exists():
                file.write_text(json.dumps(measure(engine, out / file.stem), indent=1))
    print("| engine and ranks | steps/s, median of each run | median | CPU seconds | load before |")
    print("|---|---|---|---|---|")
    for engine in ENGINES:
        runs = [json.loads((out / f"{engine.replace(' ', '-')}-{n}.json").read_text()) for n in range(ROUNDS)]
        rates = [statistics.median(row["steps_per_second"] for row in run["rows"][WARM_UP:]) for run in runs]
        columns = rates, [run["cpu_s"] for run in runs], [run["load"][0] for run in runs]
        speed, cpu, load = (", ".join(f"{x:,.0f}" for x in column) for column in columns)
        print(f"| {engine} | {speed} | {statistics.median(rates):,.0f} | {cpu} | {load} |")


if __name__ == "__main__":
    main()
