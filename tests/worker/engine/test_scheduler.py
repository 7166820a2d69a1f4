"""Drives the scheduler through random traffic without a model and holds its rules at every step."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.geometry import ImageLayout
from model.images import PreparedImage
from worker.engine.accounts import Accounts
from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.features import FeatureCache
from worker.engine.protocol import EngineError, EngineRequest, SamplingParams
from worker.engine.scheduler import ENDS, Chunk, Scheduler, Step
from worker.engine.sequence import Sequence, SequenceState

IMAGE = 9  # the image token id of these tests


def image(tokens: int, tiles: int, digest: str = "one") -> PreparedImage:
    layout = ImageLayout(1, 1, None, 1, tiles - 1, None, tokens)
    return PreparedImage(torch.zeros(0), layout, f"{digest}-{tokens}-{tiles}")


@dataclass(frozen=True)
class Arrival:
    """Text tokens before each image and at the end, their id by place from `words`; images as (tokens, tiles, name)."""

    before: int  # steps since the arrival before it
    text: int
    words: tuple[int, ...]
    images: tuple[tuple[int, int, str], ...]
    max_tokens: int
    leaves_after: int | None  # steps after its arrival, unless it ends earlier
    salt: str = ""

    def request(self) -> EngineRequest:
        tokens: list[int] = []
        for length, _, _ in self.images:
            tokens += self._words(self.text) + [IMAGE] * length
        tokens += self._words(max(1, self.text))
        images = tuple(image(*size) for size in self.images)
        return EngineRequest("r", tuple(tokens), images, SamplingParams(self.max_tokens, seed=0), cache_salt=self.salt)

    def _words(self, count: int) -> list[int]:
        return [self.words[index % len(self.words)] for index in range(count)]


@dataclass
class House:
    """A scheduler, and the model's and the clients' part of the work.

    `pool` stands for the KV cache: in each token's slot lies what decides its keys and values, all that stands before.
    """

    config: EngineConfig
    allocator: BlockAllocator
    features: FeatureCache = field(default_factory=lambda: FeatureCache(64))
    scheduler: Scheduler = field(init=False)
    accounts: Accounts = field(init=False)
    sequences: list[Sequence] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    pool: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config, self.allocator, self.features)
        self.accounts = Accounts(self.scheduler, self.allocator, self.features)

    def arrive(self, request: EngineRequest) -> Sequence:
        sequence = Sequence.of(
            request,
            number=len(self.sequences),
            context_length=self.allocator.tokens,
            image_token_id=IMAGE,
            allocator=self.allocator,
            weights="w",
            now=0.0,
        )
        self.sequences.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Step:
        step = self.scheduler.schedule()
        self.encode(step)
        self.check(step)
        for chunk in step.chunks:
            self.compute(chunk)
            self.scheduler.complete(chunk)
        for chunk in step.chunks:
            if chunk.draws and chunk.sequence.append(1):
                self.scheduler.finish(chunk.sequence)
                self.finished.append(chunk.sequence.number)
        self.check_blocks()
        return step

    def encode(self, step: Step) -> None:
        for encoding in step.encodings:
            features = encoding.features
            assert features.merged is None, "an image is encoded twice"
            assert len(features.encoded) == encoding.start, "a tile is left out"
            features.encoded += [torch.zeros(1)] * (encoding.end - encoding.start)
            if encoding.end == features.tiles:
                features.finish(torch.zeros(8))
        assert sum(encoding.end - encoding.start for encoding in step.encodings) <= self.config.max_step_tiles

    def compute(self, chunk: Chunk) -> None:
        contents, slots = contents_of(chunk.sequence), self.slots_of(chunk.sequence)
        for position in range(chunk.start):
            assert self.pool[slots[position]] == contents[position], "a token sees keys that are not its own"
        for position in range(chunk.start, chunk.end):
            self.pool[slots[position]] = contents[position]

    def slots_of(self, sequence: Sequence) -> list[int]:
        size = self.allocator.block_size
        return [block * size + offset for block in sequence.table.blocks for offset in range(size)]

    def check(self, step: Step) -> None:
        self.check_blocks()
        assert not step.empty, "work is there, and the step is empty"
        numbers = [chunk.sequence.number for chunk in step.chunks]
        assert len(set(numbers)) == len(numbers), "a sequence stands twice in a step"
        tokens, budget = sum(chunk.length for chunk in step.chunks), self.config.max_step_tokens
        assert tokens <= budget or (step.prefills[-1].draws and tokens <= budget + budget // ENDS)
        for chunk in step.chunks:
            sequence = chunk.sequence
            assert sequence.state is SequenceState.RUNNING
            assert chunk.start == sequence.computed
            assert chunk.start < chunk.end <= len(sequence.tokens)
            assert chunk.draws == (chunk.end == len(sequence.tokens))
            assert sequence.table.missing(chunk.end) == 0
            size = self.allocator.block_size
            written = sequence.table.blocks[chunk.start // size : -(-chunk.end // size)]
            assert all(self.allocator.references(block) == 1 for block in written), "a shared block is written to"
            for slot in sequence.images_in(chunk.start, chunk.end):
                assert slot.features is not None and slot.features.merged is not None
        assert all(chunk.length == 1 and chunk.draws for chunk in step.decodes)
        self.check_fairness(step)

    def check_fairness(self, step: Step) -> None:
        """No prefill goes ahead of one admitted earlier that could have used the room."""
        places = {sequence.number: place for place, sequence in enumerate(self.scheduler.running)}
        chunks = {places[chunk.sequence.number]: chunk for chunk in step.prefills}
        assert list(chunks) == sorted(chunks)
        for place, sequence in enumerate(self.scheduler.running):
            chunk = chunks.get(place)
            cut_by_room = not sequence.decoding and not self._waits_for_tiles(sequence, chunk)
            if cut_by_room and (chunk is None or not chunk.draws):
                assert not [later for later in chunks if later > place]

    def _waits_for_tiles(self, sequence: Sequence, chunk: Chunk | None) -> bool:
        reached = chunk.end if chunk else sequence.computed
        return any(
            slot.start <= reached < slot.end and (slot.features is None or slot.features.merged is None)
            for slot in sequence.images
        )

    def check_blocks(self) -> None:
        self.accounts.check()
        running = [sequence.number for sequence in self.scheduler.running]
        waiting = [sequence.number for sequence in self.scheduler.waiting]
        if not self.config.prefix_cache:
            assert running + waiting == sorted(running + waiting), "arrival order is lost"
            assert self.allocator.named == 0
        assert len(running) <= self.config.max_running
        for sequence in self.sequences:
            if sequence.state is not SequenceState.RUNNING:
                assert not sequence.table.blocks
                assert all(slot.features is None for slot in sequence.images)


def contents_of(sequence: Sequence) -> list[int]:
    """For each token a number that stands for it and all before it: ids, images, and the tenant."""
    before = hash(sequence.request.cache_salt)
    contents = []
    for position, token in enumerate(sequence.tokens):
        digest = next((slot.image.digest for slot in sequence.images if slot.start <= position < slot.end), None)
        before = hash((before, token, digest))
        contents.append(before)
    return contents


ARRIVALS = st.builds(
    Arrival,
    before=st.integers(0, 5),
    text=st.integers(0, 12),
    words=st.sampled_from([(1,), (1, 2), (1, 1, 1, 2), (1, 2, 1, 1, 1, 1, 3)]),
    images=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6), st.sampled_from("ab")), max_size=2).map(tuple),
    max_tokens=st.integers(1, 30),
    leaves_after=st.none() | st.integers(0, 40),
    salt=st.sampled_from(["", "", "tenant"]),
)
CONFIGS = st.builds(
    EngineConfig,
    max_running=st.integers(1, 6),
    max_step_tokens=st.integers(6, 40),
    max_step_tiles=st.integers(1, 5),
    prefix_cache=st.booleans(),
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
    assert not house.scheduler._promised
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
    assert lengths == [7] * 6 + [8]


def test_the_short_end_of_a_prompt_gets_no_step_of_its_own() -> None:
    lengths = {}
    for prompt in (80, 81, 144):
        house = House(EngineConfig(max_running=4, max_step_tokens=64), BlockAllocator(64, 4))
        sequence = house.arrive(text_request(prompt, 1))
        lengths[prompt] = []
        while sequence.state is not SequenceState.FINISHED:
            lengths[prompt].append(sum(chunk.length for chunk in house.step().prefills))
    assert lengths == {80: [80], 81: [64, 17], 144: [64, 80]}


def picture(name: str, tiles: int, question: tuple[int, ...] = (1,), tokens: int = 4) -> EngineRequest:
    return EngineRequest("r", (1, *(IMAGE,) * tokens, *question), (image(tokens, tiles, name),), SamplingParams(1, 0))


def test_requests_that_wait_for_tiles_do_not_hold_up_text_behind_them() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=64, max_step_tiles=4), BlockAllocator(64, 4))
    for request in (picture("a", 3), picture("b", 3), text_request(5, 1)):
        house.arrive(request)
    assert [(chunk.sequence.number, chunk.end) for chunk in house.step().prefills] == [(0, 6), (1, 1), (2, 5)]
    assert [(chunk.sequence.number, chunk.end) for chunk in house.step().prefills] == [(1, 6)]


def test_a_large_image_is_encoded_over_several_steps_while_answers_go_on() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=64, max_step_tiles=2), BlockAllocator(64, 4))
    house.arrive(text_request(3, 20))
    house.step()
    house.arrive(picture("large", 5))
    steps = [house.step() for _ in range(3)]
    assert [[(e.start, e.end) for e in step.encodings] for step in steps] == [[(0, 2)], [(2, 4)], [(4, 5)]]
    assert [len(step.decodes) for step in steps] == [1, 1, 1]
    assert [sum(chunk.length for chunk in step.prefills) for step in steps] == [1, 0, 5]


def test_an_image_that_several_ask_about_at_once_is_encoded_once() -> None:
    house = House(EngineConfig(max_running=8, max_step_tokens=64, prefix_cache=False), BlockAllocator(64, 4))
    for word in (2, 3, 4):
        house.arrive(picture("same", 3, question=(word, word)))
    step = house.step()
    assert [(encoding.start, encoding.end) for encoding in step.encodings] == [(0, 3)]
    assert len(step.prefills) == 3
    assert (step.images.queries, step.images.hits) == (3, 2)


def test_features_of_an_image_are_not_shared_between_tenants() -> None:
    house = House(EngineConfig(max_running=8, max_step_tokens=64), BlockAllocator(64, 4))
    for salt in ("one", "two"):
        house.arrive(replace(picture("same", 1), cache_salt=salt))
    step = house.step()
    assert len(step.encodings) == 2
    assert len(step.prefills) == 2


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


def test_a_prompt_seen_before_is_computed_from_its_first_new_block_on() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=64), BlockAllocator(64, 4))
    house.arrive(picture("a", 1, tokens=8))
    house.step()
    again = house.arrive(picture("a", 1, question=(5, 6, 7), tokens=8))
    other = house.arrive(picture("b", 1, question=(5, 6, 7), tokens=8))
    step = house.step()
    assert [(chunk.sequence.number, chunk.start) for chunk in step.prefills] == [(again.number, 8), (other.number, 0)]
    assert (step.prefix.queries, step.prefix.hits) == (24, 8)
    assert (again.cached, other.cached) == (8, 0)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=64), BlockAllocator(64, 4))
    for _ in range(2):
        house.arrive(text_request(8, 1))
        step = house.step()
    assert [(chunk.start, chunk.end) for chunk in step.prefills] == [(4, 8)]


def test_what_was_answered_is_found_again_by_the_next_turn() -> None:
    house = House(EngineConfig(max_running=4, max_step_tokens=64), BlockAllocator(64, 4))
    first = house.arrive(text_request(6, 7))
    while house.scheduler.has_work:
        house.step()
    turn = EngineRequest("r", (*first.tokens, 5, 5), (), SamplingParams(1, 0))
    assert house.arrive(turn) and house.step().prefills[0].start == 12


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    house = House(EngineConfig(max_running=8, max_step_tokens=512), BlockAllocator(128, 4))
    for _ in range(4):
        house.arrive(text_request(41, 3))
    computed = []
    while house.scheduler.has_work:
        computed.append(sum(chunk.length for chunk in house.step().prefills))
    assert computed[:2] == [41, 3]
    assert sorted(house.finished) == [0, 1, 2, 3]


def test_a_short_common_beginning_is_not_waited_for() -> None:
    house = House(EngineConfig(max_running=8, max_step_tokens=512), BlockAllocator(128, 4))
    for word in (2, 3):
        house.arrive(EngineRequest("r", ((1,) * 8 + (word,) * 30), (), SamplingParams(1, 0)))
    assert len(house.step().prefills) == 2


def test_who_waits_for_anothers_blocks_goes_on_when_that_one_leaves() -> None:
    house = House(EngineConfig(max_running=8, max_step_tokens=8), BlockAllocator(128, 4))
    first, second = house.arrive(text_request(40, 1)), house.arrive(text_request(40, 1))
    house.step()
    assert second.state is SequenceState.WAITING
    house.scheduler.finish(first)
    assert [(chunk.sequence.number, chunk.start) for chunk in house.step().prefills] == [(second.number, 8)]


def test_blocks_of_a_failed_request_are_not_found_again() -> None:
    house = House(EngineConfig(max_running=8, max_step_tokens=64), BlockAllocator(128, 4))
    first = house.arrive(text_request(40, 5))
    house.step()
    house.scheduler.fail(first)
    house.arrive(text_request(40, 1))
    assert house.step().prefills[0].start == 0


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
