"""What `surefoot evaluate` shows: how far it is, and the result as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from surefoot.errors import is_terminal
from surefoot.output import Progress, out
from surefoot.runs.evaluation import ConsoleEvaluation, Evaluation


@contextmanager
def on_terminal(episodes: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A progress line on standard error, removed at the end; None where that is no terminal."""
    if quiet or not is_terminal(sys.stderr):
        yield None
        return

    progress = Progress(stream=sys.stderr)

    def show(text: str) -> None:
        progress.write(f"\r\x1b[2K{text}", "")

    show(f"evaluating: 0 of {episodes} episodes")
    try:
        yield lambda done: show(f"evaluating: {done} of {episodes} episodes")
    finally:
        show("")


def print_evaluation(result: Evaluation, as_json: bool) -> None:
    """Print an evaluation as one JSON object or as a table."""
    facts = result.to_json()
    if as_json:
        print(json.dumps(facts), file=out())
        return
    sticky = f", sticky {result.sticky:g}" if isinstance(result, ConsoleEvaluation) else ""
    how = "greedy" if result.greedy else "sampled"
    print(f"{facts['episodes']} full episodes, actions {how}, seed {result.seed}{sticky}", file=out())
    for name, key, prefix in (("mean", "mean", ""), ("interquartile mean", "iqm", "iqm_")):
        interval = f"bootstrap 95 % interval {facts[prefix + 'low']:.2f} to {facts[prefix + 'high']:.2f}"
        print(f"  {name:<18}  {facts[key]:.2f}   ({interval})", file=out())
    if result.cut:
        print(f"  {'not ended':<18}  {result.not_ended()}", file=out())
    extent = f"from {facts['min']:g} to {facts['max']:g}; deviation {facts['std']:.1f}"
    print(f"  {'median':<18}  {facts['median']:.2f}   ({extent})", file=out())
    print(f"  {'length':<18}  {facts['length_mean']:,.0f} steps; {result.seconds:.0f} s", file=out())
