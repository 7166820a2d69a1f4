"""Boxes as the family writes them, and the two questions about a region.

Two decimals, left, top, right, bottom, each from 0 to 1. LLaVA-1.5 pads a picture to a square before it looks, so that
coordinates count in that square.
"""

from __future__ import annotations

from random import Random

from training.data.convert.base import Boxes, Exchange, FieldError
from training.data.convert.prompts import REGION_TO_WORDS, WORDS_TO_REGION, sentence


def box_text(corner_and_size: list[float], width: int, height: int, boxes: Boxes) -> str:
    """`[left, top, right, bottom]` of a box given as left, top, width, height in pixels. Raises FieldError."""
    left, top, across, down = corner_and_size
    if width < 1 or height < 1:
        raise FieldError(f"the picture's size is {width}x{height}")
    if across <= 0 or down <= 0 or left >= width or top >= height or left + across <= 0 or top + down <= 0:
        raise FieldError(f"box {corner_and_size} covers nothing of a picture of {width}x{height}")
    side_x, side_y, shift_x, shift_y = width, height, 0, 0
    if boxes is Boxes.PADDED:
        side_x = side_y = max(width, height)
        shift_x, shift_y = (side_x - width) // 2, (side_y - height) // 2
    corners = (
        (max(left, 0.0) + shift_x) / side_x,
        (max(top, 0.0) + shift_y) / side_y,
        (min(left + across, width) + shift_x) / side_x,
        (min(top + down, height) + shift_y) / side_y,
    )
    return "[" + ", ".join(str(round(corner, 2)) for corner in corners) + "]"


def region_exchange(words: str, box: str, chance: Random) -> Exchange:
    """Words for the box or a box for the words, by chance."""
    if not words.strip():
        raise FieldError("the description is empty")
    if chance.random() < 0.5:
        return Exchange(REGION_TO_WORDS.format(box=box), sentence(words))
    return Exchange(WORDS_TO_REGION.format(words=words.strip().removesuffix(".")), box)
