"""The pages in a headless Chromium: how soon they are there, and what watching costs a training.

    python bench/pages.py [--rounds 5] [--only opens frames training] [--out RECORD]

opens: seconds from the command to the address, then to each page with its figures drawn. frames: steps a second that
arrive in the page of `surefoot watch`. training: seconds an iteration of `pong` takes without `--watch`, with it and
nobody there, with a browser, and with a reader who takes nothing; in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from websockets.sync.client import connect

from common import Row, record

HERE = Path(__file__).parent.parent
sys.path.insert(0, str(HERE / "tests"))
from browser import chromium, served  # noqa: E402

TRAIN = ["train", "pong", "--ranks", "2", "--eval-episodes", "0", "--quiet", "--total-steps"]


def opens(rounds: int) -> Iterator[Row]:
    """How soon the lesson is there."""
    start, seconds = [], dict[str, list[float]]()
    with chromium() as browser:
        for _ in range(rounds):
            begun = perf_counter()
            with served("lesson", "--port", "18600") as address:
                start.append(perf_counter() - begun)
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                names = [
                    "",
                    *(
                        path.stem.partition("-")[2]
                        for path in sorted((HERE / "src/surefoot/lesson/pages").glob("*.md"))
                    ),
                ]
                for name in names:
                    begun = perf_counter()
                    page.goto(f"{address.rsplit('/', 1)[0]}/{name}" if name else address)
                    page.wait_for_function("() => !document.querySelector('figure.play:not([data-shown])')")
                    seconds.setdefault(name or "first page", []).append(perf_counter() - begun)
                page.close()
    yield {"what": "surefoot lesson, until its address"} | median(start)
    for name, values in seconds.items():
        yield {"what": name} | median(values)


def frames(rounds: int) -> Iterator[Row]:
    """Steps a second in the browser, at the fastest that the page offers."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        run = str(Path(folder, "run"))
        surefoot(*TRAIN, "2048", "--run-dir", run).communicate()
        for saliency in (False, True):
            rates = []
            with served("watch", run, "--port", "18601") as address:
                page = browser.new_page()
                page.goto(address)
                page.get_by_label("what decided it").set_checked(saliency)
                page.locator("[name=speed]").fill("120")
                for _ in range(rounds):
                    rates.append(rate(page))
                page.close()
            yield {"what": "steps a second" + ", with what decided" * saliency} | median(rates)


def rate(page: Any) -> float:
    """Frames that are drawn in a second, over two seconds."""
    count = "() => new Promise(done => { let n = 0; const image = document.getElementById('frame');"
    count += " image.addEventListener('load', () => n++); setTimeout(() => done(n), 2000) })"
    return float(page.evaluate(count)) / 2


def training(rounds: int) -> Iterator[Row]:
    """What watching costs."""
    ways: dict[str, Callable[[ExitStack, str], Any] | None] = {
        "without --watch": None,
        "--watch, nobody there": lambda *_: None,
        "a browser at 30 steps a second": look,
        "a reader who takes nothing": stall,
    }
    spent = {name: list[float]() for name in ways}
    for _ in range(rounds):
        for name, reader in ways.items():
            spent[name].append(iteration(reader))
            print(name, round(spent[name][-1], 4), file=sys.stderr, flush=True)
    for name, values in spent.items():
        ratios = [x / base for x, base in zip(values, spent["without --watch"], strict=True)]
        yield {"what": name, "ratio": round(statistics.median(ratios), 3)} | median(values)


def iteration(reader: Callable[[ExitStack, str], Any] | None) -> float:
    """Median seconds an iteration takes, the first fifth left out."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = Path(folder, "run")
        process = surefoot(*TRAIN, "40960", "--run-dir", str(run), *["--watch"] * (reader is not None))
        if reader:
            reader(stack, next(line for line in process.stderr or () if line.startswith("open http")).split()[1])
        process.communicate()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["env_s"] + row["act_s"] + row["learn_s"] for row in rows[len(rows) // 5 :])


def look(stack: ExitStack, address: str) -> None:
    """Open the page, and leave it open."""
    stack.enter_context(chromium()).new_page().goto(address)


def stall(stack: ExitStack, address: str) -> None:
    """Connect, and read nothing."""
    home, _, token = address.partition("/?token=")
    headers = {"origin": home, "cookie": f"surefoot_{home.rsplit(':')[-1]}={token}"}
    connection = connect(f"ws{home[4:]}/play", additional_headers=headers, open_timeout=60, max_queue=1)
    stack.callback(connection.socket.close)


def surefoot(*command: str) -> subprocess.Popen[str]:
    """The command, at once."""
    return subprocess.Popen([sys.executable, "-m", "surefoot", *command], stderr=subprocess.PIPE, text=True)


def median(values: list[float]) -> Row:
    """Median and range."""
    return {"median": round(statistics.median(values), 4), "low": round(min(values), 4), "high": round(max(values), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"opens": opens, "frames": frames, "training": training}
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=known, default=list(known))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for name in args.only:
        for row in known[name](args.rounds):
            row |= {"rounds": args.rounds, "load": round(os.getloadavg()[0], 1)}
            print(json.dumps(row), flush=True)
            record(row, args.out, "pages.jsonl")


if __name__ == "__main__":
    main()
