"""Whole numbers on the command line, which may be written as 1e6."""

from __future__ import annotations

from contextlib import suppress

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

numbers = ConstructorRegistry()


@numbers.primitive_rule
def whole_number(wanted: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """Whole numbers are also written as 1e6."""
    if wanted.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def whole(text: str) -> int:
    """The whole number that a text stands for; raises ValueError."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError, OverflowError):
        if (number := float(text)) == int(number):
            return int(number)
    raise ValueError(f"{text!r} is no whole number")
