"""A worker tells where a request's time went, in W3C's Server-Timing."""

from __future__ import annotations

from typing import Any

from server.protocol.call_headers import TIMINGS, read_timings, write_timings
from worker.engine.config import EngineConfig
from worker.engine.native import NativeEngine
from worker.engine.protocol import EngineRequest, SamplingParams
from worker.metrics import WorkerMetrics

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


async def test_whole_answers_tell_of_queue_prefill_and_decode(random_worker: Any) -> None:
    answer = await random_worker.chat(max_tokens=8, ignore_eos=True)
    told = read_timings(answer.headers[TIMINGS])
    assert set(told) == {"queue", "prefill", "decode"}
    assert told["prefill"] > 0
    assert told["decode"] > 0
    assert sum(told.values()) <= answer.elapsed.total_seconds() + 0.001


async def test_streams_tell_of_what_came_before_the_first_token(random_worker: Any) -> None:
    async with random_worker.client.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as answer:
        told = read_timings(answer.headers[TIMINGS])
        await answer.aread()
    assert set(told) == {"queue", "prefill"}
    assert told["prefill"] > 0


async def test_running_totals_are_those_of_all_steps(loaded: Any) -> None:
    metrics = WorkerMetrics("tiny", "v1")
    engine = NativeEngine(loaded.model, EngineConfig(kv_cache_bytes=2**23, threads=1, max_running=8), metrics)
    await engine.start()
    for number in range(2):
        request = EngineRequest(str(number), (5, 6, 7), (), SamplingParams(max_tokens=5, seed=1))
        async for _ in engine.generate(request):
            pass
    await engine.stop()
    totals = metrics.totals
    assert (totals.prompt_tokens, totals.answer_tokens, totals.prefix_queries) == (6, 10, 6)


def test_timings_are_read_as_they_are_written_and_nonsense_is_passed_over() -> None:
    told = {"queue": 0.0123, "prefill": 1.5, "decode": 0.0}
    assert read_timings(write_timings(told)) == told
    assert read_timings('db;dur=53, queue;dur=x, prefill;desc="a", decode;dur=5') == {"decode": 0.005}
    assert read_timings("queue;dur=1e9") == {}
    assert read_timings("queue;dur=" + "9" * 400) == {}
