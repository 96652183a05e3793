"""What an environment's render() gives, as pictures of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from surefoot.errors import Fault

Picture = NDArray[np.uint8]  # [height, width, 3]
HEIGHT, WIDTH = 420, (64, 1260)  # pixels of a film's pictures; the width follows the first one's shape
PAPER = 250


def to_picture(frame: Any, largest: float = 0.0) -> Picture:
    """A picture from what render() gave: grey, transparent, channels first, numbers from 0 to 1, a list of frames.

    `largest`: the largest number seen in earlier frames. Raises Fault where it is no picture.
    """
    if isinstance(frame, dict):  # several cameras
        frame = next(iter(frame.values()), None)
    if isinstance(frame, list | tuple) and frame and not isinstance(frame[-1], list | tuple | int | float):
        frame = frame[-1]  # the frames since the last call
    if hasattr(frame, "detach"):
        frame = frame.detach().cpu()
    array = np.asarray(frame)
    while array.ndim > 3 and len(array):
        array = array[-1]
    if array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4) and array.shape[0] in (1, 2, 3, 4):
        array = array.transpose(1, 2, 0)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "biuf" or not array.size or array.shape[2] > 4:
        what = "text" if isinstance(frame, str) else None if frame is None else f"{array.dtype} {[*array.shape]}"
        needed = "and a picture [height, width, 3] is needed"
        raise Fault(f"the environment cannot be filmed: its render() gives {what}, {needed}")
    if array.dtype != np.uint8:
        array = as_bytes(array, largest)
    channels = array.shape[2]
    color = np.repeat(array[:, :, :1], 3, 2) if channels < 3 else array[:, :, :3]
    if channels in (2, 4) and (alpha := array[:, :, -1:].astype(np.float32) / 255).any():
        color = (color * alpha + 255 * (1 - alpha)).round().astype(np.uint8)  # on white
    return np.ascontiguousarray(color)


def as_bytes(array: NDArray[Any], largest: float) -> Picture:
    """Other numbers as bytes; where none has been above 1 they are fractions."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 2 and array.max() > 255:
        return (array.astype(np.int64).clip(0, 65_535) // 257).astype(np.uint8)
    numbers = np.nan_to_num(array.astype(np.float64), posinf=255.0, neginf=0.0)
    fractions = array.dtype.kind in "bf" and max(largest, float(numbers.max())) <= 1
    return (numbers * (255 if fractions else 1)).round().clip(0, 255).astype(np.uint8)


class Screen:
    """The pictures of one film: all have the size that the first one gives, and others are fitted into it."""

    def __init__(self) -> None:
        self.width, self.largest = 0, 0.0

    def show(self, frame: Any) -> Picture:
        """A frame as a picture [420, width, 3]; raises Fault where it is none."""
        picture = to_picture(frame, self.largest)
        if isinstance(frame, np.ndarray) and frame.dtype.kind == "f":
            self.largest = max(self.largest, float(np.nan_to_num(frame).max()))
        height, width = picture.shape[:2]
        self.width = self.width or int(np.clip(width * HEIGHT / height, *WIDTH)) // 2 * 2
        scale = min(HEIGHT / height, self.width / width)
        size = max(1, int(width * scale) // 2 * 2), max(1, round(height * scale))
        how = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
        fitted = np.asarray(Image.fromarray(picture).resize(size, how))
        if fitted.shape[:2] == (HEIGHT, self.width):
            return fitted
        paper = np.full((HEIGHT, self.width, 3), PAPER, np.uint8)
        top, left = (HEIGHT - size[1]) // 2, (self.width - size[0]) // 2
        paper[top : top + size[1], left : left + size[0]] = fitted
        return paper
