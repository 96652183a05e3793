"""A gif that is written while its pictures are made: an episode of hours takes no more memory than its file."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from surefoot.runs.files import replace_file
from surefoot.runs.pictures import Picture

CLEAR = 63  # the colour that is transparent; the others are colours of the first picture
FOR_EVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"


class Gif:
    """One palette for all pictures, the first one's, and of each picture only what has changed.

    Pillow quantises and compresses; it would keep all pictures until the end. Source: GIF89a specification, sections 18
    to 26.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.data = path, BytesIO()
        self.hundredths = max(2, round(100 / fps))  # of a second; players show shorter ones slowly
        self.palette: Image.Image | None = None
        self.last = np.empty((0, 0), np.uint8)

    def __enter__(self) -> Gif:
        return self

    def append_data(self, frame: Picture) -> None:
        """Add a frame, [height, width, 3] bytes, all of one size."""
        picture = Image.fromarray(frame)
        first = self.palette is None
        palette = self.palette = self.palette or picture.quantize(CLEAR)
        now = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        numbers = np.asarray(now)
        changed = np.ones_like(numbers) if first else numbers != self.last
        (top, *_, bottom), (left, *_, right) = (np.flatnonzero(changed.any(k)).tolist() * 2 or [0, 0] for k in (1, 0))
        self.last = numbers
        part, shown = BytesIO(), np.where(changed, numbers, np.uint8(CLEAR))[top : bottom + 1, left : right + 1]
        with Image.fromarray(shown) as image:
            image.putpalette(bytes(palette.getpalette() or []).ljust(3 * CLEAR + 3, b"\0"))
            image.save(part, "GIF", interlace=0, optimize=False)
        block = part.getvalue()  # header, screen, colours, the image's descriptor and data, trailer
        start = 13 + 3 * 2 ** ((block[10] & 7) + 1)
        if first:
            self.data.write(b"GIF89a" + block[6:start] + FOR_EVER)
        data = block[block.index(b",", start) : -1]
        self.data.write(struct.pack("<3sBHBB", b"\x21\xf9\x04", 5, self.hundredths, CLEAR, 0))
        self.data.write(data[:1] + struct.pack("<HH", left, top) + data[5:])

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            replace_file(self.path, self.data.getvalue() + b";")
