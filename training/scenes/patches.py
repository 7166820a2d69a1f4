"""What each patch of a tile shows, known by construction: the labels by which the vision tower learns to see scenes.

A patch shows the object in whose box its centre lies, so long as it lies in the ellipse that the box holds; the corners
of the box may show anything and are left out. In a printed word a patch shows the letter at that place. Besides, the
patch at an object's centre is marked with the half of the tile it lies in, that at a letter's centre as a letter: there
are as many marks as things to count, and as letters to read.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

BACKGROUND = "background"
IGNORED = -100  # the label of a patch of which nothing is known
MARKS = ("none", "left", "right", "letter")

_WORD_LAYOUTS = {"reading", "reading_unseen", "small_print"}
_LEAST_LETTER = 0.35  # patches a letter must be wide on average, to be legible


@dataclass(frozen=True)
class View:
    """A part of a picture as one tile: pixel rectangle (left, top, right, bottom), squashed to a square."""

    left: float
    top: float
    right: float
    bottom: float


class PatchClasses:
    """The classes that patches fall into: background, letters, and every name that the rows hold."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        names = {item["name"] for row in rows if row["layout"] not in _WORD_LAYOUTS for item in row["objects"]}
        letters = [f"letter {letter}" for letter in string.ascii_lowercase]
        self.names: list[str] = [BACKGROUND, *letters, *sorted(names)]
        self._index = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, row: Mapping[str, Any], view: View, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the patches show, and their marks (places in MARKS): two of [grid * grid] int64, row by row."""
        shown, marks = np.zeros((grid, grid), dtype=np.int64), np.zeros((grid, grid), dtype=np.int64)
        for item in row["objects"]:
            box = _in_patches(item["box"], view, grid)
            if row["layout"] in _WORD_LAYOUTS:
                edges = (np.asarray(item["edges"]) - view.left) / (view.right - view.left) * grid
                self._print(shown, marks, item["name"], box, edges)
            else:
                self._place(shown, marks, self._index[item["name"]], box)
        return torch.from_numpy(shown.reshape(-1)), torch.from_numpy(marks.reshape(-1))

    def _place(self, shown: np.ndarray, marks: np.ndarray, label: int, box: tuple[float, ...]) -> None:
        left, top, right, bottom = box
        places = np.arange(len(shown)) + 0.5
        x, y = np.meshgrid(places, places)
        shown[(x >= left) & (x < right) & (y >= top) & (y < bottom)] = IGNORED
        across, down = (left + right) / 2, (top + bottom) / 2
        shown[((x - across) / (right - left)) ** 2 + ((y - down) / (bottom - top)) ** 2 <= 0.25] = label
        if 0 <= across < len(shown) and 0 <= down < len(shown):
            shown[int(down), int(across)] = label
            marks[int(down), int(across)] = MARKS.index("left" if across < len(shown) / 2 else "right")

    def _print(
        self, shown: np.ndarray, marks: np.ndarray, word: str, box: tuple[float, ...], edges: np.ndarray
    ) -> None:
        places = np.arange(len(shown)) + 0.5
        _, top, _, bottom = box
        rows = np.flatnonzero((places >= top) & (places < bottom))
        middle = int((top + bottom) / 2)
        if not len(rows) and 0 <= middle < len(shown):
            rows = np.array([middle])
        legible = (edges[-1] - edges[0]) / len(word) >= _LEAST_LETTER
        letters = [self._index[f"letter {letter.lower()}"] if legible else IGNORED for letter in word]
        for letter, left, right in zip(letters, edges[:-1], edges[1:], strict=True):
            shown[np.ix_(rows, (places >= left) & (places < right))] = letter
        centres = (edges[:-1] + edges[1:]) / 2
        for letter, centre in zip(letters, centres, strict=True):
            if legible and 0 <= centre < len(shown) and 0 <= middle < len(shown):
                shown[middle, int(centre)] = letter
                marks[middle, int(centre)] = MARKS.index("letter")


def _in_patches(box: Sequence[float], view: View, grid: int) -> tuple[float, ...]:
    """A box in pixels of the picture as a box in patches of the view."""
    across, down = grid / (view.right - view.left), grid / (view.bottom - view.top)
    left, top, right, bottom = box
    return (
        (left - view.left) * across,
        (top - view.top) * down,
        (right - view.left) * across,
        (bottom - view.top) * down,
    )


def random_view(width: int, height: int, chance: random.Random) -> View:
    """Half the time the whole picture, as in the base view; else a window of the size that an AnyRes tile has."""
    if chance.random() < 0.5:
        return View(0, 0, width, height)
    side = min(width, height) * chance.uniform(0.45, 0.7)
    left, top = chance.uniform(0, width - side), chance.uniform(0, height - side)
    return View(left, top, left + side, top + side)


def cut(image: Image.Image, view: View, size: int) -> np.ndarray:
    """The view as [size, size, 3] uint8."""
    box = (view.left, view.top, view.right, view.bottom)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def stack(tiles: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[B, 3, S, S] float32, normalised."""
    scaled = np.stack(tiles).astype(np.float32) / 255
    scaled = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
