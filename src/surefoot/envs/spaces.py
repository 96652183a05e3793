"""Observation spaces as rows of numbers, as a rollout stores them.

A row has the shape of its space: uint8 stays uint8, other numbers become float32, choices (Discrete, MultiDiscrete)
int64. The parts of a Dict or Tuple are stored side by side as bytes; a part called `action_mask` (one number for each
alternative of a discrete action) is last and says which actions are allowed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

from surefoot.envs.actions import choices
from surefoot.errors import UserError, note_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MASK = ("action_mask",)
MAX_ONE_HOT = 4096  # alternatives of one choice that are seen one-hot; more are seen as one number from 0 to 1
MIN_IMAGE = 36  # pixels of an image's edge: what NatureCNN's kernels need
MAX_CHANNELS = 4  # an axis of at most this many is colours


class Part(NamedTuple):
    """One part of an observation: its keys in nested Dicts and Tuples, its space, and its place in the row."""

    path: tuple[Any, ...]
    space: spaces.Space[Any]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sizes: tuple[int, ...]  # alternatives of each choice, seen one-hot; () for numbers
    first: Any  # subtracted from what the environment gives: the `start` of choices
    factor: float  # times this
    start: int  # byte offsets in the row
    stop: int

    @property
    def name(self) -> str:
        """As errors call it."""
        return f"its part {'.'.join(map(str, self.path))}" if self.path else "its observation"

    def bounds(self) -> tuple[float, float]:
        """The lowest and highest number that a Box announces."""
        box: Any = self.space
        return float(box.low.min()), float(box.high.max())

    def is_image(self) -> bool:
        """A picture large enough for convolutions: [height, width], one more axis for colours, two with a stack.

        Bytes or whole numbers from 0 to 255, or floats between the same bounds everywhere. Grids of other whole numbers
        are codes of something (characters, pieces), and not brightness.
        """
        if not isinstance(self.space, spaces.Box) or len(self.shape) not in (2, 3, 4) or self.space.dtype is None:
            return False
        low, high = self.bounds()
        alike = bool((self.space.low == low).all() and (self.space.high == high).all())
        if self.space.dtype.kind == "f":
            pixels = alike and (np.isfinite(high - low) or len(self.shape) > 2)
        else:
            pixels = alike and (low, high) == (0, 255)
        return pixels and min(image_axes(self.shape)[:2]) >= MIN_IMAGE

    def is_plain(self) -> bool:
        """A Box that is stored as floats: whatever numbers the environment gives can be copied."""
        return isinstance(self.space, spaces.Box) and self.dtype == np.float32

    def pixel_scale(self) -> float | None:
        """What the pixels of a picture of floats are divided by; None for bytes, whose network knows it."""
        if self.dtype == np.uint8:
            return None
        low, high = self.bounds()
        return max(abs(low), abs(high)) if np.isfinite(high - low) and high > low else 1.0

    def fill(self, value: Any, name: str, out: Array) -> None:
        """Write a value into a row; raises ValueError or TypeError where it cannot be one of its space."""
        if type(value) is not np.ndarray or value.dtype == object:
            value = as_array(value)
        if value.shape != self.space.shape:
            value = self._reshaped(value, name)
        if self.sizes or self.factor != 1.0:
            self._fill_choices(value, name, out)
        elif value.dtype == out.dtype:
            np.copyto(out, value)
        elif out.dtype == np.float32:
            with np.errstate(all="ignore"):  # an environment may have turned NumPy's errors on
                np.copyto(out, value, casting="same_kind")
        else:
            cast = value.astype(out.dtype)
            if not (cast == value).all():
                raise ValueError(f"{name} has {value.dtype} that {out.dtype} cannot hold, as its space announces")
            np.copyto(out, cast)

    def _reshaped(self, value: Array, name: str) -> Array:
        if value.size != np.prod(self.space.shape or (), dtype=int):
            raise ValueError(f"{name} has shape {value.shape}, but its space has {self.space.shape}")
        note_once(f"{name} has shape {value.shape}, but its space has {self.space.shape}: it is reshaped")
        return value.reshape(self.space.shape or ())

    def _fill_choices(self, value: Array, name: str, out: Array) -> None:
        index = np.asarray(value).reshape(-1) - self.first
        most: Any = self.sizes or 1 / self.factor
        whole = index.dtype.kind != "f" or (index % 1 == 0).all()
        if not (whole and ((index >= 0) & (index < np.asarray(most))).all()):
            raise ValueError(f"{name} is {value}, which is not in {self.space}")
        np.copyto(out.reshape(-1), index * self.factor if self.factor != 1.0 else index, casting="unsafe")


def image_axes(shape: tuple[int, ...]) -> tuple[int, int, int, bool]:
    """Height, width and channels of a picture, a stack's pictures side by side as channels; whether colours are last.

    [height, width], [height, width, channels], [channels, height, width], [stack, height, width, channels] or
    [stack, channels, height, width].
    """
    if len(shape) == 2:
        return shape[0], shape[1], 1, False
    *stack, a, b, c = shape
    count = stack[0] if stack else 1
    if c <= MAX_CHANNELS < min(a, b) if stack else c < min(a, b):
        return a, b, c * count, True
    return b, c, a * count, False


def as_array(value: Any) -> Array:
    """NumPy's array of anything that is one: torch's without its gradient, JAX's, lists, numbers of any kind."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        if not (isinstance(value, list | tuple) and isinstance(error, RuntimeError)):
            raise
        array = np.array([as_array(one) for one in value])  # of torch's
    if array.dtype == object and array is not value and hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    if array.dtype == object and not (array == None).any():  # noqa: E711 (of each element)
        with suppress(TypeError, ValueError):  # fractions, decimals
            return array.astype(np.float64)
    return array


