"""Joining, leaving, overload and failure: what one request does never harms another, and nothing stays held."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.llava import LlavaModel
from worker.engine.config import EngineConfig
from worker.engine.native import NativeEngine
from worker.engine.observer import RequestReport, StepReport
from worker.engine.protocol import EngineError, EngineFailure, EngineOverloaded, EngineRequest

if TYPE_CHECKING:
    from tests.worker.engine.conftest import Recorder, Tiny

TEXT = (11, 12, 13)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what the engine's thread will do; the limit is for a test that fails."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def free(engine: NativeEngine) -> bool:
    load = engine.load()
    return (load.running, load.waiting, load.kv_usage, load.outstanding_tokens) == (0, 0, 0.0, 0)


class Gate:
    """An observer that holds the engine after each step until it is let through."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self.forgotten = False  # the test never let it through

    def step_finished(self, report: StepReport) -> None:
        self.forgotten |= not self._steps.acquire(timeout=20)

    def request_finished(self, report: RequestReport) -> None:
        pass

    def let_through(self, steps: int = 1) -> None:
        self._steps.release(steps)

    def open(self) -> None:
        self._steps.release(1_000_000)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    assert not gate.forgotten


async def start(engine: NativeEngine, request: EngineRequest) -> asyncio.Task[list[int | None]]:
    async def read() -> list[int | None]:
        return [output.token_id async for output in engine.generate(request)]

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    return task


async def test_closing_the_iterator_while_decoding_frees_the_blocks(tiny: Tiny, recorder: Recorder) -> None:
    async with tiny.engine(recorder) as engine:
        async with aclosing(engine.generate(tiny.request(TEXT, max_tokens=1500))) as outputs:
            async for _ in outputs:
                break
        await until(lambda: free(engine))
    assert [report.outcome for report in recorder.requests] == ["abort"]
    assert recorder.requests[0].answer_tokens < 1500


async def test_a_cancelled_reader_frees_the_blocks_while_prefilling(tiny: Tiny, recorder: Recorder) -> None:
    async with tiny.engine(recorder, max_running=1, max_step_tokens=1) as engine:
        task = await start(engine, tiny.request((5,) * 700, [tiny.picture(60, 60)]))
        await until(lambda: engine.load().kv_usage > 0)
        task.cancel()
        await until(lambda: free(engine))
    assert [(report.outcome, report.answer_tokens) for report in recorder.requests] == [("abort", 0)]


async def test_a_request_that_leaves_the_queue_never_runs(tiny: Tiny, gate: Gate) -> None:
    async with tiny.engine(gate, max_running=1) as engine:
        first = await start(engine, tiny.request(TEXT, max_tokens=5))
        await until(lambda: engine.load().running == 1)
        second = await start(engine, tiny.request(TEXT, max_tokens=5))
        third = await start(engine, tiny.request(TEXT, max_tokens=5))
        assert engine.load().waiting == 2
        second.cancel()
        gate.open()
        assert len(await first) == len(await third) == 5
        await until(lambda: free(engine))


async def test_blocks_are_free_within_one_step_of_the_end_of_the_reader(tiny: Tiny, gate: Gate) -> None:
    async with tiny.engine(gate) as engine:
        task = await start(engine, tiny.request(TEXT, max_tokens=1500))
        await until(lambda: engine.load().running == 1)
        other = await start(engine, tiny.request(TEXT, max_tokens=1500))
        gate.let_through()
        await until(lambda: engine.load().running == 2)
        held = engine.load().kv_usage
        task.cancel()
        await asyncio.wait([task])
        gate.let_through()
        await until(lambda: engine.load().running == 1)
        assert engine.load().kv_usage == held / 2
        other.cancel()
        gate.open()
        await until(lambda: free(engine))


async def test_the_full_queue_turns_requests_away_with_a_time_to_come_back(tiny: Tiny, gate: Gate) -> None:
    async with tiny.engine(gate, max_running=1, max_waiting=2) as engine:
        tasks = [await start(engine, tiny.request(TEXT, max_tokens=4))]
        await until(lambda: engine.load().running == 1)
        tasks += [await start(engine, tiny.request(TEXT, max_tokens=4)) for _ in range(2)]
        with pytest.raises(EngineOverloaded, match="2 requests are waiting already") as overload:
            await anext(engine.generate(tiny.request(TEXT)))
        assert 1 <= overload.value.retry_after <= 60
        gate.open()
        assert [len(answer) for answer in await asyncio.gather(*tasks)] == [4, 4, 4]
        assert len(await tiny.answer(engine, tiny.request(TEXT, max_tokens=4))) == 4


