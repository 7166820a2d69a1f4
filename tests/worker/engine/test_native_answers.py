"""The engine's answers are those of the plain way, however the work was cut up and whatever ran beside it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from model.llava import LlavaModel

if TYPE_CHECKING:
    from tests.worker.engine.conftest import Recorder, Tiny

TEXT = (11, 12, 13, 14, 15, 16, 17)


@pytest.mark.parametrize("sizes", [(), ((90, 60),), ((40, 130), (56, 56))], ids=["text", "one image", "two images"])
async def test_greedy_tokens_are_those_of_full_recomputation(tiny: Tiny, sizes: tuple[tuple[int, int], ...]) -> None:
    pictures = [tiny.picture(*size, seed=index) for index, size in enumerate(sizes)]
    request = tiny.request(TEXT, pictures, max_tokens=24)
    async with tiny.engine() as engine:
        assert await tiny.answer(engine, request) == tiny.plain_answer(request)


@pytest.mark.parametrize("kind", ["tiny", "tiny_with_window"])
async def test_every_size_of_prefill_chunk_gives_the_same_answer(kind: str, request: pytest.FixtureRequest) -> None:
    tiny: Tiny = request.getfixturevalue(kind)
    asked = tiny.request(TEXT[:2], [tiny.picture(30, 30), tiny.picture(20, 20, seed=1)], max_tokens=2)
    expected = tiny.plain_answer(asked)
    for size in range(1, len(asked.token_ids) + 2):
        async with tiny.engine(max_running=1, max_step_tokens=size, block_size=size % 7 + 1) as engine:
            assert await tiny.answer(engine, asked) == expected, f"chunks of {size}"


async def test_a_sliding_window_is_honoured_in_decodes(tiny: Tiny, tiny_with_window: Tiny) -> None:
    request = tiny_with_window.request(TEXT, max_tokens=30)
    expected = tiny_with_window.plain_answer(request)
    assert expected != tiny.plain_answer(request)
    async with tiny_with_window.engine() as engine:
        assert await tiny.answer(engine, request) == expected


async def test_32_concurrent_requests_each_get_their_own_answer(tiny: Tiny, recorder: Recorder) -> None:
    chance = random.Random(0)
    requests = []
    for index in range(32):
        text = [chance.randrange(256) for _ in range(chance.randrange(1, 40))]
        pictures = [tiny.picture(90 - index, 60 + index, seed=index)] if index % 3 == 0 else []
        sampling = {"temperature": 1.0, "top_p": 0.9, "seed": index} if index % 2 else {}
        penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.5} if index % 5 == 0 else {}
        requests.append(tiny.request(text, pictures, max_tokens=chance.randrange(1, 20), **sampling, **penalties))
    async with tiny.engine(recorder, max_step_tokens=64, max_running=12) as engine:

        async def late(index: int) -> list[int | None]:
            await asyncio.sleep(index * 0.002)
            return await tiny.answer(engine, requests[index])

        answers = await asyncio.gather(*map(late, range(len(requests))))
        assert engine.load().kv_usage == 0
    assert answers == [tiny.plain_answer(request) for request in requests]
    assert max(step.running for step in recorder.steps) > 1
    assert any(step.decode_tokens and step.prefill_tokens for step in recorder.steps), "no step was mixed"


async def test_preemption_changes_no_answer(tiny: Tiny, recorder: Recorder) -> None:
    requests = [
        tiny.request([30 + index, 31, 32], max_tokens=30, temperature=index % 2, seed=index) for index in range(5)
    ]
    requests.append(tiny.request(TEXT, [tiny.picture(20, 20)], max_tokens=12))
    blocks = {"block_size": 4, "kv_cache_bytes": 17 * tiny.block_bytes}
    async with tiny.engine(recorder, max_step_tokens=16, max_running=6, **blocks) as engine:
        answers = await asyncio.gather(*(tiny.answer(engine, request) for request in requests))
    assert recorder.preemptions > 0
    assert answers == [tiny.plain_answer(request) for request in requests]


@pytest.mark.parametrize(("kept", "encoded"), [(0, 2), (2**20, 1)])
async def test_an_image_is_encoded_anew_after_a_preemption_unless_it_was_kept(
    tiny: Tiny, recorder: Recorder, kept: int, encoded: int
) -> None:
    first = tiny.request((1, 2, 3), max_tokens=40)
    second = tiny.request(TEXT, [tiny.picture(20, 20)], max_tokens=20)
    blocks = {"block_size": 4, "kv_cache_bytes": 20 * tiny.block_bytes}
    async with tiny.engine(recorder, **blocks, feature_cache_bytes=kept) as engine:
        answers = await asyncio.gather(*(tiny.answer(engine, request) for request in (first, second)))
    assert answers == [tiny.plain_answer(first), tiny.plain_answer(second)]
    assert recorder.preemptions == 1
    assert sum(step.encoded_images for step in recorder.steps) == encoded


async def test_a_picture_asked_about_again_is_neither_encoded_nor_prefilled_anew(
    tiny: Tiny, recorder: Recorder
) -> None:
    requests = [tiny.request(question, [tiny.picture(90, 60)]) for question in ((5, 6), (7, 8, 9), (5, 6, 10))]
    expected = [tiny.plain_answer(request) for request in requests]
    async with tiny.engine(recorder) as engine:
        outputs = [[output async for output in engine.generate(request)] for request in requests]
    assert [[output.token_id for output in answer] for answer in outputs] == expected
    assert sum(step.encoded_images for step in recorder.steps) == 1
    image_tokens = requests[0].images[0].layout.tokens
    cached = [answer[0].cached_tokens for answer in outputs]
    assert cached[0] == 0
    assert all(image_tokens // 16 * 16 <= tokens < len(requests[1].token_ids) for tokens in cached[1:])
    assert sum(step.prefix_hits for step in recorder.steps) == sum(cached)
    assert [report.cached_tokens for report in recorder.requests] == cached


async def test_a_conversation_goes_on_from_the_answer_before(tiny: Tiny) -> None:
    first = tiny.request((5, 6), [tiny.picture(90, 60)], max_tokens=40)
    async with tiny.engine() as engine:
        answer = [token for token in await tiny.answer(engine, first) if token is not None]
        turn = replace(first, token_ids=(*first.token_ids, *answer, 30, 31))
        outputs = [output async for output in engine.generate(turn)]
    assert [output.token_id for output in outputs] == tiny.plain_answer(turn)
    assert outputs[0].cached_tokens >= len(first.token_ids) + len(answer) - 16


async def test_without_the_prefix_cache_all_is_computed_anew(tiny: Tiny, recorder: Recorder) -> None:
    request = tiny.request((5, 6), [tiny.picture(90, 60)])
    async with tiny.engine(recorder, prefix_cache=False) as engine:
        answers = [await tiny.answer(engine, request) for _ in range(2)]
    assert answers == [tiny.plain_answer(request)] * 2
    assert sum(step.prefill_tokens for step in recorder.steps) == 2 * len(request.token_ids)
    assert sum(step.encoded_images for step in recorder.steps) == 1


async def test_tenants_share_nothing(tiny: Tiny, recorder: Recorder) -> None:
    request = tiny.request((5, 6), [tiny.picture(90, 60)])
    async with tiny.engine(recorder) as engine:
        cached = []
        for salt in ("one", "two", "one"):
            outputs = [output async for output in engine.generate(replace(request, cache_salt=salt))]
            cached.append(outputs[0].cached_tokens > 0)
    assert cached == [False, False, True]
    assert sum(step.encoded_images for step in recorder.steps) == 2


async def test_a_seeded_answer_is_the_same_alone_and_in_company(tiny: Tiny) -> None:
    asked = tiny.request(TEXT, max_tokens=20, temperature=1.5, top_k=50, seed=77)
    async with tiny.engine() as engine:
        alone = await tiny.answer(engine, asked)
        company = [tiny.request((9, index), max_tokens=30, temperature=1.0, seed=index) for index in range(10)]
        [beside, *_] = await asyncio.gather(*(tiny.answer(engine, request) for request in (asked, *company)))
    assert beside == alone
    other = tiny.request(TEXT, max_tokens=20, temperature=1.5, top_k=50, seed=78)
    assert tiny.plain_answer(other) != alone


async def test_the_answer_ends_at_a_stop_token_at_max_tokens_or_at_the_context(tiny: Tiny) -> None:
    free = tiny.plain_answer(tiny.request(TEXT, max_tokens=12))
    stop = free[4]
    place = free.index(stop)
    async with tiny.engine(context_length=16) as engine:
        stopped = [o async for o in engine.generate(tiny.request(TEXT, stop_token_ids=frozenset({stop})))]
        short = [o async for o in engine.generate(tiny.request(TEXT, max_tokens=3))]
        cut = [o async for o in engine.generate(tiny.request(TEXT, max_tokens=1000))]
        held = [o async for o in engine.generate(tiny.request(TEXT, stop_token_ids=frozenset({stop}), min_tokens=7))]
    assert [o.token_id for o in stopped] == free[: place + 1]
    assert (stopped[-1].finish_reason, stopped[-1].stop_token) == ("stop", True)
    assert all(o.finish_reason is None and not o.stop_token for o in stopped[:-1])
    assert ([o.token_id for o in short], short[-1].finish_reason, short[-1].stop_token) == (free[:3], "length", False)
    assert (len(cut), cut[-1].finish_reason) == (8, "length"), "a prompt of 8 in a context of 16"
    assert stop not in [o.token_id for o in held[:7]]


async def test_logprobs_come_with_every_token(tiny: Tiny) -> None:
    async with tiny.engine() as engine:
        outputs = [o async for o in engine.generate(tiny.request(TEXT, logprobs=2, max_tokens=5))]
    for output in outputs:
        assert output.logprobs is not None
        assert output.logprobs.top[0][0] == output.token_id
        assert output.logprobs.top[0][1] == pytest.approx(output.logprobs.logprob)
        assert len(output.logprobs.top) == 2


async def test_bfloat16_runs_by_the_same_code(tiny: Tiny) -> None:
    model = LlavaModel(tiny.model.config)
    model.load_state_dict(tiny.model.state_dict())
    half = type(tiny)(model.to(torch.bfloat16).eval(), tiny.preprocessor)
    requests = [half.request(TEXT, [half.picture(90, 60)], max_tokens=6), half.request(TEXT, max_tokens=6)]
    async with half.engine(max_step_tokens=16, max_running=4) as engine:
        answers = await asyncio.gather(*(half.answer(engine, request) for request in requests))
    assert [len(answer) for answer in answers] == [6, 6]
