"""Importing this gives a notebook the old lesson's modules: parallelEnv, pong_utils, gym and progressbar.

In an old notebook, `import surefoot.lesson.old_names` in a first cell is all that is needed; `surefoot notebook FILE`
adds it by itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, cast

from surefoot.lesson import old_gym, parallelEnv, pong_utils

NOT_NEEDED = re.compile(r"^(\s*[!%]\s*pip\d? install .*\b(?:JSAnimation|progressbar2?|gym|atari-py)\b.*)$", re.M | re.I)
FOR_A_BROWSER = re.compile(r"^(\s*)%matplotlib (?:notebook|nbagg|qt\d?|tk)\b.*$", re.M)


class ProgressBar:
    """The package progressbar's class, as the lesson uses it: a line for each tenth that is done."""

    def __init__(self, *_: Any, widgets: Iterable[Any] = (), maxval: int | None = None, max_value: int = 100) -> None:
        self.end, self.tenths = max(1, maxval or max_value), 0

    def start(self, *_: Any, **__: Any) -> ProgressBar:
        """Begin."""
        return self

    def update(self, value: int, *_: Any, **__: Any) -> None:
        """So much of `maxval` is done."""
        if (tenths := 10 * value // self.end) > self.tenths:
            self.tenths = tenths
            print(f"{10 * tenths} %", flush=True)

    def finish(self, *_: Any) -> None:
        """End."""

    def __call__(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values, with progress shown."""
        known = list(values)
        self.end = max(1, len(known))
        for i, value in enumerate(known, 1):
            yield value
            self.update(i)


def _progressbar() -> ModuleType:
    module: Any = ModuleType("progressbar", "surefoot's stand-in for the package progressbar")
    module.ProgressBar = ProgressBar
    for widget in ("Percentage", "Bar", "ETA", "Timer", "SimpleProgress", "FormatLabel"):
        setattr(module, widget, lambda *_, **__: None)
    return cast(ModuleType, module)


def of_today(source: str) -> str:
    """An old cell's text: what installs packages that are not needed, or asks for a window, is left out."""
    source = NOT_NEEDED.sub(lambda match: "# not needed: " + match[0].strip(), source)
    return FOR_A_BROWSER.sub(r"\1%matplotlib inline", source)


sys.modules |= {"parallelEnv": parallelEnv, "pong_utils": pong_utils, "gym": old_gym, "progressbar": _progressbar()}
