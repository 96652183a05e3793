"""The directory of a run: making it, reading its files, and the commands for it. No torch."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.config import Config
from surefoot.errors import DAMAGE, Fault, UserError, note, one_line
from surefoot.parallel.launch import world
from surefoot.paths import absolute, file_name, is_address, shown
from surefoot.runs.files import Folder, below, unseal

if TYPE_CHECKING:
    from surefoot.runs.evaluation import Evaluation


def new_dir(task: str) -> Path:
    """A new directory runs/TASK-DATE-TIME, with a number appended if another run has begun in the same second."""
    if world() > 1:
        raise UserError("name a --run-dir: ranks started by torchrun must agree on it")
    name, above = f"{file_name(task)}-{datetime.now():%Y%m%d-%H%M%S}", absolute("runs")
    for number in itertools.count(1):
        where = above / (name if number == 1 else f"{name}-{number}")
        try:
            where.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"'{shown(where)}' cannot be made ({error.strerror}): name a --run-dir") from error
    return where


def discard(run_dir: Path) -> None:
    """Remove a run directory, and the one above, if they are empty."""
    with suppress(OSError):
        run_dir.rmdir()
        run_dir.parent.rmdir()


FORMAT = 5  # of config.json and checkpoints; 5: the names of the options
RUNTIME_FIELDS = (
    *("save_every", "timeout", "env_restarts", "skip_updates"),
    *("eval_every", "eval_games", "eval_episodes", "eval_envs", "eval_max_steps"),
)
"""what does not change the result of a run"""
MAY_CHANGE = ("total_steps", "total_iterations", "max_seconds", "stop_at", "device", *RUNTIME_FIELDS)


def described(run_dir: Path) -> tuple[Config, Path, object]:
    """The Config of a run directory, the file it is from, and the `own_seal` beside it.

    It is the newest checkpoint's where config.json is gone.
    """
    file, saved = run_dir / "config.json", checkpoints(run_dir)
    wrong = ""
    for folder in reversed(saved) if saved and not os.path.lexists(file) else [run_dir]:
        source = file if folder == run_dir else folder / "state.json"
        try:
            facts = read_state(folder) if folder != run_dir else read_facts(run_dir)
            require_format(facts, source)
            return Config.from_json(facts["config"]), source, facts.get("begun")
        except DAMAGE as error:
            wrong = wrong or f"its {source.name} cannot be used ({error})"
    raise UserError(f"'{shown(run_dir)}' is not a run directory: {wrong}")


def read_config(run_dir: Path) -> Config:
    """The Config of a run directory."""
    return described(run_dir)[0]


def read_facts(run_dir: Path) -> dict[str, Any]:
    """What config.json holds; raises OSError or ValueError."""
    with Folder(run_dir) as folder:
        return unseal(folder.read("config.json"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's state.json holds; raises OSError or ValueError."""
    with below(checkpoint.parent.parent, "checkpoints", checkpoint.name) as folder:
        return unseal(folder.read("state.json"))


def seals(folder: Path) -> list[tuple[Path, object]]:
    """The run that a folder with a policy may be of, as its directory or checkpoint, and the `own_seal` it holds."""
    begun = list[tuple[Path, object]]()
    newest = [(folder, checkpoint, "state.json") for checkpoint in checkpoints(folder)[-1:]]
    for run_dir, place, name in (
        (folder, folder, "config.json"),
        (folder.parent.parent, folder, "state.json"),
        *newest,
    ):
        with suppress(*DAMAGE), Folder(place) as opened:
            begun.append((run_dir, unseal(opened.read(name)).get("begun")))
    return begun


def require_same_config(cfg: Config, run_dir: Path) -> None:
    """Raise UserError if the run in the directory has another Config; RUNTIME_FIELDS may differ."""
    theirs = read_config(run_dir)
    names = [f.name for f in fields(cfg) if f.name not in RUNTIME_FIELDS]
    differing = [name for name in names if getattr(cfg, name) != getattr(theirs, name)]
    if differing:
        what = ", ".join(differing)
        raise UserError(
            f"'{shown(run_dir)}' holds a run with another Config ({what}): choose another --run-dir, or resume that one"
        )


def call(command: str, run_dir: Path) -> str:
    """`surefoot COMMAND RUN` as it can be typed here, with the program's path if it is not on PATH."""
    beside = Path(sys.executable).with_name("surefoot").absolute()
    name = shown(run_dir)
    if is_address(name) and command not in ("pull", "resume"):
        name = name.rpartition("/")[2]  # as it is called when it was pulled
    program = "surefoot" if shutil.which("surefoot") or not beside.exists() else shlex.quote(shown(beside))
    return f"{program} {command} {shlex.quote(name)}"


