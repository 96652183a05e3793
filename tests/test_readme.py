"""The pages tell the truth: links lead somewhere, commands and presets exist, nothing is left to fill in."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import mutants
from surefoot.commands.cli import COMMANDS, main, parse
from surefoot.presets import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LESSON = sorted((ROOT / "src" / "surefoot" / "lesson" / "pages").glob("*.md"))
NOTHING = ("doctor", "lesson", "ladder")  # commands that can stand alone


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
    assert "@@" not in text
    assert "TODO" not in text


def test_every_command_and_rung_is_on_a_page() -> None:
    commands, readme = (ROOT / "docs" / "commands.md").read_text(), (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"surefoot {command}" in commands
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
        assert f"`{task}`" in readme
        assert task in PRESETS


def shown_commands() -> list[str]:
    """Every `surefoot ...` that a page shows, in a block or within a sentence."""
    texts = [page.read_text() for page in (*PAGES, *LESSON) if page.name not in ("log.md", "CHANGELOG.md")]
    lines = [line for text in texts for line in re.findall(r"^    (surefoot .*)", text, re.MULTILINE)]
    lines += [" ".join(words.split()) for text in texts for words in re.findall(r"`(surefoot [^`]+)`", text)]
    return sorted({re.split(r" #| >", line)[0].strip() for line in lines})


@pytest.mark.parametrize("shown", shown_commands())
def test_what_the_pages_show_is_understood(shown: str, tmp_path: Path) -> None:
    """Each is parsed, with something that exists for what is to be put in."""
    words = {"TASK": "CartPole-v1", "NAME": "cliff", "ADDRESS": "10.0.0.1:6379", "FILE": str(tmp_path / "file")}
    words |= {"NAME": "normalize"} if "exercise" in shown else {"NAME": "CartPole-v1"} if "train" in shown else {}
    args = [words.get(word, word) for word in re.sub(r"\[.*?\]|\.\.\.", "", shown).split()[1:]]
    if (len(args) == 1 and args[0].isalpha()) or args[1:2] == ["--run-dir"]:  # only the command is named
        args[1:1] = {"train": ["CartPole-v1"], "tune": ["CartPole-v1"], "bench": ["CartPole-v1"]}.get(
            args[0], [] if args[0] in NOTHING else ["cliff"]
        )
    if args[-1] in ("--help", "--version"):
        with pytest.raises(SystemExit) as done:
            sys.exit(main(args))
        assert not done.value.code
    elif "preset.json" not in shown:  # a file that tune has made
        assert type(parse(args)) is COMMANDS[args[0]]


def test_each_equation_is_linked_to_its_line() -> None:
    """On the page of equations a link shows a piece of code, which stands at the line that it leads to."""
    links = re.findall(r"\[`(.+?)`\]\(\.\./(\S+?)#L(\d+)\)", (ROOT / "docs" / "equations.md").read_text())
    assert len(links) > 12
    for code, file, line in links:
        assert code in (ROOT / file).read_text().splitlines()[int(line) - 1], f"{code} is not in line {line} of {file}"


def test_the_tests_that_hold_the_promises_exist() -> None:
    source = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    files = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"test_\w+", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 50
    assert {name for name in named - files if f"def {name}(" not in source} == set()


def test_the_planted_faults_and_the_tests_that_notice_them_exist() -> None:
    for fault in mutants.faults():
        assert (ROOT / "src" / "surefoot" / fault.file).read_text().count(fault.old) == 1, fault
        for test in fault.tests.split():
            file, _, name = test.partition("::")
            text = (ROOT / "tests" / file).with_suffix(".py").read_text()
            assert not name or f"def {name.partition('[')[0]}(" in text, test
