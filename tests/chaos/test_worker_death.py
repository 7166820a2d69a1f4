"""Processes that die, stop or come back under load: what clients notice of it, and that the rest recovers by itself."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
import redis

from server.state import EmbeddedValkey

pytestmark = pytest.mark.timeout(600)  # several processes start anew, perhaps on a busy machine

ENDLESS = 1800  # tokens: many times what a request needs until something happens to its worker
LONGER = 900  # tokens: long, and yet worth asking for once more
LONG = 300  # tokens: a request that is still under way when its worker is killed a moment after it was seen there


async def begun(*outcomes: Any) -> None:
    """Waits until every one of these streams has brought its first piece."""
    async with asyncio.timeout(300):
        while not all(outcome.begun for outcome in outcomes):
            await asyncio.sleep(0.01)


async def spread(caller: Any, system: Any, among: set[str]) -> None:
    """Sees these workers, and no others, take new requests. Routing goes by loads that are a heartbeat old."""
    seen: set[str] = set()
    numbers = itertools.count()  # other pictures each time: the same ones would go where they went before
    async with asyncio.timeout(300):
        while seen != among:
            some = itertools.islice(numbers, 6)
            outcomes = await asyncio.gather(*(caller.ask(number, stream=False, tokens=4) for number in some))
            recent = system.recent()
            seen |= {recent[outcome.id]["worker"] for outcome in outcomes}
            assert seen <= among


async def start_streams(caller: Any, count: int, tokens: int = ENDLESS) -> tuple[list[Any], list[asyncio.Task[Any]]]:
    """So many streams, all of them in the middle of their answer."""
    outcomes = [caller.outcome() for _ in range(count)]
    tasks = [
        asyncio.create_task(caller.ask(number, stream=True, tokens=tokens, outcome=outcome))
        for number, outcome in enumerate(outcomes)
    ]
    await begun(*outcomes)
    return outcomes, tasks


async def test_when_a_worker_is_killed_under_load_no_client_notices(
    caller: Any, system: Any, eventually: Callable[..., Any]
) -> None:
    long, streaming = await start_streams(caller, 4, LONGER)
    asked = [(number, number % 2 == 0) for number in range(16)]
    asking = [asyncio.create_task(caller.ask(number, stream=stream, tokens=LONG)) for number, stream in asked]

    def many_at_east() -> bool:
        return system.members()["east"]["in_flight"] >= 6

    await asyncio.to_thread(eventually, many_at_east, "east has requests in hand")
    system.workers["east"].kill()
    outcomes = await asyncio.gather(*asking)  # raises for every request that failed before its answer began
    await asyncio.gather(*streaming)

    recent = system.recent()
    assert not [outcome.error for outcome in (*long, *outcomes) if outcome.error]
    assert sum(recent[outcome.id]["carried_over"] for outcome in long) >= 1
    assert sum(recent[outcome.id]["retries"] + recent[outcome.id]["carried_over"] for outcome in outcomes) >= 1
    assert {recent[outcome.id]["ended"] for outcome in (*long, *outcomes)} == {"complete"}

    # Carried on or repeated at the other worker, the answers are the ones that these questions have.
    questions = [(number, LONGER) for number in range(4)] + [(number, LONG) for number, _ in asked]
    again = await asyncio.gather(*(caller.ask(number, stream=False, tokens=tokens) for number, tokens in questions))
    for outcome, same in zip((*long, *outcomes), again, strict=True):
        assert same.text == outcome.text, recent[outcome.id]

    await asyncio.to_thread(eventually, lambda: "east" not in system.members(), "the registry forgets east")
    await spread(caller, system, {"west"})

    east = system.workers["east"]
    east.start(east.port)
    await asyncio.to_thread(east.wait_ready)
    await asyncio.to_thread(system.wait_whole)
    await spread(caller, system, {"east", "west"})


async def test_a_worker_that_comes_back_under_another_port_before_it_was_forgotten_is_found_there(
    caller: Any, system: Any
) -> None:
    west = system.workers["west"]
    left = west.url
    west.kill()
    west.start()
    outcomes = await asyncio.gather(*(caller.ask(number, stream=number % 2 == 0) for number in range(6)))
    assert not any(outcome.error for outcome in outcomes)
    await asyncio.to_thread(west.wait_ready)
    await asyncio.to_thread(system.wait_whole)
    assert west.url != left
    await spread(caller, system, {"east", "west"})


@pytest.mark.parametrize("stream", [True, False])
async def test_clients_that_leave_free_what_their_requests_held(
    caller: Any, system: Any, eventually: Callable[..., Any], stream: bool
) -> None:
    outcomes = [caller.outcome() for _ in range(12)]  # more than the workers decode at once: some still wait
    tasks = [
        asyncio.create_task(caller.ask(number, stream=stream, tokens=ENDLESS, outcome=outcome))
        for number, outcome in enumerate(outcomes)
    ]

    def count(gauge: str) -> float:
        return sum(system.gauge(name, gauge) for name in system.workers)

    def busy() -> bool:
        """However they were spread: some run, some wait."""
        return count("num_requests_running") + count("num_requests_waiting") == 12 and count("num_requests_waiting") > 0

    await asyncio.to_thread(eventually, busy, "the workers have more than they can decode at once")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(eventually, system.idle, "nothing runs, waits or holds KV blocks any more")

    def told() -> bool:
        recent = system.recent()
        return all(outcome.id in recent for outcome in outcomes)

    await asyncio.to_thread(eventually, told, "the controller has seen them leave")
    assert {system.recent()[outcome.id]["ended"] for outcome in outcomes} == {"client_left"}
    assert {worker["in_flight"] for worker in system.members().values()} == {0}
    await spread(caller, system, {"east", "west"})


async def test_requests_at_a_worker_that_hangs_are_answered_elsewhere(
    caller: Any, system: Any, eventually: Callable[..., Any]
) -> None:
    long, streaming = await start_streams(caller, 6, LONGER)
    system.workers["east"].signal(signal.SIGSTOP)  # its connections stay open, and say nothing
    outcomes = await asyncio.gather(*(caller.ask(number, stream=number % 2 == 0) for number in range(12)))
    assert not any(outcome.error for outcome in outcomes)
    recent = system.recent()
    assert {recent[outcome.id]["worker"] for outcome in outcomes} == {"west"}
    assert "east" not in system.members()
    await asyncio.gather(*streaming)
    recent = system.recent()
    assert not any(outcome.error for outcome in long)
    carried = [recent[outcome.id] for outcome in long if recent[outcome.id]["carried_over"]]
    assert {record["worker"] for record in carried} == {"west"}  # others may have ended before the signal

    system.workers["east"].signal(signal.SIGCONT)
    await asyncio.to_thread(system.wait_whole)
    await asyncio.to_thread(eventually, system.idle, "the worker drops what nobody waits for any more")
    await spread(caller, system, {"east", "west"})


async def test_workers_join_a_controller_that_was_killed_and_started_with_an_empty_registry(
    caller: Any, system: Any, valkey: EmbeddedValkey, eventually: Callable[..., Any]
) -> None:
    _, streaming = await start_streams(caller, 2)
    controller = system.controller
    controller.kill()
    for lost in await asyncio.gather(*streaming, return_exceptions=True):
        assert isinstance(lost, openai.APIConnectionError | httpx.TransportError), lost
    await asyncio.to_thread(eventually, system.idle, "the workers drop what nobody waits for any more")
    with redis.Redis.from_url(valkey.url) as store:
        store.flushall()
    controller.start(controller.port)
    await asyncio.to_thread(controller.wait_ready)
    await asyncio.to_thread(system.wait_whole)
    await spread(caller, system, {"east", "west"})


async def test_without_its_redis_the_controller_goes_on_serving_and_fills_it_again_when_it_is_back(
    caller: Any, system: Any, valkey: EmbeddedValkey, eventually: Callable[..., Any]
) -> None:
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    valkey.halt()
    await asyncio.to_thread(
        eventually, lambda: system.get("/health/ready")["registry"] == "lost", "the controller misses its Redis"
    )
    lease = asyncio.get_running_loop().time() + 8.0  # more than one: nobody may be forgotten meanwhile
    while asyncio.get_running_loop().time() < lease:
        await asyncio.gather(*(caller.ask(number, stream=number % 2 == 0) for number in range(4)))
        assert set(system.members()) == {"east", "west"}
        await asyncio.sleep(0.5)
    await spread(caller, system, {"east", "west"})

    valkey.start()
    await asyncio.to_thread(
        eventually, lambda: system.get("/health/ready")["registry"] == "connected", "the controller finds it again"
    )
    with redis.Redis.from_url(valkey.url) as store:
        keys = await asyncio.to_thread(
            eventually, lambda: len(found := store.keys("tephra:worker:*")) == 2 and found, "the registry is full again"
        )
    assert sorted(keys) == [b"tephra:worker:east", b"tephra:worker:west"]
    await spread(caller, system, {"east", "west"})


async def test_without_any_worker_requests_are_told_to_come_back(
    caller: Any, system: Any, eventually: Callable[..., Any]
) -> None:
    for worker in system.workers.values():
        worker.signal(signal.SIGSTOP)
    await asyncio.to_thread(eventually, lambda: not system.members(), "the registry forgets both")
    with pytest.raises(openai.InternalServerError) as caught:
        await caller.ask(1, stream=True)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"]
    assert system.get("/health/ready") == 503
    for worker in system.workers.values():
        worker.signal(signal.SIGCONT)
    await asyncio.to_thread(system.wait_whole)
    await spread(caller, system, {"east", "west"})
