"""Token counts, canvases and boxes against the figures of the references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.generations import HD_GRIDS, LLAVA_1_5_HD, LLAVA_NEXT_2024_01, SIX_BY_SIX
from model.geometry import Box, Canvas, ImageGeometry, PixelBudget, choose_canvas, covered_box, fit_within, shrink

# The list of the released LLaVA-NeXT scripts. The original reads the pairs as (width, height), Hugging Face the other
# way round.
PAIRS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
ORIGINAL = ImageGeometry(336, 24, tuple(Canvas(w, h) for w, h in PAIRS), unpad="truncate")
HUGGING_FACE = ImageGeometry(336, 24, tuple(Canvas(w, h) for h, w in PAIRS))
SMALL = ImageGeometry(112, 8, tuple(Canvas(w // 3, h // 3) for h, w in PAIRS))


def six_by_six(max_tiles: int | None, **fields: object) -> ImageGeometry:
    canvases = tuple(Canvas(384 * across, 384 * down) for across, down in SIX_BY_SIX)
    return ImageGeometry(384, 27, canvases, max_tiles=max_tiles, **fields)  # type: ignore[arg-type]


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


@pytest.mark.parametrize(("size", "tokens"), [((300, 200), 976), ((328, 861), 2126), ((672, 672), 2928)])
def test_token_counts_are_those_of_the_original(size: tuple[int, int], tokens: int) -> None:
    assert ORIGINAL.layout(*size).tokens == tokens


def test_the_original_and_hugging_face_agree_once_each_pair_is_swapped() -> None:
    swapped = ImageGeometry(336, 24, tuple(Canvas(w, h) for h, w in [(h, w) for w, h in PAIRS]), unpad="truncate")
    assert swapped == ORIGINAL
    assert LLAVA_NEXT_2024_01.config.geometry.canvases == ORIGINAL.canvases


def test_no_image_costs_more_than_the_stated_maximum() -> None:
    assert HUGGING_FACE.max_tokens == ORIGINAL.max_tokens == 2928
    assert LLAVA_1_5_HD.config.geometry.max_tokens == 256 + 6 * 16 * 16 + 6 * 16  # one tile wide, six tall
    five = tuple(Canvas(w // 336 * 384, h // 336 * 384) for w, h in PAIRS)
    assert ImageGeometry(384, 27, five).max_tokens == 3699
    assert [six_by_six(n).max_tokens for n in (4, 9, 16)] == [4341, 8765, 14904]


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([1, 4, 9, 16, None]), st.integers(1, 2))
def test_every_image_stays_under_the_maximum(width: int, height: int, max_tiles: int | None, images: int) -> None:
    geometry = six_by_six(max_tiles, several_images="base")
    assert geometry.layout(width, height, images).tokens <= geometry.max_tokens


def test_without_canvases_every_image_costs_one_tile() -> None:
    assert ImageGeometry(336, 24).layout(4000, 3).tokens == 576
    assert ImageGeometry(336, 24, extra_tokens=1).layout(10, 10).tokens == 577
    assert ImageGeometry(336, 24, newline=True).layout(10, 10).tokens == 577


def test_of_several_images_the_base_view_and_a_newline_are_left_where_the_rule_says_so() -> None:
    tiles, base = six_by_six(9), six_by_six(9, several_images="base")
    assert base.layout(1000, 700) == tiles.layout(1000, 700)
    assert tiles.layout(1000, 700, 3) == tiles.layout(1000, 700)
    alone = base.layout(1000, 700, 3)
    assert (alone.tokens, alone.tiles, alone.newline, alone.base) == (730, 1, True, "pad")


def test_a_canvas_of_one_tile_is_encoded_beside_the_base_view() -> None:
    layout = six_by_six(9).layout(384, 384)
    assert (layout.canvas, layout.tiles) == ((384, 384), 2)
    assert layout.tokens == 729 + 27 * 28


def test_pixels_are_known_before_any_is_touched() -> None:
    assert HUGGING_FACE.budget(4000, 3000) == PixelBudget(decoded=12_000_000, encoded=5 * 336 * 336)
    assert six_by_six(9, several_images="base").budget(100, 50, 2) == PixelBudget(5000, 384 * 384)


def test_equal_canvases_are_chosen_in_the_order_of_the_list() -> None:
    twice = (Canvas(672, 672), Canvas(672, 672))
    assert choose_canvas(100, 100, twice) is twice[0]
    lying, standing = Canvas(672, 336), Canvas(336, 672)
    assert choose_canvas(500, 500, (lying, standing)) == lying
    assert choose_canvas(500, 500, (standing, lying)) == standing


def test_hd_takes_no_more_tiles_than_the_picture_needs() -> None:
    canvases = tuple(Canvas(224 * across, 224 * down) for across, down in HD_GRIDS)
    assert len(canvases) == 14
    assert choose_canvas(224, 224, canvases) == (224, 224)  # the paper's own example: not 448x448
    assert choose_canvas(672, 448, canvases) == (672, 448)
    assert choose_canvas(100, 3000, canvases) == (224, 1344)


def test_hd_keeps_every_cell_that_shows_any_picture() -> None:
    # 448x100 on 448x224: pixels 62 to 162 of 224, that is cells 4.4 to 11.6.
    assert covered_box(448, 100, Canvas(448, 224), 32, 16) == Box(4, 12, 0, 32)
    assert covered_box(1, 5000, Canvas(224, 1344), 16, 96) == Box(0, 96, 7, 8)


def test_a_map_within_a_tenth_a_side_of_its_budget_is_not_shrunk() -> None:
    assert shrink(81, 81, 27, 9) == (81, 81)
    assert shrink(98, 81, 27, 9) == (98, 81)  # 1.0998 times a side
    assert shrink(99, 81, 27, 9) == (89, 73)
    assert shrink(162, 162, 27, 9) == (81, 81)
    assert shrink(162, 162, 27, None) == (162, 162)


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
