"""Environments that misbehave, one at a time: what surefoot says, how soon, and whether the run resumes exactly.

    python bench/misbehaving.py [--only WORD ...] [--table]

Each is trained for 256 steps by the command line. Where that comes to its end it is also trained for 128 steps and
resumed to 256: *same* says whether both policies are the same, byte for byte. `--table` writes docs/misbehaving.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "bench" / "records" / "2026-11-30_misbehaving" / "rows.jsonl"
PAGE = ROOT / "docs" / "misbehaving.md"
AT = 60  # the step in which most of them misbehave, of all episodes together
COUNT = [0]
EPISODES = [0]


class Own(BaseException):
    """Nobody's Exception."""


class Mute(Exception):
    """Its text fails."""

    def __str__(self) -> str:
        raise self


def throw(error: BaseException) -> None:
    """As an expression."""
    raise error


def spin() -> None:
    """For ever."""
    while True:
        pass


def fork() -> None:
    """A copy of the process that comes back to the loop."""
    os.fork()


LIBC = ctypes.CDLL(None)
# in a step: called with what the step would return, [observation, reward, terminated, truncated, info]; returns it
STEPS: dict[str, Callable[[list[Any]], Any]] = {
    "raises": lambda _: throw(ValueError("it broke")),
    "raises a BaseException": lambda _: throw(Own("basely")),
    "raises what cannot be shown": lambda _: throw(Mute()),
    "raises a megabyte with escape sequences": lambda _: throw(ValueError("\x1b[2J" + "long " * 200_000)),
    "raises KeyboardInterrupt": lambda _: throw(KeyboardInterrupt()),
    "calls sys.exit(0)": lambda _: sys.exit(0),
    "calls os._exit(0)": lambda _: os._exit(0),
    "calls exit(0) in C": lambda _: LIBC.exit(0),
    "calls _exit(0) in C": lambda _: LIBC._exit(0),
    "becomes another program": lambda _: os.execv("/bin/true", ["true"]),
    "aborts in C": lambda _: LIBC.abort(),
    "crashes in C": lambda _: ctypes.string_at(0),
    "is killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "sends itself SIGTERM": lambda r: (os.kill(os.getpid(), signal.SIGTERM), r)[1],
    "never comes back, in Python": lambda _: spin(),
    "never comes back, in C": lambda _: time.sleep(1e6),
    "takes a second": lambda r: (time.sleep(1), r)[1],
    "returns four values": lambda r: r[:4],
    "returns six values": lambda r: [*r, None],
    "returns None": lambda _: None,
    "reward None": lambda r: [r[0], None, *r[2:]],
    "reward text": lambda r: [r[0], "one", *r[2:]],
    "reward an array of one number": lambda r: [r[0], np.array([r[1]]), *r[2:]],
    "reward an array of two numbers": lambda r: [r[0], np.array([1.0, 2.0]), *r[2:]],
    "reward NaN": lambda r: [r[0], float("nan"), *r[2:]],
    "reward inf": lambda r: [r[0], float("inf"), *r[2:]],
    "reward 1e38": lambda r: [r[0], 1e38, *r[2:]],
    "reward True": lambda r: [r[0], True, *r[2:]],
    "reward complex": lambda r: [r[0], 1j, *r[2:]],
    "terminated None": lambda r: [*r[:2], None, *r[3:]],
    "terminated np.bool_": lambda r: [*r[:2], np.bool_(r[2]), *r[3:]],
    "terminated text": lambda r: [*r[:2], "no", *r[3:]],
    "terminated and truncated at once": lambda r: [*r[:2], True, True, r[4]],
    "observation of another shape": lambda r: [r[0][:2], *r[1:]],
    "observation of another shape, same size": lambda r: [r[0][None], *r[1:]],
    "observation float64": lambda r: [r[0].astype(np.float64), *r[1:]],
    "observation int": lambda r: [r[0].astype(int), *r[1:]],
    "observation a list": lambda r: [r[0].tolist(), *r[1:]],
    "observation text": lambda r: ["left", *r[1:]],
    "observation None": lambda r: [None, *r[1:]],
    "observation NaN": lambda r: [r[0] * np.nan, *r[1:]],
    "observation inf": lambda r: [r[0] + np.inf, *r[1:]],
    "observation beyond its bounds": lambda r: [r[0] + 5, *r[1:]],
    "info None": lambda r: [*r[:4], None],
    "info a list": lambda r: [*r[:4], [1, 2]],
    "info with NaN and a clock": lambda r: [*r[:4], {"now": time.time(), "nan": float("nan"), "me": object()}],
    "prints": lambda r: (print("hello"), r)[1],
    "prints in C": lambda r: (LIBC.puts(b"hello"), LIBC.fflush(None), r)[2],
    "warns": lambda r: (warnings.warn("odd", stacklevel=1), r)[1],
    "closes standard output": lambda r: (os.close(1), r)[1],
    "leaves a thread": lambda r: (threading.Thread(target=time.sleep, args=(1e6,)).start(), r)[1],
    "forks": lambda r: (fork(), r)[1],
    "starts a program that stays": lambda r: (subprocess.Popen(["sleep", "5"]), r)[1],
    "goes to another directory": lambda r: (os.chdir("/"), r)[1],
    "takes the signals": lambda r: ([signal.signal(s, signal.SIG_IGN) for s in (2, 15)], r)[1],
    "seeds the global generators": lambda r: (random.seed(0), np.random.seed(0), r)[2],
    "turns NumPy's errors on": lambda r: (np.seterr(all="raise"), r)[1],
}
ALWAYS: dict[str, Callable[[list[Any]], Any]] = {  # in every step
    "ends every episode after one step": lambda r: [*r[:2], True, *r[3:]],
    "never ends": lambda r: [*r[:2], False, False, r[4]],
    "draws from global generators": lambda r: [r[0] + np.float32(random.random() + np.random.rand()), *r[1:]],
    "shows the time": lambda r: [r[0] + np.float32(time.time() % 1), *r[1:]],
    "carries a state over": lambda r: [r[0] + np.float32(EPISODES[0] * 0.1), *r[1:]],
    "masks everything": lambda r: [*r[:4], {"action_mask": np.zeros(3, np.int8)}],
}
ELSEWHERE = (
    "raises when it is made",
    "exits when it is made",
    "takes a second to be made",
    "has no observation space",
    "has no action space",
    "metadata None",
    "raises in the first reset",
    "raises in the tenth reset",
    "reset without a seed",
    "reset gives no info",
    "reset never comes back",
    "the same array every time",
    "raises in close",
    "exits in close",
    "raises in render",
    "renders text",
)


