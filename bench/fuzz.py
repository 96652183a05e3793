"""Random damage to the files of a run, and random command lines: each is without effect, noted or ends in a sentence.

    python bench/fuzz.py files --count 500 --seed 1
    python bench/fuzz.py lines --count 1000 --seed 1

Prints how many did what, and every traceback, hang (a minute), gigabyte, write outside of the run, or other result that
nothing was said about (but for what was sealed again, as only the user can); exits 1 where there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import surefoot
from surefoot.commands import cli
from surefoot.errors import UserError
from surefoot.runs.files import seal, unseal

FIELDS = {"num_envs": 2, "num_steps": (8,), "minibatch_size": 8, "num_epochs": 1, "total_steps": 48}
ODD: list[Any] = [None, True, -1, 0, 1.5, 10**30, 10**400, "", "x", "\x1b[2J", "../../x", [], {}, [[]], {"a": None}]
WORDS = [
    *[
        "train",
        "evaluate",
        "resume",
        "video",
        "summary",
        "bench",
        "picture",
        "trian",
        "pong",
        "CartPole-v1",
        "FrozenLake-v1",
        "pogn",
        "a:b",
        "a:b:c",
        ":",
        ".x:y",
    ],
    *[
        "ALE/Pong-v5",
        "ALE/x-v5",
        "-v1",
        "x-v0",
        "cliff",
        "run",
        "nowhere",
        "./run/policy.safetensors",
        "/dev/null",
        ".",
        "..",
        "/",
        "~",
        "~nobody",
    ],
    *[
        "--seed",
        "--num-envs",
        "--num-steps",
        "--minibatch-size",
        "--total-steps",
        "--run-dir",
        "--from",
        "--out",
        "--json",
        "--quiet",
    ],
    *[
        "--no-quiet",
        "--greedy",
        "--trust",
        "--task",
        "--ranks",
        "--device",
        "--env.kwargs",
        "--objective.clip-range",
        "--network.hidden",
    ],
    *[
        "objective:surrogate",
        "network:mlp",
        "--learning-rate.initial",
        "--lr",
        "--help",
        "-h",
        "--env.wrappers",
        "--max-steps",
    ],
    *[
        "--episodes",
        "--seeds",
        "--eval-envs",
        "--",
        "-",
        "=",
        "--=x",
        "--seed=3",
        "1",
        "0",
        "-1",
        "1e6",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "x=1",
        "=1",
        "map_name=[",
    ],
    *["is_slippery=no", "\x1b[31m", "�", "ü", "🎲", "None", "true", "cuda", "meta", "mps", "cpu"],
    *("", " ", "a\nb", "x" * 5000, "[" * 3000, "9" * 5000, "--" + "y" * 3000),
]
KINDS = [
    "flip",
    "flip",
    "cut",
    "grow",
    "noise",
    "json",
    "json",
    "json",
    "reseal",
    "reseal",
    "header",
    "tensors",
    "swap",
]


class Late(BaseException):
    """A minute is over."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in inner for found in ((*path, key), *places(part, (*path, key)))]


def change_json(value: Any, rng: random.Random) -> Any:
    """The value with one field changed, removed or added."""
    found = places(value)
    if not found or rng.random() < 0.05:
        return rng.choice(ODD)
    *way, last = rng.choice(found)
    part = value
    for key in way:
        part = part[key]
    if isinstance(part, dict) and rng.random() < 0.3:
        del part[last]
    else:
        part[last] = rng.choice(ODD)
    return value


