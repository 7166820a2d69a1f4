"""Picture files made from numbers: each has a content of its own, and none compresses to nothing.

Noise lies over a gradient, so that a decoder, a resize and a transfer cost what a photograph's would. Files are made
before a run and kept on disk, where their number costs no memory, so that making them takes no time from the server.
"""

from __future__ import annotations

import base64
import io
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Format = Literal["jpeg", "png"]
_NOISE = 48  # of 256 levels, to either side
_QUALITY = 90
_LARGEST = 16384  # pixels a side


@dataclass(frozen=True)
class Size:
    """Pixels."""

    width: int
    height: int

    @staticmethod
    def parse(text: str) -> Size:
        """From "1024x768". Raises ValueError."""
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
        if match is None or not all(1 <= int(side) <= _LARGEST for side in match.groups()):
            raise ValueError(f"size {text!r}: expected WIDTHxHEIGHT in pixels, 1 to {_LARGEST} a side, e.g. 336x336")
        return Size(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def picture_file(size: Size, kind: Format, seed: tuple[int, ...]) -> bytes:
    """One file; equal arguments give equal pixels, other seeds others."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 255, (2, 2, 3))  # a colour for each corner
    across, down = np.linspace(0, 1, size.width), np.linspace(0, 1, size.height)
    edges = corners[0] * (1 - across)[:, None, None] + corners[1] * across[:, None, None]  # [width, 2, 3]
    gradient = edges[None, :, 0] * (1 - down)[:, None, None] + edges[None, :, 1] * down[:, None, None]
    noise = random.integers(-_NOISE, _NOISE + 1, gradient.shape)
    picture = Image.fromarray(np.clip(gradient + noise, 0, 255).astype(np.uint8), "RGB")
    file = io.BytesIO()
    if kind == "png":
        picture.save(file, "PNG", compress_level=1)
    else:
        picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


class PictureShelf:
    """Data URLs by number, made ahead into a temporary file; those beyond are made when they are asked for."""

    def __init__(self, sizes: tuple[Size, ...], kind: Format, seed: int) -> None:
        """Sizes take turns. Numbers may be negative: those of the warm-up are."""
        self._sizes = sizes
        self._kind: Format = kind
        self._seed = seed
        self._places: dict[int, tuple[int, int]] = {}
        self._file = tempfile.TemporaryFile(prefix="tephra-pictures-")  # noqa: SIM115
        self.made_late = 0

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def prepare(self, numbers: Iterable[int]) -> None:
        """Raises OSError when the disk is full."""
        for number in numbers:
            if number not in self._places:
                url = self._make(number)
                self._places[number] = (self._file.seek(0, io.SEEK_END), len(url))
                self._file.write(url)

    def data_url(self, number: int) -> str:
        """`data:image/...;base64,...`"""
        place = self._places.get(number)
        if place is None:
            self.made_late += 1
            return self._make(number).decode()
        self._file.seek(place[0])
        return self._file.read(place[1]).decode()

    def close(self) -> None:
        self._file.close()

    def _make(self, number: int) -> bytes:
        size = self._sizes[number % len(self._sizes)]
        seed = (self._seed, number % 2**63)  # numpy takes no negative seed
        return f"data:image/{self._kind};base64,".encode() + base64.b64encode(picture_file(size, self._kind, seed))
