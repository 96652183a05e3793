"""Names of Gymnasium environments: those that are registered, and those that an installed package would register."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from surefoot.errors import said

REGISTERED_BY: dict[str, str] = {}  # ids that other processes know only after importing this package
FAILED: dict[str, str] = {}  # packages that seem to have an id that was looked for, and why their import failed
MAX_SOURCE = 4_000_000  # bytes of a package that are searched for an id


def registered(name: str) -> str | None:
    """The id in Gymnasium's registry: as written, or the newest version of a name without one."""
    import gymnasium

    if name in gymnasium.registry:
        return name
    versions = [id for id in gymnasium.registry if id.rpartition("-v")[0] == name and id.rpartition("-v")[2].isdigit()]
    return max(versions, key=lambda id: int(id.rpartition("-v")[2]), default=None)


def of_file(name: str) -> str:
    """MODULE:FUNCTION for a file of the working directory (`./envs/my.py:Env`) or a module (`my`, `my.Env`), or ""."""
    path, _, function = name.removeprefix("./").partition(":")
    named = [(path.removesuffix(".py").replace("/", "."), function or "FUNCTION")]
    for module, last in named if function else [*named, path.rpartition(".")[::2]]:
        if re.fullmatch(r"\w+(\.\w+)*", module) and Path(module.replace(".", "/") + ".py").is_file():
            return f"{module}:{last}"
    return ""


def near(name: str, more: tuple[str, ...] = ()) -> list[str]:
    """Known names that look like this one: the registry's, Atari games', and `more`."""
    import gymnasium

    from surefoot.envs.atari import ids

    known = [id for id, spec in gymnasium.registry.items() if "ale_py" not in str(spec.entry_point)]
    names = {known_as: full for full in (*more, *known, *ids()) for known_as in (full, re.sub(r"-v\d+$", "", full))}
    return list(dict.fromkeys(names[match] for match in difflib.get_close_matches(name, list(names), 6, 0.6)))[:3]


def packages() -> Iterator[tuple[str, metadata.Distribution]]:
    """Installed packages that need Gymnasium or Gym, and so may register environments: module and distribution."""
    for dist in metadata.distributions():
        facts = dist.read_text("METADATA") or "gym"  # parsing all of them takes ten times longer
        needs = [text for text in dist.requires or () if "extra ==" not in text] if "gym" in facts.lower() else []
        if any(re.match(r"(gymnasium|gym)\b(?!-)", text, re.IGNORECASE) for text in needs):
            top = (dist.read_text("top_level.txt") or "").split()
            files = [str(file) for file in dist.files or ()]
            for module in top or sorted({file.split("/")[0] for file in files if file.endswith("/__init__.py")}):
                if module.isidentifier() and module not in ("surefoot", "gymnasium", "gym", "ale_py", "tests"):
                    yield module, dist


@functools.cache
def registering(name: str) -> str | None:
    """The module whose import registers `name`: the user's word, so that it need not be written in full.

    A package is imported only where its own source calls `register` and holds the name, or what precedes its first
    digit, dash or slash; then its modules that do so themselves. Why an import failed is kept in FAILED. A namespace
    that is the name of an entry point comes first.
    """
    from surefoot.envs.screen import draw_offscreen

    for point in metadata.entry_points(group="gymnasium.envs", name=name.rpartition("/")[0]):
        if imported(point.module) and registered(name):
            return point.module
    stem = re.split(r"[-/\d]", name.rpartition("/")[2])[0]
    for package, dist in packages():
        texts, size = dict[str, str](), 0
        for file in dist.files or ():
            if file.suffix == ".py" and size < MAX_SOURCE:
                with suppress(OSError, UnicodeDecodeError):
                    module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
                    texts[module] = Path(str(file.locate())).read_text(encoding="utf-8")
                    size += len(texts[module])
        calls = [module for module, text in texts.items() if re.search(r"\bregister\w*\(", text)]
        if stem and calls and any(stem in text for text in texts.values()):
            draw_offscreen(mujoco=True)  # before MuJoCo is imported
            for module in (package, *(module for module in calls if module != package and stem in texts[module])):
                if imported(module) and (registered(name) or in_old_gym(name)):
                    return module
    return None


def imported(module: str) -> bool:
    """Import another package's module, and remember which ids it has registered, or why it failed."""
    before = known_ids()
    try:
        import_package(module)
    except Exception as error:  # the next one may be meant
        FAILED.setdefault(module.partition(".")[0], said(error))
        return False
    REGISTERED_BY.update(dict.fromkeys(known_ids() - before, module))
    return True


def import_package(module: str) -> Any:
    """Import a module; a package that leaves it to Gymnasium's plugin group to register its ids is asked to do so."""
    imported = importlib.import_module(module)
    ask(module.partition(".")[0])
    return imported


@functools.cache
def ask(package: str) -> None:
    """Call the functions of a package's entry points, once: Gymnasium from 1.0 on does so for nobody."""
    for point in metadata.entry_points(group="gymnasium.envs"):
        if point.module.partition(".")[0] == package:
            point.load()()


def known_ids() -> set[str]:
    """All of Gymnasium's registry."""
    import gymnasium

    return set(gymnasium.registry)


def in_old_gym(name: str) -> bool:
    """Whether the old Gym package, where it has been imported, knows this id."""
    import sys

    registry = getattr(getattr(sys.modules.get("gym"), "envs", None), "registry", {})
    return name in getattr(registry, "env_specs", registry)
