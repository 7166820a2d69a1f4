"""What each patch of a tile shows, known by construction: the labels by which the vision tower learns to see scenes.

A patch belongs to the object whose box holds its centre; in a printed word it belongs to the letter at that place.
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
_WORD_LAYOUTS = {"reading", "reading_unseen", "small_print"}


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

    def labels(self, row: Mapping[str, Any], view: View, grid: int) -> torch.Tensor:
        """[grid * grid] int64, row by row."""
        across = view.left + (np.arange(grid) + 0.5) / grid * (view.right - view.left)
        down = view.top + (np.arange(grid) + 0.5) / grid * (view.bottom - view.top)
        labels = np.zeros((grid, grid), dtype=np.int64)
        for item in row["objects"]:
            left, top, right, bottom = item["box"]
            inside = ((down >= top) & (down < bottom))[:, None] & ((across >= left) & (across < right))[None, :]
            labels = np.where(inside, self._of(row, item["name"], across, left, right)[None, :], labels)
        return torch.from_numpy(labels.reshape(-1))

    def _of(self, row: Mapping[str, Any], name: str, across: np.ndarray, left: float, right: float) -> np.ndarray:
        if row["layout"] not in _WORD_LAYOUTS:
            return np.full(len(across), self._index[name])
        places = np.clip((across - left) / max(1.0, right - left) * len(name), 0, len(name) - 1).astype(int)
        return np.array([self._index[f"letter {name[place].lower()}"] for place in places])


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