def require_format(facts: dict[str, Any], where: Path) -> None:
    """Raise UserError where a run's file was written by another version of surefoot."""
    number = facts.get("format", 4)
    if number == FORMAT:
        return
    version = "a later" if isinstance(number, int) and number > FORMAT else "an earlier"
    raise UserError(
        f"'{where}' was written by {version} version of surefoot (format {number}; this one reads {FORMAT}): evaluate "
        "and video still read its policy, and `surefoot train TASK --from RUN` starts a new run from it"
    )


def checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; none where they lie behind a link."""
    try:
        with below(run_dir, "checkpoints") as folder:
            names = [name for name in folder.names() if name.isdecimal() and folder.has(name, folder=True)]
    except OSError:
        return []
    return [run_dir / "checkpoints" / name for name in sorted(names, key=int)]


def newest(run_dir: Path) -> int:
    """The steps of a run's newest whole checkpoint; -1 where there is none."""
    return max((int(checkpoint.name) for checkpoint in checkpoints(run_dir)), default=-1)


WRITTEN = (
    *("config.json", "metrics.jsonl", "tb", "policy.safetensors", "best.safetensors", "evaluation.json"),
    *("report.md", "curve.png", "game.gif", "checkpoints", "tracking.json", "tracking.log"),
)


def require_ours(run_dir: Path, names: Sequence[str] = WRITTEN) -> None:
    """Raise UserError where a run would write over what no run has left in this directory.

    A run leaves `.lock` there before anything else; where that was lost, a config.json or checkpoint says so.
    """
    theirs = [name for name in names if os.path.lexists(run_dir / name)]
    if not theirs or os.path.lexists(run_dir / ".lock") or checkpoints(run_dir):
        return
    with suppress(*DAMAGE):
        if read_facts(run_dir):
            return
    raise UserError(f"'{shown(run_dir)}' holds {theirs[0]}, which no run of surefoot wrote: choose another --run-dir")


def require_no_link(run_dir: Path) -> None:
    """Raise UserError where the checkpoints lie elsewhere."""
    if (run_dir / "checkpoints").is_symlink():
        raise UserError(
            f"'{shown(run_dir)}/checkpoints' lies behind a link, which is not followed: move the whole run instead"
        )


def history(run_dir: Path) -> list[dict[str, Any]]:
    """Commands, versions and machines of a run so far; empty if config.json cannot be read."""
    try:
        return [dict(entry) for entry in read_facts(run_dir)["history"]]
    except DAMAGE:
        return []


def read_evaluation(run_dir: Path) -> Evaluation | None:
    """The closing evaluation of a run; None if there is none, or, with a note, if it is damaged."""
    with Folder(run_dir) as folder:
        if "evaluation.json" not in folder.names():
            return None
        try:
            return evaluation_from(json.loads(folder.read("evaluation.json")))
        except DAMAGE as error:
            note(f"'{shown(run_dir / 'evaluation.json')}' is damaged and left out: {one_line(str(error))}")
            return None


def evaluation_from(facts: Any) -> Evaluation:
    """The Evaluation whose `to_json` this is; raises KeyError, TypeError or ValueError where it is damaged."""
    from surefoot.runs.evaluation import Evaluation

    saved = Evaluation(**{f.name: facts[f.name] for f in fields(Evaluation) if f.name in facts or f.name != "cut"})
    numbers, counts = [saved.seconds, *saved.scores], [saved.seed, saved.cut, *saved.lengths]
    if {type(x) for x in numbers} - {int, float} or {type(x) for x in counts} - {int} or type(saved.greedy) is not bool:
        raise TypeError("its fields are of other kinds")
    if not saved.scores or len(saved.scores) != len(saved.lengths) or min(counts) < 0:
        raise ValueError("its episodes do not fit together")
    if not all(abs(x) < sys.float_info.max for x in numbers) or max(counts) >= 1 << 63:
        raise ValueError("its numbers are not finite")
    return saved


def resume_hint(run_dir: Path) -> str:
    """How to resume a run that has ended early; empty if nothing was saved."""
    first = int(os.environ.get("RANK", "0")) == 0
    return f"what was saved goes on with: {call('resume', run_dir)}" if first and checkpoints(run_dir) else ""


def unwritable(error: OSError, run_dir: Path) -> Fault:
    """The Fault for a file of a run that cannot be written."""
    cure = "make room, or mend it" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"
    return Fault(f"'{error.filename or run_dir}' cannot be written ({error.strerror or error}): {cure}")
