"""Other people's environments, each in a Python environment of its own: trained, killed, resumed and filmed.

    python bench/environments.py --base .venv --work DIR [--only WORD ...] [--jobs 2]
    python bench/environments.py --table

The packages are the registry's newest. Each is installed into a new venv that also sees the packages of `--base`, so
that PyTorch is not installed again; surefoot itself is this repository's. A row of the record is written as soon as it
is known, and `--table` writes all rows into docs/environments.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "bench" / "records" / "2026-11-30_environments" / "rows.jsonl"
PAGE = ROOT / "docs" / "environments.md"
BEGIN, END = "<!-- table: bench/environments.py -->\n", "<!-- end of table -->\n"
SMALL = "--ranks 1 --num-envs 4 --num-steps 16 --total-steps 512 --minibatch-size 64 --seed 1 --save-every 1e-6"
PLAYED = "--eval-episodes 1 --eval-max-steps 50"
LIMIT = 400.0  # seconds of each command
LOCK = threading.Lock()


def cases() -> list[tuple[str, str]]:
    """What to install, and what to write after `surefoot train`."""
    lines = (Path(__file__).parent / "environments.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("|") for line in lines if line.strip() and not line.startswith("#")]
    return [(install.strip(), task.strip()) for install, task in pairs]


def python_with(install: str, base: Path, work: Path) -> tuple[Path, str]:
    """The interpreter of the package's own environment, and why it could not be installed."""
    where = work / "venvs" / re.sub(r"\W+", "-", install).strip("-")
    python = where / "bin" / "python"
    done = where / ".done"
    if not done.exists():
        subprocess.run([base / "bin" / "python", "-m", "venv", "--without-pip", where], check=True)
        seen = next((base / "lib").glob("python*/site-packages")).resolve()
        (next((where / "lib").glob("python*/site-packages")) / "base.pth").write_text(f"{seen}\n")
        (work / "overrides.txt").write_text("torch ; python_version < '3'\n")  # that of `base` is used
        uv = ["uv", "pip", "install", "-q", "--python", python, "--overrides", work / "overrides.txt"]
        pip = [python, "-m", "pip", "install", "-q", "--prefer-binary", "--no-compile"]
        command = [*(uv if shutil.which("uv") else pip), *install.split()]
        environ = os.environ | {"PIP_CACHE_DIR": str(work / "pip"), "UV_CACHE_DIR": str(work / "uv")}
        try:
            found = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
            done.write_text(f"{found.returncode} {install}\n{found.stderr[-3000:]}")
        except subprocess.TimeoutExpired:
            done.write_text(f"124 {install}\nnot installed after 300 s\n")
    code, *rest = done.read_text(encoding="utf-8").split("\n")
    errors = [line for line in rest if "error" in line.lower() or "not installed" in line]
    return python, "" if code.startswith("0 ") else ([*errors, *filter(None, rest[:-1])] or ["?"])[0].strip()


class Trial:
    """One task in its own Python, in a folder of its own."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def start(self, command: str) -> subprocess.Popen[str]:
        """surefoot, with its errors in a file."""
        environ = os.environ | {
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'docs' / 'examples'}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "1000",
        }
        with (self.folder / "errors").open("a", encoding="utf-8") as errors:
            return subprocess.Popen(
                [self.python, "-m", "surefoot", *shlex.split(command)],
                cwd=self.folder,
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def run(self, command: str) -> int:
        """Its exit code; 124 where it takes too long."""
        process = self.start(command)
        try:
            return process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            kill(process)

    def killed(self, command: str) -> bool:
        """Start a run and kill it after its first checkpoint; False where it had ended by then."""
        process, begun = self.start(command), time.monotonic()
        try:
            while process.poll() is None and time.monotonic() < begun + LIMIT:
                if any((self.folder / "killed" / "checkpoints").glob("[0-9]*/state.json")):
                    kill(process)
                    process.wait()
                    return not (self.folder / "killed" / "report.md").exists()
                time.sleep(0.002)
            return False
        finally:
            kill(process)

    def said(self) -> list[str]:
        """What surefoot said, without the paths of this machine."""
        text = (self.folder / "errors").read_text(encoding="utf-8", errors="replace")
        lines = [line.removeprefix("surefoot: ") for line in text.splitlines() if line.startswith("surefoot: ")]
        return list(dict.fromkeys(re.sub(r"(?<![\w:])/\S+/", ".../", line) for line in lines))


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a process and all it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def without(options: str, task: str) -> str:
    """The options, as pairs of name and value, less those that the task has itself."""
    words = options.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return " ".join(f"{name} {value}" for name, value in pairs if name not in task.split())


def parameters(policy: Path) -> str:
    """The digest of a policy's parameters: a safetensors file without its header, which also has the score."""
    data = policy.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def versions(python: Path, package: str) -> dict[str, str]:
    """Of the package, of Gymnasium and of NumPy, as its own Python finds them."""
    code = "import sys; from importlib.metadata import version\nfor n in sys.argv[1:]: print(version(n))"
    found = subprocess.run([python, "-c", code, package, "gymnasium", "numpy"], capture_output=True, text=True)
    return dict(zip(("version", "gymnasium", "numpy"), found.stdout.split(), strict=False))


