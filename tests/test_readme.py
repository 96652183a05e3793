"""The pages tell the truth: links lead somewhere, commands and presets exist, nothing is left to fill in."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import parse_args as torchrun_args

import mutants
from surefoot.commands.cli import COMMANDS, main, parse
from surefoot.presets import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LESSON = sorted((ROOT / "src" / "surefoot" / "lesson" / "pages").glob("*.md"))
SHOWING = [page for page in PAGES + LESSON if page.name not in ("log.md", "CHANGELOG.md")]
PROGRAMS = ("surefoot", "torchrun", "make", "pip", "python")
NOTHING = ("doctor", "lesson", "ladder")  # commands that can stand alone
SLURM = 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'


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


def shown_blocks() -> list[str]:
    """The indented blocks of the pages, with continued lines joined."""
    texts = [re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL) for page in SHOWING]
    indented = [block for text in texts for block in re.findall(r"(?:^    .*\n|\n(?=    ))+", text, re.MULTILINE)]
    blocks = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented]
    return [re.sub(r" *\\\n *", " ", block).strip() for block in blocks]


def is_python(block: str) -> bool:
    try:
        ast.parse(block)
    except SyntaxError:
        return False
    return True


def shown_commands() -> list[str]:
    """Every line for a shell that a page shows, in a block or within a sentence."""
    blocks = [block for block in shown_blocks() if not is_python(block) and not block.startswith("<")]
    lines = [line for block in blocks for line in block.split("\n") if line and not line.startswith("#")]
    sentences = [words for page in SHOWING for words in re.findall(r"`(\w+ [^`]+)`", page.read_text())]
    lines += [" ".join(words.split()) for words in sentences if words.split()[0] in PROGRAMS]
    return sorted({part for line in lines for part in re.split(r" #| >", line)[0].strip().split(" && ")} - {SLURM})


class Parsed(Exception):
    """A program has understood its arguments, and does not begin."""


@pytest.mark.parametrize("shown", shown_commands())
def test_what_the_pages_show_is_understood(shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is parsed by its program, with something that exists for what is to be put in."""
    if "CarRacing" in shown:
        pytest.importorskip("Box2D")
    program, *args = shlex.split(shown.removeprefix("srun "))
    if program == "torchrun":
        theirs = torchrun_args([arg for arg in args if arg != "..."])
        assert (theirs.module, theirs.training_script) == (True, "surefoot")
        program, args = "surefoot", theirs.training_script_args
    if program == "surefoot":
        assert_surefoot_understands(shown, " ".join(args), tmp_path)
    elif program == "make":
        assert set(args) <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"surefoot\[([a-z]\w*)\]", shown)) <= extras.keys()
    elif args[0] == "-m":
        assert importlib.util.find_spec(args[1]) is not None
    else:
        assert program == "python"
        assert ".parse_args(" in (ROOT / args[0]).read_text()  # a script that has none would begin
        original = argparse.ArgumentParser.parse_args

        def parse_and_stop(self: argparse.ArgumentParser) -> Any:
            original(self)
            raise Parsed

        monkeypatch.setattr("argparse.ArgumentParser.parse_args", parse_and_stop)
        monkeypatch.setattr("sys.argv", args)
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / args[0]), run_name="__main__")


def assert_surefoot_understands(shown: str, line: str, tmp_path: Path) -> None:
    words = {"TASK": "CartPole-v1", "NAME": "cliff", "ADDRESS": "10.0.0.1:6379", "FILE": str(tmp_path / "file")}
    words |= {"NAME": "normalize"} if "exercise" in shown else {"NAME": "CartPole-v1"} if "train" in shown else {}
    words |= {"connect_four:AgainstRandom": "CartPole-v1"}  # its package is not installed
    args = [words.get(word, word) for word in re.sub(r"\[.*?\]|\.\.\.", "", line).split()]
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


def test_every_snippet_of_python_is_run_by_a_test() -> None:
    """By `block_with`, with a text that the snippet holds."""
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    run = [literal for _, literal in re.findall(r"""block_with\((['"])(.+?)\1\)""", tests)]
    snippets = [block for block in shown_blocks() if is_python(block) or block.startswith("<")]
    assert len(snippets) > 9
    assert [block for block in snippets if not any(text in block for text in run)] == []


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
