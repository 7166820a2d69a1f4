"""The controller counts a request's pictures from the worker's card as the worker itself lays them out."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generations import GENERATIONS, LLAVA_NEXT_2024_01, Generation
from model.image_file import ImageHeader
from server.admission import image_tokens
from server.protocol.registration import ModelCard
from worker.start import model_card

ALL: dict[str, Generation] = {
    **GENERATIONS,
    "padded single views": replace(LLAVA_NEXT_2024_01, images="pad", grids=()),
    "one base view of several": replace(LLAVA_NEXT_2024_01, several_images="base", rounding="round7"),
}
SIZES = st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 6000)), min_size=1, max_size=4)


@pytest.mark.parametrize("generation", ALL.values(), ids=ALL)
def test_the_card_carries_all_that_counting_needs(generation: Generation) -> None:
    config = generation.config
    sent = msgspec.json.encode(model_card(config, "name", "version", 1 << 20, 16))
    card = msgspec.json.decode(sent, type=ModelCard)

    @settings(max_examples=30, deadline=None)
    @given(SIZES)
    def agree(sizes: list[tuple[int, int]]) -> None:
        counted = image_tokens(card, [ImageHeader("PNG", *size) for size in sizes])
        assert counted == sum(config.geometry.layout(*size, len(sizes)).tokens for size in sizes)

    agree()
