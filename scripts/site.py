"""Builds the documentation site into site/: README, docs/, and every file of the repository that they link to.

    python scripts/site.py [--out DIR]

The pages are read in the repository as they are; in the copy that is built, links that leave docs/ lead to copies.
Warnings are errors. Needs no network.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)")


def place(file: Path) -> Path:
    """Where a file of the repository lies in the site: README is the first page, docs/ the root."""
    inside = file.relative_to(ROOT)
    if inside.parts[0] == "docs":
        return Path(*inside.parts[1:])
    if inside == Path("README.md"):
        return Path("index.md")
    return inside if inside.suffix != ".md" else inside.with_name(inside.name.replace("README", "index"))


def stage(target: Path) -> None:
    """Copy the pages, and all that they link to, with their links."""
    waiting, done = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in done or not file.exists():
            continue
        done.add(file)
        here = target / place(file)
        here.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".md":
            shutil.copyfile(file, here)
            continue

        def follow(found: re.Match[str], file: Path = file) -> str:
            to = (file.parent / found[2]).resolve()
            if "://" in found[2] or not to.is_relative_to(ROOT):
                return found[0]
            if to.is_dir():
                to = next((to / name for name in ("README.md", "rows.jsonl") if (to / name).exists()), to)
            if not to.is_file():
                return str(found[2]).join(("[](", "")) if to.is_dir() else found[0]
            waiting.append(to)
            return found[1] + Path(os.path.relpath(place(to), place(file).parent)).as_posix()

        here.write_text(LINK.sub(follow, file.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site")
    out: Path = parser.parse_args().out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder, "docs"))
        shutil.copyfile(ROOT / "zensical.toml", Path(folder, "zensical.toml"))
        environ = os.environ | {"NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, env=environ)
        if done.returncode == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(Path(folder, "site"), out)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
