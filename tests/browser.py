"""A headless Chromium and a served lesson, for the tests that look at pages as a person does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt-get install chromium")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # as long as for other waits
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(*command: str, cwd: Path | None = None) -> Iterator[str]:
    """The address that `surefoot COMMAND` prints; the server ends with the block."""
    call = [sys.executable, "-m", "surefoot", *command]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, cwd=cwd, env=dict(os.environ)) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        try:
            assert line.startswith("open http://127.0.0.1:"), line
            yield line.split()[1]
        finally:
            server.terminate()
