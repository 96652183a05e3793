"""The coding exercises: their templates, and `check`, which runs a learner's function against the laws.

For a command or a page: `EXERCISES` has the names with a title each, `template(name)` the text to start from,
`check(name, source)` the verdicts. Nothing here imports torch; the process that `check` starts does.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import Fault, UserError

TEMPLATES = {
    "future_return": '''
def future_return(reward, ended, gamma):
    """Future reward of each action, R_t = sum over k >= t of gamma^(k - t) r_k, up to the episode's end.

    reward [T, N]: T steps in time order of N parallel environments.
    ended [T, N], bool: the transition at t was its episode's last; the next row belongs to another episode.
    Returns [T, N].
    """
    raise NotImplementedError
''',
    "normalize": '''
def normalize(advantage):
    """Compare each step with the same step of the parallel games: (A - mean) / sigma over the N games of a row.

    advantage [T, N]. Returns [T, N]: mean 0 and mean square 1 in every row, zeros in a row where all games agree.
    """
    raise NotImplementedError
''',
    "surrogate": '''
def surrogate(new_probs, old_probs, advantage):
    """The surrogate objective, to be maximised: the mean of (new_probs / old_probs) * advantage.

    All [T, N]. new_probs: probability of each action under the present policy, which the gradient goes through;
    old_probs: under the policy that played, constants even where they come with a gradient.
    Returns one number, a tensor without dimensions.
    """
    raise NotImplementedError
''',
    "clipped_surrogate": '''
def clipped_surrogate(new_probs, old_probs, advantage, epsilon):
    """PPO's objective, to be maximised: the mean of min(r A, clip(r, 1 - epsilon, 1 + epsilon) A).

    r = new_probs / old_probs; arguments and result as in `surrogate`.
    """
    raise NotImplementedError
''',
    "gae": '''
def gae(reward, value, next_value, terminated, ended, gamma, gae_lambda):
    """Generalised advantage, A_t = delta_t + gamma lambda A_{t+1} within an episode.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), where V(s_{t+1}) counts as 0 after a termination.
    reward, value [T, N]: r_t, V(s_t); next_value [T, N]: V(s_{t+1}) of the true successor, also where the next row
    belongs to another episode; terminated [T, N], bool: the task ended at t; ended [T, N], bool: the episode did,
    terminated or truncated (cut short, where the future still counts). Returns [T, N].
    """
    raise NotImplementedError
''',
}
EXERCISES = {
    "future_return": "future reward instead of total reward",
    "normalize": "rewards compared between parallel games",
    "surrogate": "old games used again, weighted by the ratio of probabilities",
    "clipped_surrogate": "the surrogate that stops before the cliff",
    "gae": "advantages from a critic",
}


@dataclass(frozen=True)
class Verdict:
    """What the checker says about one law, or about a known mistake that it has recognised."""

    law: str
    """the law, as a sentence; for a recognised mistake "known mistake" """
    passed: bool
    message: str = ""
    """where it fails: the first wrong number beside the right one; or what the mistake is and what to do"""
    mistake: str = ""
    """name of the known mistake, such as "bootstrapping over a termination"; empty for none"""


def template(name: str) -> str:
    """The Python text a learner starts from: the function's arguments and what it should compute."""
    return "import torch\n\n" + TEMPLATES[_known(name)]


def _known(name: str) -> str:
    if name not in EXERCISES:
        raise UserError(f"there is no exercise '{name}': choose one of {', '.join(EXERCISES)}")
    return name


def check(name: str, source: str, seconds: float = 10.0, megabytes: int = 1024) -> list[Verdict]:
    """Run the function `name` that the Python text `source` defines, and compare it with the package's own.

    It runs in a process of its own, which is ended after `seconds` and may allocate `megabytes` (on Linux; elsewhere
    only time is limited). The first verdicts name recognised mistakes, if any; then comes one for each law. Where the
    function cannot be run to its end (no such function, an exception, an endless loop, too much memory), there is one
    verdict, which says so. All is right if every verdict has passed. Takes about three seconds, most of them to import
    torch; calls from several threads do not disturb each other. Raises UserError for an unknown name alone.
    """
    order = {"name": _known(name), "source": source, "seconds": seconds, "megabytes": megabytes}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "surefoot.lesson.exercise_worker"],
        bufsize=0,  # so that `communicate` reads on where `readline` has stopped
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdout.readline()  # torch is imported, the right answers are known: from now on the clock runs
        answer, errors = process.communicate(timeout=seconds)
        return [Verdict(**fields) for fields in json.loads(answer)]
    except subprocess.TimeoutExpired:
        return _cannot(f"it was still running after {seconds:g} seconds and was stopped: is there an endless loop?")
    except (ValueError, BrokenPipeError):
        why = _because(process.wait(), megabytes, locals().get("errors", b"").decode(errors="replace"))
        return _cannot(f"its process ended without a result{why}")
    finally:
        with suppress(ProcessLookupError):  # and all that the learner's code has started
            os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
        process.communicate()


def _because(code: int, megabytes: int, errors: str) -> str:
    if code == -getattr(signal, "SIGKILL", 9) or "Memory" in errors:
        return f": it asked for more than {megabytes:,} MB of memory"
    last = "".join(errors.strip().splitlines()[-1:])
    return (f": it crashed (signal {-code})" if code < 0 else f" (exit code {code})") + (f": {last}" if last else "")


def _cannot(why: str) -> list[Verdict]:
    return [Verdict("it runs", False, why)]


def exercise(first: str = "", file: Path | None = None) -> str:
    """What `surefoot exercise [NAME] [FILE]` does; returns what it prints.

    Without a name it lists the exercises. A FILE (default NAME.py) that does not exist is written from the template;
    one that does is checked: the function NAME, or all exercises that it defines where only FILE is given. Raises
    UserError for a name or file that cannot be used; Fault, with the verdicts, where a law is broken.
    """
    if not first:
        return "\n".join(f"{name:<20}{title}" for name, title in EXERCISES.items())
    only_file = file is None and first.endswith(".py")
    names = list(EXERCISES) if only_file else [_known(first)]
    path = Path(first) if only_file else file or Path(f"{first}.py")
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _begin(path, names)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    if only_file and not (names := _defined(source)):
        raise UserError(f"'{path}' defines none of {', '.join(EXERCISES)}: `surefoot exercise NAME` writes a template")
    results = {name: check(name, source) for name in names}
    text = "\n\n".join(f"{name}\n{table(verdicts)}" for name, verdicts in results.items())
    if wrong := [name for name, verdicts in results.items() if not all(v.passed for v in verdicts)]:
        print(text)
        raise Fault(f"not right yet: {', '.join(wrong)}")
    return f"{text}\n\nall right"


def _begin(path: Path, names: Sequence[str]) -> str:
    try:
        path.write_text("import torch\n" + "".join(f"\n{TEMPLATES[name]}" for name in names), encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error}") from error
    return f"wrote {path}: fill in {', '.join(names)}, then give the same command again"


def _defined(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the file is not Python: {error}") from error
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [name for name in EXERCISES if name in names]


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as lines of text."""
    lines = []
    for v in verdicts:
        lines.append(f"  {'ok' if v.passed else '--'}  {v.law}" + (f": {v.mistake}" if v.mistake else ""))
        lines += [f"        {v.message}"] if v.message else []
    return "\n".join(lines)
