"""Figures that one can play with: their controls, and what a figure draws for them. The browser computes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from surefoot.errors import UserError
from surefoot.lesson.svg import number


@dataclass(frozen=True)
class Slider:
    """A number within a range."""

    label: str
    low: float
    high: float
    step: float
    value: float

    def read(self, text: str, name: str) -> float:
        """The number that a request gives, within the range; raises UserError."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            raise UserError(f"{name} is {text!r}; allowed is {self.low:g} to {self.high:g}")
        return value

    def html(self, name: str, id: str) -> str:
        """The control."""
        kind = f'min="{self.low:g}" max="{self.high:g}" step="{self.step:g}" value="{self.value:g}"'
        return (
            f'<label for="{id}">{escape(self.label)}</label><input type="range" id="{id}" name="{name}" {kind}>'
            f'<output for="{id}">{number(self.value)}</output>'
        )


@dataclass(frozen=True)
class Choice:
    """One of a few names."""

    label: str
    options: tuple[str, ...]

    @property
    def value(self) -> str:
        """The first option."""
        return self.options[0]

    def read(self, text: str, name: str) -> str:
        """The option that a request gives; raises UserError."""
        if text not in self.options:
            raise UserError(f"{name} is {text!r}; allowed is {', '.join(self.options)}")
        return text

    def html(self, name: str, id: str) -> str:
        """The control."""
        options = "".join(f"<option>{escape(option)}</option>" for option in self.options)
        return f'<label for="{id}">{escape(self.label)}</label><select id="{id}" name="{name}">{options}</select>'


@dataclass(frozen=True)
class Again:
    """A button that draws new random numbers: a seed that counts up."""

    label: str
    value: int = 1

    def read(self, text: str, name: str) -> int:
        """The seed that a request gives; raises UserError."""
        if not (text.isascii() and text.isdecimal() and int(text) < 2**31):
            raise UserError(f"{name} is {text!r}; allowed is a whole number from 0")
        return int(text)

    def html(self, name: str, id: str) -> str:
        """The control."""
        hidden = f'<input type="hidden" name="{name}" value="{self.value}">'
        return f'<button type="button" id="{id}" class="again">{escape(self.label)}</button>{hidden}'


Control = Slider | Choice | Again


class Drawn(NamedTuple):
    """What a figure shows for one position of its controls."""

    pictures: list[str]  # HTML
    values: dict[str, str]  # numbers by their names
    says: str  # a sentence on what is to be seen


@dataclass(frozen=True)
class Figure:
    """A figure: its caption, its controls by argument name, and the function that draws it."""

    caption: str
    controls: Mapping[str, Control]
    draw: Callable[..., Drawn]

    def compute(self, query: Mapping[str, str]) -> dict[str, str]:
        """The parts of the figure for a request's arguments; raises UserError for an argument out of range."""
        given: dict[str, Any] = {
            name: control.read(query[name], name) if name in query else control.value
            for name, control in self.controls.items()
        }
        width = Slider("width", 240, 1200, 1, 640).read(query.get("width", "640"), "width")
        drawn = self.draw(int(width), **given)
        values = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in drawn.values.items()
        )
        return {"pictures": "".join(drawn.pictures), "values": values, "says": escape(drawn.says)}

    def html(self, name: str) -> str:
        """The figure as it is at first."""
        parts = self.compute({})
        controls = "".join(
            f'<div class="control">{control.html(key, f"{name}-{key}")}</div>' for key, control in self.controls.items()
        )
        return (
            f'<figure class="play" id="figure-{name}" data-figure="{name}"><form class="controls">{controls}</form>'
            f'<div class="pictures">{parts["pictures"]}</div><dl class="values">{parts["values"]}</dl>'
            f'<p class="says" role="status">{parts["says"]}</p><figcaption>{escape(self.caption)}</figcaption></figure>'
        )
