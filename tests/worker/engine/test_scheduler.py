"""Drives the scheduler through random traffic without a model and holds its rules at every step."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.geometry import ImageLayout
from model.images import PreparedImage
from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.protocol import EngineError, EngineRequest, SamplingParams
from worker.engine.scheduler import Chunk, Scheduler, Step
from worker.engine.sequence import Sequence, SequenceState

IMAGE = 9  # the image token id of these tests


def image(tokens: int, tiles: int) -> PreparedImage:
    return PreparedImage(torch.zeros(0), ImageLayout(1, 1, None, 1, tiles - 1, None, tokens), "digest")


@dataclass(frozen=True)
class Arrival:
    """Text tokens before each image and at the end; images as (tokens, tiles)."""

    before: int  # steps since the arrival before it
    text: int
    images: tuple[tuple[int, int], ...]
    max_tokens: int
    leaves_after: int | None  # steps after its arrival, unless it ends earlier

    def request(self) -> EngineRequest:
        tokens: list[int] = []
        for length, _ in self.images:
            tokens += [1] * self.text + [IMAGE] * length
        tokens += [1] * max(1, self.text)
        images = tuple(image(*size) for size in self.images)
        return EngineRequest("r", tuple(tokens), images, SamplingParams(max_tokens=self.max_tokens, seed=0))


@dataclass
class House:
    """A scheduler, and the model's and the clients' part of the work."""

    config: EngineConfig
    allocator: BlockAllocator
    scheduler: Scheduler = field(init=False)
    sequences: list[Sequence] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config, self.allocator)

    def arrive(self, request: EngineRequest) -> Sequence:
        sequence = Sequence.of(
            request,
            number=len(self.sequences),
            context_length=self.allocator.tokens,
            image_token_id=IMAGE,
            allocator=self.allocator,
            now=0.0,
        )
        self.sequences.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Step:
        step = self.scheduler.schedule()
        for chunk in step.chunks:
            for slot in chunk.encode:
                slot.features = torch.zeros(slot.end - slot.start, 1)
            for slot in chunk.sequence.images_in(chunk.start, chunk.end):
                assert slot.features is not None
        self.check(step)
        for chunk in step.chunks:
            self.scheduler.complete(chunk)
        for chunk in step.chunks:
            if chunk.draws and chunk.sequence.append(1):
                self.scheduler.finish(chunk.sequence)
                self.finished.append(chunk.sequence.number)
        self.check_blocks()
        return step

    def check(self, step: Step) -> None:
        self.check_blocks()
        numbers = [chunk.sequence.number for chunk in step.chunks]
        assert numbers, "work is there, and the step is empty"
        assert len(set(numbers)) == len(numbers), "a sequence stands twice in a step"
        assert sum(chunk.length for chunk in step.chunks) <= self.config.max_step_tokens
        for chunk in step.chunks:
            assert chunk.sequence.state is SequenceState.RUNNING
            assert chunk.start == chunk.sequence.computed
            assert chunk.start < chunk.end <= len(chunk.sequence.tokens)
            assert chunk.draws == (chunk.end == len(chunk.sequence.tokens))
            assert chunk.sequence.table.missing(chunk.end) == 0
        assert all(chunk.length == 1 and chunk.draws for chunk in step.decodes)
        tiles = [slot.image.layout.tiles for chunk in step.chunks for slot in chunk.encode]
        assert sum(tiles) <= self.config.max_step_tiles or len(tiles) == 1
        self.check_fairness(step)

    def check_fairness(self, step: Step) -> None:
        """No prefill goes ahead of an older one that could have used the room."""
        lengths = {chunk.sequence.number: chunk for chunk in step.prefills}
        assert list(lengths) == sorted(lengths)
        for sequence in self.scheduler.running:
            chunk = lengths.get(sequence.number)
            cut_by_room = not sequence.decoding and not self._waits_for_tiles(sequence, chunk)
            if cut_by_room and (chunk is None or not chunk.draws):
                assert not [number for number in lengths if number > sequence.number]

    def _waits_for_tiles(self, sequence: Sequence, chunk: Chunk | None) -> bool:
        reached = chunk.end if chunk else sequence.computed
        return any(slot.features is None and slot.start <= reached < slot.end for slot in sequence.images)

    def check_blocks(self) -> None:
        held = [block for sequence in self.sequences for block in sequence.table.blocks]
        assert len(set(held)) == len(held), "two sequences write to one block"
        assert self.allocator.used == len(held)
        assert all(self.allocator.references(block) == 1 for block in held)
        running = [sequence.number for sequence in self.scheduler.running]
        waiting = [sequence.number for sequence in self.scheduler.waiting]
        assert running + waiting == sorted(running + waiting), "arrival order is lost"
        assert len(running) <= self.config.max_running
        for sequence in self.sequences:
            if sequence.state is not SequenceState.RUNNING:
                assert not sequence.table.blocks
                assert all(slot.features is None for slot in sequence.images)


ARRIVALS = st.builds(
    Arrival,
    before=st.integers(0, 5),
    text=st.integers(0, 12),
    images=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6)), max_size=2).map(tuple),
    max_tokens=st.integers(1, 30),
    leaves_after=st.none() | st.integers(0, 40),
)
CONFIGS = st.builds(
    EngineConfig,
    max_running=st.integers(1, 6),
    max_step_tokens=st.integers(6, 40),
    max_step_tiles=st.integers(1, 5),
)


@settings(max_examples=300, deadline=None)
@given(CONFIGS, st.integers(1, 5), st.integers(0, 12), st.lists(ARRIVALS, min_size=1, max_size=25))
def test_whatever_arrives_and_leaves_the_rules_hold_and_all_that_stays_finishes(
    config: EngineConfig, block_size: int, spare: int, arrivals: list[Arrival]
) -> None:
    longest = max(len(arrival.request().token_ids) for arrival in arrivals)
    house = House(config, BlockAllocator(-(-(longest + 1) // block_size) + spare, block_size))
    coming = list(arrivals)
    leaving: list[tuple[int, Sequence]] = []
    clock, due = 0, coming[0].before
    work = sum(len(arrival.request().token_ids) + arrival.max_tokens for arrival in arrivals)
    while coming or house.scheduler.has_work:
        while coming and clock >= due:
            arrival = coming.pop(0)
            sequence = house.arrive(arrival.request())
            if arrival.leaves_after is not None:
                leaving.append((clock + arrival.leaves_after, sequence))
            due = clock + (coming[0].before if coming else 0)
        for when, sequence in leaving:
            if when <= clock and sequence.state is not SequenceState.FINISHED:
                house.scheduler.finish(sequence)
                house.check_blocks()
        if house.scheduler.has_work:
            house.step()
        clock += 1
        assert clock < 50 * (work + 100), "no end in sight"
    assert house.allocator.used == 0
    assert all(sequence.state is SequenceState.FINISHED for sequence in house.sequences)
    left = {sequence.number for _, sequence in leaving}
    assert set(house.finished) >= {sequence.number for sequence in house.sequences} - left


def text_request(prompt: int, answer: int) -> EngineRequest:
    return EngineRequest("r", (1,) * prompt, (), SamplingParams(max_tokens=answer, seed=0))


def test_equal_requests_finish_in_the_order_in_which_they_came_even_when_blocks_run_out() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=16), BlockAllocator(9, 4))
    for _ in range(8):
        house.arrive(text_request(8, 12))
    while house.scheduler.has_work:
        house.step()
    assert house.finished == sorted(house.finished)
    assert sum(sequence.preemptions for sequence in house.sequences) > 0
    assert house.sequences[0].preemptions == 0, "the oldest never gives way"


def test_decodes_go_on_while_a_long_prompt_is_prefilled_in_chunks() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=8), BlockAllocator(64, 4))
    first = house.arrive(text_request(3, 20))
    house.step()
    second = house.arrive(text_request(50, 1))
    lengths = []
    while second.state is not SequenceState.FINISHED:
        before = first.answer_length
        step = house.step()
        assert first.answer_length == before + 1
        lengths.append(sum(chunk.length for chunk in step.prefills))
    assert lengths == [7] * 7 + [1]


def test_requests_that_wait_for_tiles_do_not_hold_up_text_behind_them() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=64, max_step_tiles=4), BlockAllocator(64, 4))
    picture = EngineRequest("r", (1, *(IMAGE,) * 4, 1), (image(4, 3),), SamplingParams(max_tokens=1, seed=0))
    for request in (picture, picture, text_request(5, 1)):
        house.arrive(request)
    assert [(chunk.sequence.number, chunk.end) for chunk in house.step().prefills] == [(0, 6), (1, 1), (2, 5)]
    assert [(chunk.sequence.number, chunk.end) for chunk in house.step().prefills] == [(1, 6)]


def test_an_image_larger_than_the_tile_budget_is_encoded_alone() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=64, max_step_tiles=2), BlockAllocator(64, 4))
    request = EngineRequest("r", (*(IMAGE,) * 8, 1), (image(4, 5), image(4, 5)), SamplingParams(max_tokens=1, seed=0))
    house.arrive(request)
    assert [[len(chunk.encode) for chunk in house.step().chunks] for _ in range(2)] == [[1], [1]]


def test_features_are_held_from_the_first_chunk_that_needs_them_to_the_last() -> None:
    house = House(EngineConfig(max_running=1, max_step_tokens=2), BlockAllocator(64, 4))
    request = EngineRequest(
        "r", (*(IMAGE,) * 4, 1, 1, *(IMAGE,) * 3, 1), (image(4, 1), image(3, 1)), SamplingParams(1, 0)
    )
    sequence = house.arrive(request)
    held = []
    while house.scheduler.has_work:
        house.step()
        held.append([slot.features is not None for slot in sequence.images])
    assert held == [[True, False], [False, False], [False, False], [False, True], [False, False]]


@pytest.mark.parametrize(
    ("tokens", "images", "message"),
    [
        ((1, IMAGE, IMAGE), (), "2 image tokens, but its 0 images take 0"),
        ((1, IMAGE, IMAGE), (image(3, 1),), "2 image tokens, but its 1 images take 3"),
        ((IMAGE, 1, IMAGE), (image(2, 1),), "2 image tokens of image 1 do not stand together"),
    ],
)
def test_images_that_do_not_match_the_prompt_are_refused_with_the_numbers(
    tokens: tuple[int, ...], images: tuple[PreparedImage, ...], message: str
) -> None:
    house = House(EngineConfig(), BlockAllocator(8, 4))
    with pytest.raises(EngineError, match=message):
        house.arrive(EngineRequest("r", tokens, images, SamplingParams(max_tokens=1, seed=0)))


def test_neighbouring_images_are_told_apart_by_their_layouts() -> None:
    house = House(EngineConfig(), BlockAllocator(8, 4))
    request = EngineRequest("r", (1, *(IMAGE,) * 5, 1), (image(2, 1), image(3, 1)), SamplingParams(1, 0))
    assert [(slot.start, slot.end) for slot in house.arrive(request).images] == [(1, 3), (3, 6)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_running": 0}, "max_running must be"),
        ({"block_size": None}, "block_size must be"),
        ({"kv_cache_bytes": -1}, "kv_cache_bytes must be"),
        ({"max_running": 64, "max_step_tokens": 32}, "max_running 64 exceeds max_step_tokens 32"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**settings)