def discrepancy(part: Part, value: Any) -> str:
    """What a value has that its space does not announce, though it can be learned from; empty for nothing."""
    space = part.space
    if not isinstance(space, spaces.Box) or space.dtype is None or (value := as_array(value)).shape != space.shape:
        return ""
    if value.dtype.kind in "fiu":
        for bound, far in ((space.low, value < space.low), (space.high, value > space.high)):
            if far.any():
                where = tuple(int(i) for i in np.argwhere(far)[0])
                place = f" at {list(where)}" if where else ""
                return f"{part.name} has {value[where]!s}{place}, beyond the bound {bound[where]!s} of its space"
    if value.dtype != space.dtype and value.dtype.kind != space.dtype.kind:
        return f"{part.name} has {value.dtype}, but its space {space.dtype}"
    return ""


def parts(space: spaces.Space[Any]) -> list[Part]:
    """The parts of an observation, in the order of its row; raises UserError where there is nothing to learn from.

    Parts of a Dict or Tuple that are no numbers (Text, Sequence, Graph, spaces of one's own) are left out with a note.
    """
    leaves: list[tuple[tuple[Any, ...], spaces.Space[Any]]] = []
    left_out: list[str] = []

    def visit(path: tuple[Any, ...], space: spaces.Space[Any]) -> None:
        if path == MASK and isinstance(space, spaces.Tuple) and all(inner.shape is not None for inner in space):
            space = spaces.MultiBinary(sum(int(np.prod(inner.shape)) for inner in space))  # one for each choice
        if isinstance(space, spaces.Dict | spaces.Tuple):
            for key, inner in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
                visit((*path, key), inner)
        elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
            leaves.append((path, spaces.MultiBinary(space.shape) if path == MASK and space.shape else space))
        else:
            kind = type(space).__name__  # all of it may be long, and have an address
            left_out.append(f"{'.'.join(map(str, path))} ({kind})" if path else kind)

    visit((), space)
    if not leaves:
        cure = "FlattenObservation makes a Box of it" if space.is_np_flattenable else "make a Box of it with a wrapper"
        raise UserError(
            f"observations are {space}: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these can be "
            f"learned from; {cure}"
            if left_out
            else f"the observation space {space} is empty: there is nothing to learn from"
        )
    if left_out:
        note_once(f"not seen, since they are no numbers: {', '.join(left_out)}")
    rows: list[Part] = []
    for path, inner in sorted(leaves, key=lambda part: part[0] == MASK):
        part = _part(path, inner, rows[-1].stop if rows else 0)
        rows += [part] if part.shape and part.stop > part.start else []  # an empty Box has nothing to see
    if not rows:
        raise UserError(f"the observation space {space} is empty: there is nothing to learn from")
    return rows