def look(install: str, task: str, base: Path, work: Path) -> dict[str, Any]:
    """One row: does it train, is it exact after SIGKILL, is there a film, what was said."""
    package = re.split(r"[\[=<> ]", install)[0]
    row: dict[str, Any] = {"install": install, "package": package, "task": task}
    python, why_not = python_with(install, base, work)
    if why_not:
        return row | {"trains": False, "error": f"not installed: {why_not[:300]}"}
    row |= versions(python, package)
    trial = Trial(python, work / "runs" / re.sub(r"\W+", "-", f"{package}-{task}")[:80])
    begun = time.monotonic()
    code = trial.run(f"train {task} --run-dir whole {without(SMALL, task)} {PLAYED}")
    row |= {"seconds": round(time.monotonic() - begun, 1), "notes": trial.said()}
    whole = trial.folder / "whole"
    row["trains"] = (whole / "policy.safetensors").exists() and code in (0, 124)
    if not row["trains"] or code:
        row["error"] = "no end after 400 s" if code == 124 else (row["notes"] or [f"exit code {code}"])[-1]
    if not row["trains"]:
        return row
    row["film"] = next((file.name for file in whole.glob("game.*")), "")
    if not row["film"] and code != 124 and trial.run("video whole"):
        row["no_film"] = trial.said()[-1]
    steps = [json.loads(line) for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    row["steps_per_second"] = steps[-1].get("steps_per_second")
    if not code and trial.killed(f"train {task} --run-dir killed {without(SMALL, task)} --eval-episodes 0"):
        row["resume"] = trial.run("resume killed")
        ends = [parameters(file) for file in trial.folder.glob("*/policy.safetensors")]
        row["exact"] = len(ends) == 2 and len(set(ends)) == 1
        row["notes_resumed"] = [line for line in trial.said() if line not in row["notes"]]
    return row


def write(row: dict[str, Any]) -> None:
    """Put a row into the record, in the place of an older one of the same package and task."""
    with LOCK:
        key = (row["install"], row["task"])
        rows = [old for old in read() if (old["install"], old["task"]) != key]
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        order = {pair: i for i, pair in enumerate(cases())}
        rows = sorted([*rows, row], key=lambda row: order.get((row["install"], row["task"]), len(order)))
        RECORD.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read() -> list[dict[str, Any]]:
    """The record's rows."""
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()] if RECORD.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown, those that train first, under a sentence that counts them."""
    packages = {row["package"] for row in rows}
    learn = {row["package"] for row in rows if row["trains"]}
    exact = [row["exact"] for row in rows if "exact" in row]
    films = sum(bool(row.get("film")) for row in rows)
    lines = [
        f"{len(learn)} of {len(packages)} packages train; {sum(exact)} of {len(exact)} tasks that were killed ended "
        f"with the same bytes; {films} have a film.\n",
        "| package | `surefoot train` ... | trains | exact after SIGKILL | film | said |\n|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: not row["trains"]):
        older = [f"{name} {row[name]}" for name in ("numpy", "gymnasium") if name in row and row[name] < FLOORS[name]]
        same = {True: "yes", False: "no", None: "not tried"}[row.get("exact")] if row["trains"] else ""
        notes = [*row.get("notes", []), *row.get("notes_resumed", [])] if row["trains"] else []
        notes += [row["no_film"]] if "no_film" in row else []
        notes = [note for note in [*notes, *([row["error"]] if row.get("error") else []), *older] if not PROGRESS(note)]
        said = "; ".join({re.sub(r"[-\d.]+", "", note): note for note in reversed(notes)}.values())
        said = said.replace("|", "\\|").replace("<", "&lt;")
        said = said if len(said) < 360 else said[:350] + " ..."
        how = f", `pip install {row['install']}`" if re.search("[ <=]", row["install"]) else ""
        cells = [f"{row['package']} {row.get('version', '')}".strip() + how, f"`{row['task']}`"]
        cells += ["yes" if row["trains"] else "no", same, "yes" if row.get("film") else "no" if row["trains"] else ""]
        lines.append("| " + " | ".join([*cells, said]) + " |")
    return "\n".join(lines) + "\n"


PROGRESS = re.compile(r": getting ready|^filming|steps/s").search  # lines that say only that something is under way
FLOORS = {"numpy": "2.", "gymnasium": "1.3"}  # older ones, which a package insisted on, are named in its row


def main() -> None:
    """Look at the packages, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="the venv with PyTorch, NumPy and Gymnasium")
    parser.add_argument("--work", type=Path, help="folder for the environments and the runs")
    parser.add_argument("--only", nargs="*", default=[], help="only tasks or packages with one of these words")
    parser.add_argument("--jobs", type=int, default=1, help="packages at a time")
    parser.add_argument("--again", action="store_true", help="also those that the record has")
    parser.add_argument("--table", action="store_true", help="write docs/environments.md from the record")
    args = parser.parse_args()
    if args.table:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(before + BEGIN + table(read()) + END + rest.split(END)[1], encoding="utf-8")
        return
    known = {(row["install"], row["task"]) for row in read()}
    todo = [case for case in cases() if args.again or case not in known]
    todo = [case for case in todo if not args.only or any(word in " ".join(case) for word in args.only)]

    def one(case: tuple[str, str]) -> None:
        row = look(*case, args.base.absolute(), args.work.absolute())
        write(row)
        print(json.dumps({key: row.get(key) for key in ("task", "trains", "exact", "film", "seconds", "error")}))
        sys.stdout.flush()

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, todo))


if __name__ == "__main__":
    main()
