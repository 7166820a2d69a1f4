"""How many connections a controller keeps open, seen from outside: who waits gives way, who works does not."""

from __future__ import annotations

import asyncio

import pytest

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"


async def connect(url):
    return await asyncio.open_connection(*url.removeprefix("http://").split(":"))


async def ask(reader, writer):
    """The status line."""
    writer.write(HEALTH)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    return head.split(b"\r\n")[0]


@pytest.fixture
async def opened():
    """Connections that are closed in the end."""
    writers = []

    async def open_one(url):
        reader, writer = await connect(url)
        writers.append(writer)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.close()


async def test_who_waits_longest_gives_way_and_who_works_stays(start_controller, start_worker, opened):
    client = await start_controller(max_connections=4)
    worker = await start_worker("w1", client)
    await client.session.close()  # nothing of ours is idle there but what follows
    answer, release, answered = worker.handler, asyncio.Event(), asyncio.Event()

    async def wait(request):
        answered.set()
        await release.wait()
        return await answer(request)

    worker.handler = wait
    worker.silence()
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}]}'
    working, asking = await opened(client.url)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    asking.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await answered.wait()

    dribbling, dribbler = await opened(client.url)
    dribbler.write(b"GET / HT")
    idle = await opened(client.url)
    assert b" 200 " in await ask(*idle)
    for _ in range(6):  # more than there is room for
        latest = await opened(client.url)
        assert b" 200 " in await ask(*latest)
    assert await dribbling.read() == b""
    assert await idle[0].read() == b""
    release.set()
    assert b" 200 " in await working.readline()
    assert b" 200 " in await ask(*latest)
    text = client.controller.metrics.exposition([]).decode()
    assert 'tephra_controller_connections_dropped_total{verdict="gave_way"}' in text
    assert 'verdict="refused"' not in text


async def test_where_all_work_a_new_one_is_told_to_come_back(start_controller, opened):
    client = await start_controller(max_connections=2)
    for _ in range(2):
        reader, writer = await opened(client.url)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        writer.write(b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
        assert b" 100 " in await reader.readline()
    reader, _ = await opened(client.url)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answer
    assert b'"code":"too_many_connections"' in answer
    text = client.controller.metrics.exposition([]).decode()
    assert 'tephra_controller_connections_dropped_total{verdict="refused"} 1.0' in text
    assert "tephra_controller_connections 2.0" in text


async def test_one_address_may_be_held_to_fewer(start_controller, opened):
    client = await start_controller(max_connections=100, max_connections_per_address=3)
    first = await opened(client.url)
    for _ in range(3):
        latest = await opened(client.url)
        assert b" 200 " in await ask(*latest)
    assert await first[0].read() == b""
    assert b" 200 " in await ask(*latest)