async def test_load_counts_what_waits_and_what_runs(tiny: Tiny, gate: Gate) -> None:
    async with tiny.engine(gate, max_running=1) as engine:
        assert engine.load().kv_tokens == tiny.model.config.text.context_length, "one at a time can use no more"
        first = await start(engine, tiny.request(TEXT, max_tokens=10))
        await until(lambda: engine.load().running == 1)
        second = await start(engine, tiny.request(TEXT, max_tokens=10))
        load = engine.load()
        # The first has drawn one of ten, and that one is still to be computed; the second has four of prompt before it.
        assert (load.running, load.waiting, load.outstanding_tokens) == (1, 1, 9 + 1 + 4 + 10)
        assert load.kv_usage > 0
        gate.open()
        await asyncio.gather(first, second)


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": ()}, "the prompt is empty"),
    ({"token_ids": (1,) * 64}, "64 tokens and the answer needs at least one, but the context length is 64"),
    ({"token_ids": (1, 320)}, "token id 320 lies outside the vocabulary of 320"),
    ({"token_ids": (-1, 3)}, "token id -1 lies outside"),
    ({"token_ids": (1, 259, 3)}, "1 image tokens, but its 0 images take 0"),
    ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ({"seed": 2**64}, "seed must be"),
    ({"temperature": -0.1}, "temperature must be"),
    ({"temperature": float("nan")}, "temperature must be"),
    ({"top_p": 1.1}, "top_p must lie between 0 and 1"),
    ({"min_p": -1.0}, "min_p must lie between 0 and 1"),
    ({"top_k": -1}, "top_k must be at least 0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be"),
    ({"frequency_penalty": float("inf")}, "frequency_penalty must be"),
    ({"logprobs": 321}, "logprobs must lie between 0"),
    ({"logit_bias": {400: 1.0}}, "logit_bias: token id 400"),
    ({"logit_bias": {4: float("nan")}}, "logit_bias of token 4"),
    ({"stop_token_ids": frozenset({-2})}, "stop_token_ids: token id -2"),
]


async def test_what_cannot_run_is_refused_at_once_with_the_reason(tiny: Tiny) -> None:
    async with tiny.engine(context_length=64) as engine:
        for changes, message in BAD_REQUESTS:
            request = tiny.request(TEXT)
            if "token_ids" in changes:
                request = dataclasses.replace(request, **changes)
            else:
                request = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, **changes))
            with pytest.raises(EngineError, match=message) as refusal:
                await anext(engine.generate(request))
            assert not isinstance(refusal.value, EngineFailure)
        assert free(engine)


async def test_a_prompt_larger_than_the_whole_cache_is_refused_with_the_numbers(tiny: Tiny) -> None:
    async with tiny.engine(block_size=4, kv_cache_bytes=5 * tiny.block_bytes) as engine:
        assert engine.context_length == 20
        with pytest.raises(EngineError, match=r"prompt has 20 tokens .* KV cache holds 20 tokens"):
            await anext(engine.generate(tiny.request((1,) * 19)))
        assert len(await tiny.answer(engine, tiny.request((1,) * 18, max_tokens=9))) == 1


async def test_an_image_whose_pixels_do_not_fit_the_tower_is_refused(tiny: Tiny) -> None:
    picture = tiny.picture(30, 30)
    wrong = dataclasses.replace(picture, pixels=picture.pixels[:, :, :-1])
    async with tiny.engine() as engine:
        with pytest.raises(EngineError, match="image 1 has pixels of shape"):
            await anext(engine.generate(tiny.request(TEXT, [wrong])))


def test_a_cache_too_small_for_one_block_is_refused_by_name(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="raise kv_cache_bytes"):
        NativeEngine(tiny.model, EngineConfig(kv_cache_bytes=100))


