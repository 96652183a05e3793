"""Action spaces: which alternatives and numbers a policy chooses, and what the environment gets of them.

A policy chooses one alternative of each discrete choice, and numbers: an action is an int64 (one choice), a row of
int64 (several), a row of floats (numbers), or a row of floats with the choices first (both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from surefoot.errors import UserError, note_once

UNBOUNDED = 1e30  # a bound of this size or more is none


def leaves(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    """The spaces inside of nested Dicts and Tuples, in their order; the space itself where it is neither."""
    if isinstance(space, spaces.Dict):
        return [leaf for inner in space.values() for leaf in leaves(inner)]
    if isinstance(space, spaces.Tuple):
        return [leaf for inner in space for leaf in leaves(inner)]
    return [space]


def choices(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Number of alternatives of each discrete choice in one action (or observation); () where there is none."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.flatten())
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape or ()))
    inner = leaves(space) if isinstance(space, spaces.Dict | spaces.Tuple) else []
    return tuple(size for leaf in inner for size in choices(leaf))


def numbers(space: spaces.Space[Any]) -> int:
    """How many continuous numbers one action has."""
    return sum(int(np.prod(leaf.shape)) for leaf in leaves(space) if isinstance(leaf, spaces.Box))


def action_names(space: spaces.Space[Any]) -> tuple[str, ...]:
    """A name for each alternative, then for each number."""
    sizes = choices(space)
    one = len(sizes) == 1
    named = [str(a) if one else f"{d}: {a}" for d, n in enumerate(sizes) for a in range(n)]
    return (*named, *(f"action {a}" for a in range(numbers(space))))


def action_converter(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    """The function from a policy's action to the environment's.

    A policy's number is scaled from [-1, 1] to the bounds of the space and clipped there, and rounded where the space
    has whole numbers; where there is no bound it is passed on as it is (from 1 beyond the only bound there is). Raises
    UserError where a space is not supported.
    """
    if isinstance(space, spaces.Discrete):
        first, kind = int(space.start), space.dtype.type  # as `sample` does: some take its `item()`
        return lambda action: kind(action + first)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        shape, dtype = space.shape, space.dtype
        start = np.asarray(getattr(space, "start", 0), dtype)
        return lambda action: np.asarray(action, dtype).reshape(shape) + start
    if isinstance(space, spaces.Box):
        return _box_converter(space)
    if isinstance(space, spaces.Dict | spaces.Tuple) and leaves(space):
        return _nested_converter(space)
    raise UserError(
        f"actions are {space}: Discrete, MultiDiscrete, MultiBinary, Box, and Dict or Tuple of these are supported; "
        "gymnasium.wrappers.TransformAction changes them"
    )


def box_scale(space: spaces.Box) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Middle, half the range, lower and upper bound of each number of a Box, float64 [A]; inf where there is no bound.

    Raises UserError where its bounds or its dtype cannot be acted in.
    """
    dtype, cure = space.dtype, "gymnasium.wrappers.TransformAction changes them"
    if dtype is None or dtype.kind not in "fiub":
        raise UserError(f"actions are {space}: a Box to act in has numbers; {cure}")
    low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
    if dtype.itemsize == 8 and dtype.kind != "f":  # 2**63 is no int64
        high = np.minimum(high, np.nextafter(2.0 ** (63 + (dtype.kind == "u")), 0))
    if not (low <= high).all():  # also where one is NaN
        raise UserError(f"actions are {space}: the lower bounds must not be above the upper ones; {cure}")
    below, above = low > -UNBOUNDED, high < UNBOUNDED
    with np.errstate(invalid="ignore"):  # -inf + inf
        middle, half = (high + low) / 2, (high - low) / 2
    if not (below & above).all():
        note_once(f"actions are {space}: where they have no bound, the policy's own numbers, of size 1, are taken")
        middle = np.where(below & above, middle, np.where(below, low + 1, np.where(above, high - 1, 0.0)))
        half = np.where(below & above, half, 1.0)
        low, high = np.where(below, low, -np.inf), np.where(above, high, np.inf)
    return middle, half, low, high


def _box_converter(space: spaces.Box) -> Callable[[Any], Any]:
    middle, half, low, high = box_scale(space)
    shape, dtype = space.shape, space.dtype
    if (middle == 0).all() and (half == 1).all() and len(shape) == 1 and dtype.kind == "f":
        lower, upper = space.low.reshape(-1), space.high.reshape(-1)  # takes half the time of np.clip
        return lambda action: np.minimum(np.maximum(np.asarray(action, dtype), lower), upper)
    return lambda action: _typed((middle + half * np.asarray(action)).clip(low, high), dtype).reshape(shape)


def _typed(x: Any, dtype: Any) -> Any:
    return (x if dtype.kind == "f" else np.rint(x)).astype(dtype)


def _nested_converter(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    inner, taken, count = [], 0, len(choices(space))
    for leaf in leaves(space):
        convert, choice_count = action_converter(leaf), len(choices(leaf))
        size = choice_count or numbers(leaf)
        start = taken if choice_count else count
        inner.append((slice(start, start + size), isinstance(leaf, spaces.Discrete), convert))
        taken, count = (taken + size, count) if choice_count else (taken, count + size)

    def values(row: Any) -> Iterator[Any]:
        for where, single, convert in inner:
            yield convert(int(row[where][0]) if single else row[where])

    return lambda action: _nest(space, values(np.atleast_1d(action)))


def _nest(space: spaces.Space[Any], values: Iterator[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _nest(inner, values) for key, inner in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(inner, values) for inner in space)
    return next(values)