def _part(path: tuple[Any, ...], space: spaces.Space[Any], start: int) -> Part:
    first: Any = 0
    shape, sizes, factor = tuple(space.shape or (1,)), tuple[int, ...](), 1.0
    pixels = isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "iu"
    pixels = pixels and bool((space.low == 0).all() and (space.high == 255).all())  # type: ignore[attr-defined]
    small = pixels or isinstance(space, spaces.MultiBinary) or space.dtype == np.uint8
    dtype = np.dtype(np.uint8 if small else np.float32)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        sizes, first, dtype = choices(space), np.asarray(space.start).reshape(-1), np.dtype(np.int64)
        if sum(sizes) > MAX_ONE_HOT:
            factor, sizes, dtype = 1 / max(sizes), (), np.dtype(np.float32)
            note_once(f"observations are {space}: too many alternatives for one-hot, they are seen as numbers 0 to 1")
    stop = start + int(np.prod(shape)) * dtype.itemsize
    return Part(path, space, dtype, shape, sizes, first, factor, start, stop)


def blank(space: spaces.Space[Any]) -> Array:
    """A row of zeros for one observation."""
    first, *rest = parts(space)
    return np.zeros(first.shape, first.dtype) if not first.path else np.zeros([first, *rest][-1].stop, np.uint8)


def pack(layout: list[Part], obs: Any, out: Array) -> None:
    """Write an observation of several parts into its row; raises ValueError where a part is not in its space."""
    for part in layout:
        value = obs
        try:
            for key in part.path:
                value = value[key]
        except (LookupError, TypeError) as error:
            missing = ".".join(map(str, part.path))
            raise ValueError(f"its observation ({type(obs).__name__}) has no part {missing}") from error
        array = np.zeros(part.shape, part.dtype)
        part.fill(flat_mask(value, array.size) if part.path == MASK else value, part.name, array)
        if part.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError(f"{part.name} is not finite")
        out[part.start : part.stop] = array.reshape(-1).view(np.uint8)


def own_row(space: spaces.Space[Any], action: spaces.Space[Any], obs: Any, mask: Any = None) -> Array:
    """The row of an environment's own observation; `mask`: its info's action mask, which `space` has beside it.

    Raises UserError where the observation is not in the space.
    """
    mask_apart = isinstance(space, spaces.Dict) and space.keys() == {"observation", *MASK}
    if mask_apart and not (isinstance(obs, dict) and obs.keys() == space.keys()):  # type: ignore[attr-defined]
        if mask is None:
            raise UserError("this policy obeys action masks: give it mask=info['action_mask'] as well")
        obs = {"observation": obs, MASK[0]: flat_mask(mask, int(np.prod(space[MASK[0]].shape)))}  # type: ignore[index]
    layout, row = parts(space), blank(space)
    try:
        if layout[0].path:
            pack(layout, obs, row)
            if masked(space, action):
                allow_something(row[layout[-1].start :], choices(action))
        else:
            layout[0].fill(obs, layout[0].name, row)
        if row.dtype == np.float32 and not np.isfinite(row).all():
            raise ValueError(f"{layout[0].name} is not finite")
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"the policy cannot see this: {error or type(error).__name__}; it saw {space}") from error
    return row


def masked(observation: spaces.Space[Any], action: spaces.Space[Any]) -> int:
    """Number of alternatives in an observation's action mask; 0 without one."""
    last, count = parts(observation)[-1], sum(choices(action))
    if last.path != MASK or not count:
        return 0
    if int(np.prod(last.shape)) != count:
        raise UserError(f"action_mask has shape {last.shape}: for {action} it must be {(count,)}")
    return count


def flat_mask(mask: Any, count: int) -> Array:
    """An action mask [count] from an array of any shape, or one array for each choice; raises ValueError."""
    with suppress(ValueError):  # arrays of several lengths
        mask = as_array(mask)
    rows = [mask] if isinstance(mask, np.ndarray) and mask.dtype != object else list(mask)
    flat = np.concatenate([as_array(row).reshape(-1) for row in rows]) if rows else np.zeros(0)
    if len(flat) != count:
        raise ValueError(f"its action mask has {len(flat)} numbers where there are {count} alternatives")
    if not (flat >= 0).all():
        raise ValueError(
            f"its action mask has {flat[~(flat >= 0)][0]}: 1 stands for what is allowed, and 0 for what is not"
        )
    allowed: Array = (flat != 0).astype(np.uint8)
    return allowed


def allow_something(mask: Array, sizes: tuple[int, ...]) -> None:
    """Where a mask [sum of sizes] allows nothing of a choice in the middle of an episode, allow everything."""
    start = 0
    for size in sizes:
        if not mask[start : start + size].any():
            mask[start : start + size] = 1
            note_once("its action mask allows no action in the middle of an episode: there every action is allowed")
        start += size
