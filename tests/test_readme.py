"""The pages tell the truth: links lead somewhere, commands and presets exist, nothing is left to fill in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surefoot.commands.cli import COMMANDS, parse
from surefoot.presets import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
    assert "@@" not in text
    assert "TODO" not in text


def test_the_readme_names_every_command_and_rung() -> None:
    text = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"surefoot {command}" in text
    for task in (
        "pong",
        "pong-lesson",
        "pong-reinforce",
        "reinforce",
        "normalized",
        "future",
        "surrogate",
        "clipped",
        "ppo",
    ):
        assert f"`{task}`" in text
        assert task in PRESETS


def test_the_options_on_the_page_are_understood() -> None:
    """Every --option that README shows after `surefoot train` or as the lesson's advice is one that train takes."""
    text = (ROOT / "README.md").read_text()
    lines = "--num-steps 200 400 800", "normalize:over-batch", "--env.frame-skip 2 4", "--objective.clip-range 0.2"
    for line in (*lines, "network:impala-cnn", "network:small-cnn", "network:nature-cnn", "network:mlp"):
        assert line in text
        parse(["train", "pong-lesson", *line.split()])


def test_the_tests_that_hold_the_promises_exist() -> None:
    source = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    files = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"test_\w+", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 50
    assert {name for name in named - files if f"def {name}(" not in source} == set()
