"""The packages import in one direction, and no modules import each other in a circle; imports of types do not count."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import surefoot

ROOT = Path(surefoot.__file__).parent
FLOORS = (
    "base",
    "parallel",
    "envs",
    "models",
    "fast",
    "algorithm",
    "config",
    "presets",
    "runs",
    "connect",
    "lesson",
    "commands",
    "top",
)
TOP = {"__init__", "__main__"}
FLOOR_OF = {
    "errors": "base",
    "rng": "base",
    "output": "base",
    "paths": "base",
    "versions": "base",
    "other_words": "config",
    "__init__": "top",
    "__main__": "top",
    "loop": "runs",
}
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py")}


def floor(module: str) -> int:
    first = module.split(".")[0]
    return FLOORS.index(FLOOR_OF.get(first, first))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST) -> set[str]:
    """The modules of surefoot that are imported below a node, in functions too, but not for types alone."""
    found = set[str]()
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "surefoot":
            package = (child.module or "").partition(".")[2]
            for alias in child.names:
                inner = f"{package}.{alias.name}".strip(".")
                names = (inner, f"{inner}.__init__", package, f"{package}.__init__")
                known = [name for name in names if name in MODULES]
                found.add(known[0] if known else "__init__")
        assert not (isinstance(child, ast.Import) and any(a.name.startswith("surefoot.") for a in child.names))
        found |= imports(child)
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    files = {module: ROOT / f"{module.replace('.', '/')}.py" for module in MODULES}
    return {module: imports(ast.parse(file.read_text())) - {module} for module, file in files.items()}


def test_the_walk_finds_the_imports() -> None:
    assert "algorithm.update" in graph()["algorithm.train"]
    assert "presets" in graph()["__init__"]  # in a function
    assert "config" not in graph()["algorithm.update"]  # a type


def test_nothing_is_imported_upwards() -> None:
    upwards = [(a, b) for a, many in graph().items() for b in many if floor(b) > floor(a)]
    assert upwards == []


def test_no_test_imports_another() -> None:
    """What tests share is in modules that hold no tests (helpers.py and its neighbours)."""
    tests = Path(__file__).parent
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[-1].startswith("test_")], path


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {a: set(many) for a, many in graph().items()}
    while done := [a for a, many in left.items() if not many & set(left)]:
        for a in done:
            del left[a]
    assert left == {}
