"""Gymnasium's spaces as rows of numbers: observations as stored in a rollout, actions as an environment takes them.

A row has the shape of its space: uint8 stays uint8, other numbers become float32, a Discrete observation is one int64.
The parts of a Dict are stored side by side as bytes; a part called `action_mask` (one number for each action of a
Discrete space) is last and says which actions are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

from surefoot.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MASK = ("action_mask",)
MAX_ONE_HOT = 4096  # alternatives of a Discrete observation
MIN_IMAGE = 36  # pixels of an image's edge: what NatureCNN's kernels need


class Part(NamedTuple):
    """One part of an observation: its keys in a nested Dict, its space, and its place in the row."""

    path: tuple[str, ...]
    space: spaces.Space[Any]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    first: int  # a Discrete space's `start`
    start: int  # byte offsets in the row
    stop: int

    def is_image(self) -> bool:
        """Two or three axes of uint8, large enough for convolutions."""
        plain = isinstance(self.space, spaces.Box) and self.dtype == np.uint8 and len(self.shape) in (2, 3)
        return plain and min(sorted(self.shape)[-2:]) >= MIN_IMAGE

    def fill(self, value: Any, name: str, out: Array) -> None:
        """Write a value into a row; raises ValueError or TypeError where it is not in the space."""
        shape = value.shape if isinstance(value, np.ndarray) else np.shape(value)
        if shape != self.space.shape:
            raise ValueError(f"{name} has shape {shape}, but its space has {self.space.shape}")
        binary = isinstance(self.space, spaces.MultiBinary)  # of int8, which a row stores as uint8
        np.copyto(out, value - self.first if self.first else value, casting="unsafe" if binary else "same_kind")


def parts(space: spaces.Space[Any]) -> list[Part]:
    """The parts of an observation, in the order of its row; raises UserError where one is not supported."""
    leaves: list[tuple[tuple[str, ...], spaces.Space[Any]]] = []

    def visit(path: tuple[str, ...], space: spaces.Space[Any]) -> None:
        for key, inner in space.items() if isinstance(space, spaces.Dict) else ():
            visit((*path, str(key)), inner)
        if not isinstance(space, spaces.Dict):
            _require_observation(space, path)
            leaves.append((path, spaces.MultiBinary(space.shape) if path == MASK and space.shape else space))

    visit((), space)
    if not leaves:
        raise UserError(f"the observation space {space} is empty: there is nothing to learn from")
    rows, end = [], 0
    for path, inner in sorted(leaves, key=lambda part: part[0] == MASK):
        small = isinstance(inner, spaces.MultiBinary) or inner.dtype == np.uint8
        choice = isinstance(inner, spaces.Discrete)
        dtype = np.dtype(np.int64 if choice else np.uint8 if small else np.float32)
        shape, start = tuple(inner.shape or (1,)), end
        end += int(np.prod(shape)) * dtype.itemsize
        rows.append(Part(path, inner, dtype, shape, int(getattr(inner, "start", 0)), start, end))
    return rows


def _require_observation(space: spaces.Space[Any], path: tuple[str, ...]) -> None:
    known = isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary)
    where = f"in its part '{'.'.join(path)}'" if path else "as a whole"
    if not known:
        cure = "gymnasium.wrappers.FlattenObservation makes a Box of it"
        cure = cure if space.is_np_flattenable else "make a Box of it with a wrapper of your own"
        raise UserError(
            f"observations are {space} {where}: Box, Discrete, MultiBinary, Dict of these are supported; {cure}"
        )
    if isinstance(space, spaces.Discrete) and space.n > MAX_ONE_HOT:
        raise UserError(f"observations are {space} {where}: at most {MAX_ONE_HOT} alternatives; make a Box of it")
    if isinstance(space, spaces.Box) and (np.isnan(space.low).any() or np.isnan(space.high).any()):
        raise UserError(f"observations are {space} {where}: its bounds are NaN; give numbers, or -inf and inf")


def blank(space: spaces.Space[Any]) -> Array:
    """A row of zeros for one observation."""
    first, *rest = parts(space)
    return np.zeros(first.shape, first.dtype) if not first.path else np.zeros([first, *rest][-1].stop, np.uint8)


def pack(layout: list[Part], obs: Any, out: Array) -> None:
    """Write a Dict's observation into its row; raises ValueError where a part is not in its space."""
    for part in layout:
        value, name = obs, ".".join(part.path)
        for key in part.path:
            value = value[key]
        array = np.zeros(part.shape, part.dtype)
        part.fill(value, f"its part {name}", array)
        if part.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError(f"its part {name} is not finite")
        out[part.start : part.stop] = array.reshape(-1).view(np.uint8)


def own_row(space: spaces.Space[Any], obs: Any, mask: Any = None) -> Array:
    """The row of an environment's own observation; `mask`: its info's action mask, which `space` has beside it.

    Raises UserError where the observation is not in the space.
    """
    mask_apart = isinstance(space, spaces.Dict) and space.keys() == {"observation", *MASK}
    if mask_apart and not (isinstance(obs, dict) and obs.keys() == space.keys()):  # type: ignore[attr-defined]
        if mask is None:
            raise UserError("this policy obeys action masks: give it mask=info['action_mask'] as well")
        obs = {"observation": obs, MASK[0]: mask}
    layout, row = parts(space), blank(space)
    try:
        if layout[0].path:
            pack(layout, obs, row)
        else:
            layout[0].fill(obs, "its observation", row)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"the policy cannot see this: {error or type(error).__name__}; it saw {space}") from error
    return row


def masked(observation: spaces.Space[Any], action: spaces.Space[Any]) -> int:
    """Number of actions in an observation's action mask; 0 without one."""
    last = parts(observation)[-1]
    if last.path != MASK or not isinstance(action, spaces.Discrete):
        return 0
    if last.shape != (int(action.n),):
        raise UserError(f"action_mask has shape {last.shape}: for {action} it must be {(int(action.n),)}")
    return int(action.n)


def choices(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Number of alternatives of each choice in one action of a discrete space."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.flatten())
    return (2,) * int(np.prod(space.shape or ()))


def action_converter(space: spaces.Space[Any]) -> Callable[[Any], Any] | None:
    """The function from a policy's action to the environment's; None where they are the same.

    A policy's continuous action is clipped to [-1, 1] and scaled to the bounds of the space. Raises UserError where a
    space is not supported.
    """
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return (lambda action: action + first) if first else None
    shape = space.shape
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        start = getattr(space, "start", 0)
        return lambda action: np.asarray(action, space.dtype).reshape(shape) + np.asarray(start, space.dtype)
    cure = "gymnasium.wrappers.TransformAction changes them"
    if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
        raise UserError(
            f"actions are {space}: Discrete, MultiDiscrete, MultiBinary and Box of floats are supported; {cure}"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(f"actions are {space}: its bounds must be finite, the lower ones below; {cure}")
    middle, half = ((high + low) / 2).reshape(-1), ((high - low) / 2).reshape(-1)
    if (middle == 0).all() and (half == 1).all() and len(shape or ()) == 1:
        lower, upper = space.low.reshape(-1), space.high.reshape(-1)  # takes half the time of np.clip
        return lambda action: np.minimum(np.maximum(np.asarray(action, space.dtype), lower), upper)
    return lambda action: (middle + half * np.clip(action, -1.0, 1.0)).astype(space.dtype).reshape(shape)
