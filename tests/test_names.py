"""The glossary and the code hold each other to account: docs/names.md has every public name, and nothing else."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "surefoot"
PAGE = ROOT / "docs" / "names.md"
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The package's modules, read and not imported."""
    return {str(p.relative_to(SOURCE)): ast.parse(p.read_text()) for p in sorted(SOURCE.rglob("*.py"))}


def annotated(body: list[ast.stmt]) -> Iterator[str]:
    """Names with an annotation: dataclass fields and class attributes."""
    yield from (s.target.id for s in body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name))


def declared(module: ast.Module) -> Iterator[str]:
    """What must stand in the glossary: functions, classes, and the fields of public classes."""
    for node in module.body:
        if isinstance(node, (*Function, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from annotated(node.body)


def metrics() -> set[str]:
    """The keys of a row of metrics.jsonl: `row` in report.py and NAMES in learn.py."""
    keys = set()
    for name, file in (("row", "report.py"), ("NAMES", "learn.py")):
        for node in ast.walk(modules()[file]):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            if isinstance(node, ast.Assign | ast.AnnAssign) and any(getattr(t, "id", "") == name for t in targets):
                parts = getattr(node.value, "keys", None) or getattr(node.value, "elts", [])
                keys |= {p.value for p in parts if isinstance(p, ast.Constant)}
    return keys


def known(module: ast.Module) -> Iterator[str]:
    """What the glossary may list besides: methods, arguments, constants, options, and names of data and files."""
    for node in ast.walk(module):
        found: list[ast.expr | None] = []
        if isinstance(node, (*Function, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from annotated(node.body)
            yield from (
                t.id for s in node.body if isinstance(s, ast.Assign) for t in s.targets if isinstance(t, ast.Name)
            )
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Assign):
            found = [node.value]
        elif isinstance(node, ast.Dict):
            found = node.keys
        elif isinstance(node, ast.Subscript):
            found = [node.slice]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found = [node.left, node.right]
        elif isinstance(node, ast.keyword) and node.arg in ("name", "task"):
            found = [node.value]
        yield from (f.value for f in found if isinstance(f, ast.Constant) and isinstance(f.value, str))


def rows() -> dict[str, list[str]]:
    """The names in the first column of each section's table."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            section = line.strip("# ")
        elif line.startswith("|"):
            found.setdefault(section, []).extend(re.findall(r"`([^`]+)`", line.split("|")[1]))
    return found


@pytest.mark.parametrize("file", modules())
def test_every_public_name_is_in_the_glossary(file: str) -> None:
    page = set(re.findall(r"`([^`]+)`", PAGE.read_text()))
    missing = sorted({name for name in declared(modules()[file]) if not name.startswith("_")} - page)
    assert not missing, f"src/surefoot/{file} has names that docs/names.md lacks: {', '.join(missing)}"


def test_every_metrics_key_is_in_the_glossary() -> None:
    assert "step" in metrics()
    assert "kl" in metrics()
    (listed,) = (set(names) for section, names in rows().items() if "metrics.jsonl" in section)
    assert not metrics() - listed, f"docs/names.md lacks the metrics keys {', '.join(sorted(metrics() - listed))}"
    assert not listed - metrics(), f"no metrics key any more: {', '.join(sorted(listed - metrics()))}"


def test_every_name_of_the_glossary_is_in_the_code() -> None:
    code = {name for module in modules().values() for name in known(module)} | metrics()
    code |= {"--" + name.replace("_", "-") for name in code}
    listed = {name for names in rows().values() for name in names}
    assert not listed - code, f"docs/names.md lists names that the code lacks: {', '.join(sorted(listed - code))}"


def test_a_name_stands_once_in_a_section() -> None:
    twice = sorted({name for names in rows().values() for name in names if names.count(name) > 1})
    assert not twice, f"docs/names.md explains more than once in a section: {', '.join(twice)}"
