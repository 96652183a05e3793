"""The documentation is built as it is published, and what its pages show can be run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import surefoot

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "site"
    done = subprocess.run([sys.executable, ROOT / "scripts" / "site.py", "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.parent.name: page.read_text(encoding="utf-8") for page in out.glob("*/index.html")}
    pages["index"] = (out / "index.html").read_text(encoding="utf-8")
    assert pages.keys() >= {
        "index",
        "environments",
        "curves",
        "resume",
        "migrate",
        "api",
        "design",
        "results",
        "options",
    }
    for name in ("train", "gae", "ppo_loss", "Config"):
        assert f'id="surefoot.{name}"' in pages["api"] or f'.{name}"' in pages["api"]
    assert "total_steps" in pages["api"]
    for text in pages.values():
        assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', text) == []
    assert (out / "bench" / "records" / "2026-11-29_race-512").is_dir()  # what pages link to is there


@pytest.mark.long
def test_the_script_that_comes_from_stable_baselines3_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    code = re.search(r"(    import surefoot +# after\n(?:    .*\n|\n)+)", text)
    assert code is not None
    source = "\n".join(line[4:] for line in code[1].splitlines())
    assert "100_000" in source
    monkeypatch.chdir(tmp_path)
    names = {"obs": surefoot.configure("Pendulum-v1").env.make().observation_space.sample()}
    exec(source.replace("100_000", "8_192, eval_episodes=1"), names)
    assert names["run"].steps == 8_192
    assert names["action"].shape == (1,)