class Odd(gymnasium.Env[Any, Any]):
    """A ball falls through six rows, and one thing is wrong."""

    metadata: Any = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, what: str = "", render_mode: str | None = None) -> None:
        self.what, self.render_mode = what, render_mode
        if what == "raises when it is made":
            raise RuntimeError("no licence")
        if what == "exits when it is made":
            sys.exit(0)
        if what == "takes a second to be made":
            time.sleep(1)
        if what != "has no observation space":
            self.observation_space = spaces.Box(-2, 2, (3,), np.float32)
        if what != "has no action space":
            self.action_space = spaces.Discrete(3)
        if what == "metadata None":
            self.metadata = None
        self.same = np.zeros(3, np.float32)

    def see(self) -> Any:
        """Ball, row, paddle."""
        seen = np.array([self.ball / 2 - 1, self.row / 3 - 1, self.paddle / 2 - 1], np.float32)
        if self.what == "the same array every time":
            self.same[:] = seen
            return self.same
        return seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """A new ball."""
        super().reset(seed=seed)
        EPISODES[0] += 1
        if EPISODES[0] == {"raises in the first reset": 1, "raises in the tenth reset": 10}.get(self.what):
            raise ValueError("it broke")
        if self.what == "reset never comes back":
            time.sleep(1e6)
        self.ball, self.row, self.paddle = int(self.np_random.integers(5)), 0, 2
        return self.see() if self.what == "reset gives no info" else (self.see(), {})

    def step(self, action: int) -> Any:
        """Left, stay, right."""
        COUNT[0] += 1
        self.row, self.paddle = self.row + 1, min(4, max(0, self.paddle + int(action) - 1))
        over = self.row == 6
        result = [self.see(), float(over) * (1 if self.ball == self.paddle else -1), over, False, {}]
        if self.what in STEPS and COUNT[0] == AT:
            return STEPS[self.what](result)
        return tuple(ALWAYS[self.what](result)) if self.what in ALWAYS else tuple(result)

    def render(self) -> Any:
        """A picture."""
        if self.what == "raises in render":
            raise RuntimeError("no screen")
        return "text" if self.what == "renders text" else np.full((40, 40, 3), 40 * self.row % 255, np.uint8)

    def close(self) -> None:
        """Nothing to do."""
        if self.what == "raises in close":
            raise RuntimeError("stuck")
        if self.what == "exits in close":
            sys.exit(0)