def damage(run: Path, rng: random.Random) -> str:
    """Damage one file of a run at random; returns what was done."""
    file = rng.choice(sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock"))
    data, name = file.read_bytes(), str(file.relative_to(run))
    kind = rng.choice([*KINDS, "special"])
    if kind == "flip":
        changed = bytearray(data or b"\0")
        for _ in range(rng.choice((1, 1, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
    elif kind == "cut":
        file.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "grow":
        at = rng.randrange(len(data) + 1)
        file.write_bytes(data[:at] + rng.randbytes(rng.choice((1, 100, 10_000))) + data[at:])
    elif kind == "noise":
        file.write_bytes(rng.choice((rng.randbytes(1000), b"[" * 200_000, b'{"a":' * 100_000, b"9" * 10_000, b"")))
    elif kind in ("json", "reseal") and file.suffix in (".json", ".jsonl"):
        lines = data.split(b"\n") if file.suffix == ".jsonl" else [data]
        at = rng.randrange(max(1, len(lines) - 1))
        if kind == "reseal" and name != "evaluation.json" and file.suffix == ".json":
            facts = change_json(unseal(data), rng)
            lines[at] = seal(facts) if isinstance(facts, dict) else json.dumps(facts).encode()
        else:
            lines[at] = json.dumps(change_json(json.loads(lines[at]), rng)).encode()
        file.write_bytes(b"\n".join(lines))
    elif kind == "header" and file.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        head = json.loads(data[8:end])
        meta = head.get("__metadata__", {})
        if "surefoot" in meta and rng.random() < 0.6:
            meta["surefoot"] = json.dumps(change_json(json.loads(meta["surefoot"]), rng))
        else:
            head = change_json(head, rng)
        text = json.dumps(head).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    elif kind == "tensors" and file.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        special = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\x80\x7f", b"\xff" * 4))
        at = end + rng.randrange(max(1, (len(data) - end) // 4)) * 4
        file.write_bytes(data[:at] + special + data[at + 4 :])
    elif kind == "swap":
        other = rng.choice(
            sorted(path for path in run.rglob("*") if path.is_file() and path not in (file, run / ".lock"))
        )
        shutil.copyfile(other, run / "swap")
        shutil.copyfile(file, other)
        (run / "swap").replace(file)
        name += f" and {other.relative_to(run)}"
    else:
        file.unlink()
        how = rng.choice(("gone", "folder", "pipe", "link", "sparse"))
        if how == "folder":
            file.mkdir()
        elif how == "pipe":
            os.mkfifo(file)
        elif how == "link":
            file.symlink_to(rng.choice(("/dev/zero", "/etc/passwd", "../outside/victim", "nowhere")))
        elif how == "sparse":
            with open(file, "wb") as sparse:
                sparse.truncate(40 << 30)
        kind = how
    return f"{kind} of {name}"


def readers(run: Path) -> dict[str, Callable[[], object]]:
    """What reads a run's files; each returns its result."""
    short = FIELDS | {"quiet": True, "eval_episodes": 0}

    def learned(made: Any) -> object:
        return {name: x.tolist() for name, x in surefoot.load_policy(made.path)[0].state_dict().items()}

    return {
        "resume": lambda: learned(surefoot.resume(run, quiet=True, ranks=1, total_steps=96, eval_episodes=0)),
        "evaluate": lambda: surefoot.evaluate(run, episodes=1).scores,
        "video": lambda: surefoot.video(run, run / "film.gif", max_steps=2).exists(),
        "from": lambda: learned(surefoot.train("CartPole-v1", source=run, run_dir=run.parent / "new", **short)),
        "again": lambda: learned(surefoot.train("CartPole-v1", run_dir=run, **short)),
    }


def attempt(act: Callable[[], object], usual: object = None) -> tuple[str, str]:
    """What an act does: "no effect", "a note", "a sentence", or one of the kinds that must not be, with its text.

    `usual`: its result where nothing is damaged; None: any.
    """

    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            result = act()
        other = usual is not None and result != usual
        kind, text = ("a note" if said.getvalue() else "OTHER" if other else "no effect"), said.getvalue()
    except UserError as error:
        kind, text = "a sentence", str(error)
    except Late:
        kind, text = "HANG", traceback.format_exc()
    except BaseException:
        kind, text = "TRACEBACK", traceback.format_exc()
    finally:
        signal.alarm(0)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    return ("GIGABYTE", text) if more > 1 << 20 else (kind, text)


def files(count: int, seed: int) -> Counter[str]:
    """Damage a finished run `count` times, each time a copy, and let something read it."""
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        whole, run, outside = Path(folder, "whole"), Path(folder, "run"), Path(folder, "outside")
        outside.mkdir()
        (outside / "victim").write_text("mine")
        surefoot.train("CartPole-v1", run_dir=whole, quiet=True, **FIELDS, eval_episodes=2, save_every=1e-6)
        usual = dict[str, Any]()
        for name in readers(run):
            shutil.copytree(whole, run)
            usual[name] = readers(run)[name]()
            for old in (run, run.parent / "new"):
                shutil.rmtree(old, ignore_errors=True)
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            for old in (run, run.parent / "new"):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(whole, run)
            what = damage(run, rng)
            name, act = rng.choice(sorted(readers(run).items()))
            kind, text = attempt(act, None if what.startswith(("reseal", "header")) else usual[name])
            if [p.name for p in outside.iterdir()] != ["victim"] or (outside / "victim").read_text() != "mine":
                kind = "OUTSIDE"
            found[kind] += 1
            if kind.isupper():
                print(f"{kind} {number}: {what}; {name}\n{text}", flush=True)
    return found


def lines(count: int, seed: int) -> Counter[str]:
    """Read `count` random command lines, and run those that do not train or measure."""
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        surefoot.train("CartPole-v1", run_dir="run", quiet=True, **FIELDS, eval_episodes=0)
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            args = [rng.choice(WORDS[:9]), *(rng.choice(WORDS) for _ in range(rng.randrange(6)))]

            def act(args: list[str] = args) -> None:
                with contextlib.redirect_stdout(io.StringIO()):
                    try:
                        if args[0] in ("train", "bench", "resume"):
                            cli.parse(args)
                        elif code := cli.main(args):
                            raise UserError(f"exit code {code}")
                    except SystemExit:
                        pass  # --help

            kind, text = attempt(act)
            found[kind] += 1
            if kind.isupper():
                print(f"{kind} {number}: {args!r}\n{text}", flush=True)
    return found


def main() -> int:
    """Print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("files", "lines"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    found = (files if asked.what == "files" else lines)(asked.count, asked.seed)
    print(
        f"{asked.count} {asked.what}, seed {asked.seed}:", ", ".join(f"{kind} {n}" for kind, n in found.most_common())
    )
    return any(kind.isupper() for kind in found)


if __name__ == "__main__":
    sys.exit(main())
