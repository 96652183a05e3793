"""One evaluation on several processes: how they are launched, and what each of them does."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surefoot.errors import Fault, UserError
from surefoot.parallel.launch import die_with_launcher, exit_now, exit_with_error, launch
from surefoot.runs.files import Folder, read_named, replace_file


def evaluate_in_processes(
    policy: bytes, episodes: int, seed: int, greedy: bool, count: int, progress: Callable[[int], None] | None
) -> list[list[list[Any]]]:
    """Scores and lengths from each of `count` processes, of which k plays episodes k, k + count, and so on.

    `policy`: a policy file's bytes, since the run's own file may change meanwhile.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        replace_file(where / "policy", policy)
        order = json.dumps([folder, episodes, seed, greedy, sys.path])
        try:
            with counting(where / "played", progress):
                launch([sys.executable, "-m", "surefoot.runs.evaluation_workers", order], count, 1, math.inf)
        except UserError as error:
            if isinstance(error, Fault):
                raise
            raise UserError(f"{error}; ranks=1 evaluates in this process, which may be able to make it") from error
        return [json.loads(read_named(where / str(rank))) for rank in range(count)]


@contextmanager
def counting(played: Path, progress: Callable[[int], None] | None) -> Iterator[None]:
    """Report progress from a thread: the file `played` gets one byte for every finished episode."""
    replace_file(played, b"")
    over = threading.Event()

    def look() -> None:
        ended = False
        while progress and not ended:
            ended = over.wait(0.2)
            progress(played.stat().st_size)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def play(folder: Path, episodes: int, seed: int, greedy: bool) -> None:
    """What one of the processes does."""
    import torch

    from surefoot.runs.evaluation import evaluate
    from surefoot.runs.policy_file import load_policy

    torch.set_num_threads(1)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    policy, env, _ = load_policy(folder / "policy", trust=True)  # the launcher has asked already
    with Folder(folder) as here:
        played = here.descriptor("played", os.O_WRONLY | os.O_APPEND)

        def progress(_: int) -> None:
            os.write(played, b".")

        part = evaluate(policy, env, range(rank, episodes, count), seed, greedy, progress=progress)
        here.replace(str(rank), json.dumps([part.scores, part.lengths]).encode())


if __name__ == "__main__":
    die_with_launcher()
    where, episodes, seed, greedy, paths = json.loads(sys.argv[1])
    sys.path += [path for path in paths if path not in sys.path]  # this process can import what its launcher can
    try:
        play(Path(where), episodes, seed, greedy)
        exit_now(0)
    except UserError as mistake:
        exit_with_error(mistake)