@contextmanager
def failing(module: torch.nn.Module, error: BaseException, when: Callable[..., bool]) -> Iterator[None]:
    def hook(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if when(*inputs):
            raise error

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


async def test_a_failed_step_fails_its_requests_alone_and_tells_nothing_of_the_inside(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    async with tiny.engine() as engine:
        expected = await tiny.answer(engine, tiny.request(TEXT))
        with (
            failing(tiny.model.language_model, RuntimeError("secret at 0x7f00"), lambda *_: True),
            pytest.raises(EngineFailure, match="the engine failed") as failure,
        ):
            await tiny.answer(engine, tiny.request(TEXT))
        assert "secret" not in str(failure.value)
        assert "secret at 0x7f00" in caplog.text
        assert free(engine) and engine.healthy
        assert await tiny.answer(engine, tiny.request(TEXT)) == expected


async def test_running_out_of_memory_is_said_in_plain_words(tiny: Tiny) -> None:
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    async with tiny.engine() as engine:
        with (
            failing(tiny.model.language_model, error, lambda *_: True),
            pytest.raises(EngineFailure, match="ran out of memory"),
        ):
            await tiny.answer(engine, tiny.request(TEXT))


async def test_an_image_that_fails_ends_its_own_request_and_no_other(tiny: Tiny) -> None:
    bad, good = tiny.picture(30, 30, seed=1), tiny.picture(30, 30, seed=2)
    bad = dataclasses.replace(bad, pixels=torch.full_like(bad.pixels, 77.0))
    async with tiny.engine(max_step_tiles=100) as engine:
        with failing(tiny.model.vision_tower, RuntimeError("inside"), lambda pixels: float(pixels.max()) == 77.0):
            requests = [tiny.request(TEXT, [picture]) for picture in (good, bad, good)]
            results = await asyncio.gather(
                *(tiny.answer(engine, request) for request in requests), return_exceptions=True
            )
        assert isinstance(results[1], EngineFailure)
        assert "could not be encoded" in str(results[1])
        assert results[0] == results[2] == tiny.plain_answer(requests[0])
        assert free(engine)


async def test_logits_that_are_no_numbers_fail_one_request_and_poison_no_block(tiny: Tiny) -> None:
    model = LlavaModel(tiny.model.config)
    model.load_state_dict(tiny.model.state_dict())
    with torch.no_grad():
        model.language_model.model.embed_tokens.weight[200] = torch.nan
    poisoned = type(tiny)(model.eval(), tiny.preprocessor)
    never = {"logit_bias": {200: -1000.0}}
    async with poisoned.engine(block_size=4, kv_cache_bytes=40 * tiny.block_bytes) as engine:
        requests = [tiny.request((index, 50, *([200] * (index == 2))), **never) for index in range(5)]
        results = await asyncio.gather(*(tiny.answer(engine, request) for request in requests), return_exceptions=True)
        assert isinstance(results[2], EngineFailure)
        assert "not finite" in str(results[2])
        whole = tiny.request((9,) * 120, max_tokens=30, **never)  # takes every block, the spoilt ones among them
        assert await tiny.answer(engine, whole) == tiny.plain_answer(whole)
    for index in (0, 1, 3, 4):
        assert results[index] == tiny.plain_answer(requests[index])


async def test_when_the_thread_dies_all_requests_end_and_the_engine_says_so(tiny: Tiny) -> None:
    async with tiny.engine() as engine:
        assert engine.healthy
        with failing(tiny.model.language_model, SystemExit("killed"), lambda embeddings, *_: len(embeddings) == 3):
            tasks = [await start(engine, tiny.request((7,) * 30, max_tokens=1000)) for _ in range(2)]
            await until(lambda: engine.load().running == 2)
            tasks.append(await start(engine, tiny.request((), max_tokens=1000)))
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [EngineFailure] * 3
        assert not engine.healthy
        with pytest.raises(EngineFailure, match="serves no more requests"):
            await anext(engine.generate(tiny.request(TEXT)))


async def test_stopping_ends_what_runs_and_what_waits_with_abort(tiny: Tiny) -> None:
    engine = NativeEngine(tiny.model, EngineConfig(max_running=1, kv_cache_bytes=2**22, threads=1))
    await engine.start()

    async def reason() -> str | None:
        last = None
        async for output in engine.generate(tiny.request(TEXT, max_tokens=1900)):
            last = output.finish_reason
        return last

    readers = [asyncio.create_task(reason()) for _ in range(3)]
    await until(lambda: engine.load().running == 1)
    await engine.stop()
    assert await asyncio.gather(*readers) == ["abort"] * 3
    assert free(engine) and not engine.healthy
    with pytest.raises(EngineFailure, match="not running"):
        await anext(engine.generate(tiny.request(TEXT)))


async def test_stopping_does_not_wait_for_a_step_that_takes_long(
    tiny: Tiny, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.native.STOP_SECONDS", 0.05)
    async with tiny.engine(gate, max_running=1) as engine:
        readers = [await start(engine, tiny.request(TEXT, max_tokens=1900)) for _ in range(2)]
        await until(lambda: engine.load().running == 1)
        await engine.stop()
        assert [answer[-1] for answer in await asyncio.gather(*readers)] == [None, None]
        gate.open()
        await until(lambda: not engine.healthy)


async def test_a_model_that_cannot_compute_is_told_at_the_start(tiny: Tiny, recorder: Recorder) -> None:
    engine = NativeEngine(tiny.model, EngineConfig(kv_cache_bytes=2**22, threads=1), recorder)
    with (
        failing(tiny.model.language_model, RuntimeError("no such instruction"), lambda *_: True),
        pytest.raises(RuntimeError, match="no such instruction"),
    ):
        await engine.start()
    await engine.start()
    assert engine.healthy and free(engine)
    assert not recorder.steps, "warming up is nobody's request"
    await engine.stop()


async def test_before_its_start_the_engine_takes_nothing(tiny: Tiny) -> None:
    engine = NativeEngine(tiny.model, EngineConfig(kv_cache_bytes=2**22))
    with pytest.raises(EngineFailure, match="not running"):
        await anext(engine.generate(tiny.request(TEXT)))
    await engine.stop()


async def test_the_event_loop_is_called_once_a_step_however_many_read(
    tiny: Tiny, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tiny.engine(recorder) as engine:
        loop = asyncio.get_running_loop()
        calls = []
        real = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), real(*args))[1])
        await asyncio.gather(*(tiny.answer(engine, tiny.request(TEXT, max_tokens=20)) for _ in range(8)))
        monkeypatch.undo()
    assert sum(step.drawn_tokens for step in recorder.steps) == 160
    assert len(calls) <= len(recorder.steps) < 160


async def test_reports_add_up(tiny: Tiny, recorder: Recorder) -> None:
    requests = [tiny.request((index,) * 9, [tiny.picture(60, 60)], max_tokens=6) for index in range(4)]
    async with tiny.engine(recorder) as engine:
        await asyncio.gather(*(tiny.answer(engine, request) for request in requests))
    prompt = len(requests[0].token_ids)
    hits = sum(step.prefix_hits for step in recorder.steps)
    assert sum(step.prefix_queries for step in recorder.steps) == 4 * prompt
    assert sum(step.prefill_tokens for step in recorder.steps) == 4 * prompt - hits
    assert sum(step.decode_tokens for step in recorder.steps) == 4 * 5
    assert sum(step.drawn_tokens for step in recorder.steps) == 4 * 6
    assert sum(step.image_queries for step in recorder.steps) == 4
    assert sum(step.encoded_images for step in recorder.steps) == 1
    assert sum(step.image_hits for step in recorder.steps) == 3
    assert sum(len(step.inter_token_seconds) for step in recorder.steps) == 4 * 5
    assert len(recorder.requests) == 4
    assert sum(report.cached_tokens for report in recorder.requests) == hits
    for report in recorder.requests:
        assert (report.outcome, report.prompt_tokens, report.answer_tokens) == ("length", prompt, 6)
        assert report.queue_seconds is not None and report.prefill_seconds is not None
        assert report.first_token_seconds == pytest.approx(report.queue_seconds + report.prefill_seconds)
        assert report.decode_seconds is not None and report.seconds_per_token == report.decode_seconds / 5
        assert report.inference_seconds == pytest.approx(report.prefill_seconds + report.decode_seconds)
        assert report.total_seconds >= report.queue_seconds + report.inference_seconds


async def test_an_observer_that_raises_costs_no_request(tiny: Tiny) -> None:
    class Broken:
        def step_finished(self, report: StepReport) -> None:
            raise RuntimeError("broken")

        def request_finished(self, report: RequestReport) -> None:
            raise RuntimeError("broken")

    async with tiny.engine(Broken()) as engine:
        assert len(await tiny.answer(engine, tiny.request(TEXT, max_tokens=4))) == 4
        assert engine.healthy
