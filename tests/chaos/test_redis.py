"""Redis hangs, dies and comes back under load; a controller dies that holds places of a key in it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import redis
from openai import AsyncOpenAI

from server.state import EmbeddedValkey

pytestmark = pytest.mark.timeout(600)

LEASE = 3.0  # seconds
LEASES = {"lease_seconds": LEASE, "heartbeat_seconds": 1.0}


@pytest.fixture(scope="module")
def shared_system(running_system: Any, valkey: EmbeddedValkey, keys: Any) -> Iterator[Any]:
    with running_system({"redis_url": valkey.url, "keys_file": keys.file, **LEASES}, {"max_running": 4}) as system:
        yield system


@pytest.mark.parametrize("fate", ["hangs", "dies"])
async def test_while_redis_is_gone_every_request_is_answered_and_afterwards_all_is_whole(
    system: Any, traffic: Any, keys: Any, valkey: EmbeddedValkey, eventually: Callable[..., Any], fate: str
) -> None:
    once, free = [await keys.make(system.url, requests_per_minute=1) for _ in range(2)]
    joined = system.metric("registrations_total")
    async with traffic:
        assert await keys.use(once, system) == 200
        assert valkey.pid is not None
        if fate == "hangs":
            os.kill(valkey.pid, signal.SIGSTOP)
        else:
            os.kill(valkey.pid, signal.SIGKILL)
            valkey.halt()
        # Limits hold locally, from where they stood.
        assert await keys.use(once, system) == 429
        assert [await keys.use(free, system) for _ in range(2)] == [200, 429]

        def degraded() -> bool:
            ready = system.get("/health/ready")
            return (ready["status"], ready["registry"], ready["limits"]) == ("degraded", "lost", "local")

        await asyncio.to_thread(eventually, degraded, "the controller says that Redis is gone")
        assert system.metric("registry_connected") == system.metric("limits_shared") == 0
        before = traffic.asked
        for _ in range(4):  # longer than a lease: nobody is forgotten meanwhile
            await asyncio.sleep(LEASE / 2)
            assert set(system.members()) == {"east", "west"}
        assert traffic.asked > before

        if fate == "hangs":
            os.kill(valkey.pid, signal.SIGCONT)
        else:
            valkey.start()

        def whole() -> bool:
            ready = system.get("/health/ready")
            return (ready["status"], ready["registry"], ready["limits"]) == ("ready", "connected", "shared")

        await asyncio.to_thread(eventually, whole, "the controller has found Redis again")
        with redis.Redis.from_url(valkey.url) as store:
            await asyncio.to_thread(
                eventually, lambda: len(store.keys("tephra:worker:*")) == 2, "the registry is full again"
            )
        await asyncio.sleep(LEASE)
        assert set(system.members()) == {"east", "west"}
    print(f"\nRedis {fate}: {traffic.asked} requests, longest {traffic.longest:.2f} s")
    assert not traffic.faults
    assert system.metric("registrations_total") == joined  # nobody was forgotten or joined anew


async def test_the_places_of_a_controller_that_was_killed_come_back_after_their_lease(
    system: Any, keys: Any, valkey: EmbeddedValkey, lone_controller: Any, eventually: Callable[..., Any]
) -> None:
    settings = {"redis_url": valkey.url, "worker_secret": system.secret, "keys_file": keys.file, **LEASES}
    second = lone_controller(**settings)
    key = await keys.make(system.url, second.url, concurrent=2)

    async def hold(begun: asyncio.Event) -> None:
        async with AsyncOpenAI(base_url=f"{second.url}/v1", api_key=key, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=system.model,
                messages=[{"role": "user", "content": "go on"}],
                max_tokens=1800,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for _ in stream:
                begun.set()

    begun = [asyncio.Event(), asyncio.Event()]
    holding = [asyncio.create_task(hold(event)) for event in begun]
    async with asyncio.timeout(240):
        await asyncio.gather(*(event.wait() for event in begun))
    assert await keys.use(key, system) == 429
    second.kill()
    for lost in await asyncio.gather(*holding, return_exceptions=True):
        assert isinstance(lost, openai.APIConnectionError | httpx.TransportError), lost
    assert await keys.use(key, system) == 429  # Redis cannot know yet
    await asyncio.to_thread(eventually, system.idle, "the workers drop what nobody waits for any more")
    async with asyncio.timeout(240):
        while await keys.use(key, system) == 429:
            await asyncio.sleep(0.5)
    assert await keys.use(key, system) == 200
