"""Token counts and canvases against the figures of the references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.geometry import Canvas, ImageGeometry, choose_canvas, fit_within

# The list of the released LLaVA-NeXT scripts. Hugging Face reads the pairs as (height, width).
PAIRS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
HUGGING_FACE = ImageGeometry(336, 24, tuple(Canvas(w, h) for h, w in PAIRS))
SMALL = ImageGeometry(112, 8, tuple(Canvas(w // 3, h // 3) for h, w in PAIRS))


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((300, 200), 1464),  # LlavaNextProcessor of transformers
        ((328, 861), 2176),  # where rounding before the cut matters: 2126 without
        ((672, 672), 2928),
    ],
)
def test_token_counts_are_those_of_transformers(size: tuple[int, int], tokens: int) -> None:
    assert HUGGING_FACE.layout(*size).tokens == tokens


def test_no_image_costs_more_than_the_stated_maximum() -> None:
    assert HUGGING_FACE.max_tokens == 2928


def test_without_canvases_every_image_costs_one_tile() -> None:
    assert ImageGeometry(336, 24).layout(4000, 3).tokens == 576
    assert ImageGeometry(336, 24, extra_tokens=1).layout(10, 10).tokens == 577


def test_equal_canvases_are_chosen_in_the_order_of_the_list() -> None:
    twice = (Canvas(672, 672), Canvas(672, 672))
    assert choose_canvas(100, 100, twice) is twice[0]


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        SMALL.layout(*size)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_layouts_hold_together_for_every_size(width: int, height: int) -> None:
    layout = SMALL.layout(width, height)
    assert layout.unpad is not None and layout.canvas is not None
    assert 0 <= layout.unpad.top <= layout.unpad.bottom <= layout.tiles_down * SMALL.grid
    assert 0 <= layout.unpad.left <= layout.unpad.right <= layout.tiles_across * SMALL.grid
    assert layout.tokens == 64 + layout.unpad.rows * (layout.unpad.columns + 1) <= SMALL.max_tokens
    fitted = fit_within(width, height, layout.canvas)
    assert 1 <= fitted[0] <= layout.canvas.width and 1 <= fitted[1] <= layout.canvas.height
    assert fitted[0] == layout.canvas.width or fitted[1] == layout.canvas.height
