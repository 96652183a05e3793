"""The lesson's pages: Markdown with formulas, from `pages/`, and what is filled in: figures, quiz, source."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from surefoot.lesson import figures_ratio, figures_records, figures_returns
from surefoot.lesson.widgets import Figure

HERE = Path(__file__).parent
FIGURES: dict[str, Figure] = figures_returns.FIGURES | figures_ratio.FIGURES | figures_records.FIGURES
PUNCTUATED = re.compile(r'(<math [^>]*display="inline">(?:(?!<math).)*?</math>[,.;:?!)]+)', re.S)  # kept on one line
SLOT = re.compile(r"<p>\[\[([\w-]+)(?: ([\w-]+))?\]\]</p>")


class Page(NamedTuple):
    """One page of the course."""

    name: str  # in its address
    title: str
    text: str  # Markdown, without the title


def formula(latex: str, options: dict[str, bool] | None = None) -> str:
    """A formula as MathML, which browsers set by themselves."""
    return convert(latex.strip(), display="block" if (options or {}).get("display_mode") else "inline")


@cache
def pages() -> dict[str, Page]:
    """All pages in order, by name; a file's number is its place."""
    pages = {}
    for path in sorted((HERE / "pages").glob("*.md")):
        name = path.stem.partition("-")[2]
        title, _, text = path.read_text(encoding="utf-8").partition("\n")
        pages[name] = Page(name, title.removeprefix("# ").strip(), text)
    return pages


def body(page: Page, slots: dict[str, Callable[[str], str]]) -> str:
    """A page as HTML, where a paragraph `[[KIND NAME]]` is filled by `slots[KIND](NAME)`."""
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.use(dollarmath_plugin, renderer=formula, allow_digits=False)
    html = SLOT.sub(lambda match: slots[match[1]](match[2] or ""), markdown.render(page.text))
    return PUNCTUATED.sub(r'<span class="whole">\1</span>', html)
