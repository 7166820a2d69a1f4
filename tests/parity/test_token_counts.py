"""Token counts at full size against transformers' processors, for sizes of every kind."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor

from model.generations import MODEL_CARD_GRIDS, RELEASED_GRIDS, SIX_BY_SIX, Grids
from model.geometry import Canvas, ImageGeometry

SIDES = st.integers(1, 6000) | st.integers(1, 60)
LISTS = {"released": RELEASED_GRIDS, "model card": MODEL_CARD_GRIDS, "six by six": SIX_BY_SIX}


def pinpoints(grids: Grids, tile: int) -> list[list[int]]:
    """As Hugging Face lists them: (height, width)."""
    return [[down * tile, across * tile] for across, down in grids]


def canvases(grids: Grids, tile: int) -> tuple[Canvas, ...]:
    return tuple(Canvas(across * tile, down * tile) for across, down in grids)


def processor(kind: type, grids: Grids, tile: int, **fields: Any) -> Any:
    """A processor without its tokenizer: counting needs none."""
    made = object.__new__(kind)
    made.image_processor = SimpleNamespace(image_grid_pinpoints=pinpoints(grids, tile))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("grids", LISTS.values(), ids=LISTS)
def test_next_counts_are_those_of_transformers(grids: Grids) -> None:
    theirs = processor(LlavaNextProcessor, grids, 336, patch_size=14, num_additional_image_tokens=1)
    ours = ImageGeometry(336, 24, canvases(grids, 336))

    @settings(max_examples=200, deadline=None)
    @given(SIDES, SIDES)
    def agree(width: int, height: int) -> None:
        expected = theirs._get_number_of_features(height, width, 336, 336) - 1  # the CLS token, dropped
        assert ours.layout(width, height).tokens == expected

    agree()


@pytest.mark.parametrize("max_tiles", [4, 9, 16])
def test_onevision_counts_are_those_of_transformers(max_tiles: int) -> None:
    ratio = f"anyres_max_{max_tiles}"
    theirs = processor(LlavaOnevisionProcessor, SIX_BY_SIX, 384, num_image_tokens=729, vision_aspect_ratio=ratio)
    ours = ImageGeometry(384, 27, canvases(SIX_BY_SIX, 384), max_tiles=max_tiles)

    @settings(max_examples=200, deadline=None)
    @given(SIDES, SIDES)
    def agree(width: int, height: int) -> None:
        assert ours.layout(width, height).tokens == theirs._get_number_of_features(height, width, 384, 384)

    agree()
