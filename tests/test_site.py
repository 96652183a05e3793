"""The documentation is built as it is published, and what its pages show can be run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import surefoot
from helpers import block_with

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
        "migrate-sb3",
        "migrate-cleanrl",
        "migrate-rllib",
        "api",
        "design",
        "results",
        "options",
        "clusters",
        "tune",
        "deploy",
        "compare",
    }
    for name in ("train", "gae", "ppo_loss", "Config"):
        assert f'id="surefoot.{name}"' in pages["api"] or f'.{name}"' in pages["api"]
    assert "total_steps" in pages["api"]
    for text in pages.values():
        assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', text) == []
    assert (out / "bench" / "records" / "2026-11-29_race-512").is_dir()  # what pages link to is there


@pytest.mark.long
def test_the_script_that_comes_from_stable_baselines3_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, with our adapter in the place of their package, and after."""
    before, after = re.split(r"\n(?=import surefoot)", block_with('PPO("MlpPolicy", "Pendulum-v1"'))
    monkeypatch.chdir(tmp_path)
    names = {"obs": surefoot.configure("Pendulum-v1").env.make().observation_space.sample()}
    for code in (before.replace("stable_baselines3", "surefoot.connect.sb3"), after):
        assert "100_000" in code
        exec(code.replace("100_000", "8_192" + ", eval_episodes=1" * (code is after)), names)
        assert names["action"].shape == (1,)
    assert names["run"].steps == 8_192