class Seedless(Odd):
    """Its reset takes nothing."""

    def reset(self) -> Any:  # type: ignore[override]
        """A new ball."""
        return super().reset()


OPTIONS = (
    *("--num-envs", "2", "--num-steps", "16", "--minibatch-size", "32", "--num-epochs", "1", "--network.hidden", "16"),
    *("--seed", "1", "--ranks", "1", "--timeout", "5", "--eval-episodes", "1", "--eval-max-steps", "50"),
)


def command(folder: Path, *words: str) -> tuple[int, str, str, float]:
    """surefoot's exit code, what it printed, what it said, and the seconds it took."""
    begun = time.monotonic()
    place = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "bench")]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "surefoot", *words],
        cwd=folder, env=os.environ | place, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=(folder / "out").open("wb"), stderr=(folder / "err").open("wb"),
    )  # fmt: skip
    try:
        code = process.wait(90)
    except subprocess.TimeoutExpired:
        code = 124
    seconds = time.monotonic() - begun
    try:
        os.killpg(process.pid, signal.SIGKILL)
        left = True
    except ProcessLookupError:
        left = False
    said = (folder / "err").read_text(errors="replace")
    return code, "processes are left" if left else "", said, seconds


def look(what: str) -> dict[str, Any]:
    """One row."""
    env = "misbehaving:Seedless" if what == "reset without a seed" else "misbehaving:Odd"
    task = ("train", env, *OPTIONS, "--env.kwargs", f"what={what}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code, left, said, seconds = command(folder, *task, "--run-dir", "whole", "--total-steps", "256")
        said = re.sub(r"(?<![\w:])/\S+/", "", said)  # paths of this machine
        sentences = [line for line in said.splitlines() if line.startswith("surefoot: ")]
        row: dict[str, Any] = {"what": what, "code": code, "seconds": round(seconds, 1), "left": left}
        row |= {"said": [line.removeprefix("surefoot: ")[:400] for line in sentences], "traceback": "Traceback" in said}
        if code == 0:
            first = command(folder, *task, "--run-dir", "parts", "--total-steps", "128")[0]
            second = command(folder, "resume", "parts", "--total-steps", "256")[0]
            files = [folder / run / "policy.safetensors" for run in ("whole", "parts")]
            weights = [data[8 + int.from_bytes(data[:8], "little") :] for data in (file.read_bytes() for file in files)]
            row |= {"resumed": [first, second], "same": weights[0] == weights[1]}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a page."""
    ended, faults = sum(row["code"] == 0 for row in rows), sum(row["code"] == 1 for row in rows)
    hung, tracebacks = sum(row["code"] == 124 for row in rows), sum(row["traceback"] for row in rows)
    rest = len(rows) - ended - faults - hung
    lines = [
        "# Environments that misbehave\n",
        f"{len(rows)} environments with one thing wrong each, by `bench/misbehaving.py`: {ended} were trained to",
        f"the end, {faults} ended as a fault in a sentence (exit code 1), {rest} in another way that the table shows,",
        f"{hung} hung, {tracebacks} showed a traceback. *Same*:",
        "trained by halves and resumed, the policy is the same to the byte. Most misbehave in the 60th step. Seconds",
        "are those of the whole command, with the start of Python, at a timeout of 5 s.\n",
        "Steps are counted from the start of a process, so a reward of 1e38 comes again after a resume: another run.\n",
        "| the environment | exit code | seconds | same | said |\n|---|---|---|---|---|",
    ]
    for row in rows:
        said = "; ".join(dict.fromkeys(row["said"])).replace("|", "\\|").replace("<", "&lt;")
        same = {True: "yes", False: "no"}.get(row.get("same"), "")  # type: ignore[arg-type]
        lines.append(f"| {row['what']} | {row['code']} | {row['seconds']} | {same} | {said[:260]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Look at all of them, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="only those with one of these words")
    parser.add_argument("--table", action="store_true", help="write docs/misbehaving.md from the record")
    args = parser.parse_args()
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.touch()
    names = ["nothing", *STEPS, *ALWAYS, *ELSEWHERE]
    for what in names if not args.table else ():
        if not args.only or any(word in what for word in args.only):
            row = look(what)
            rows = [old for line in RECORD.read_text().splitlines() if (old := json.loads(line))["what"] != what]
            rows = sorted([*rows, row], key=lambda row: names.index(row["what"]))
            RECORD.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(json.dumps(row)[:300], flush=True)
    if args.table:
        PAGE.write_text(table([json.loads(line) for line in RECORD.read_text().splitlines()]), encoding="utf-8")


if __name__ == "__main__":
    main()
