"""What is refused at the controller's port before any worker is asked: vast wishes, misleading heads, open doors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest
from aiohttp import web

from server.app import create_app
from server.protocol import heads

MESSAGES = [{"role": "user", "content": "hi"}]
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n"
JSON = b"Content-Type: application/json\r\n"


async def exchange(url: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """Sends bytes as they are; all that comes back until the connection ends or nothing comes any more."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(2):
            while data := await reader.read(65536):
                answer += data
    except (TimeoutError, ConnectionError):
        pass  # kept open, or cut: what came is what there is
    finally:
        writer.close()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 1e300}, "n"),
        ({"best_of": 17}, "best_of"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": 100_000}, "prompt_logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop": ["a", "x" * 1025]}, "stop"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"messages": MESSAGES * 2049}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 1025}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}] * 129}]}, "messages[0].tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools"),
        ({"guided_choice": ["x"] * 1025}, "guided_choice"),
        ({"max_tokens": 4096}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 110_000}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "ab" * 300_000}]}]}, "messages"),
    ],
    ids=lambda value: str(value)[:32],
)
async def test_a_wish_out_of_proportion_is_400_with_its_field(client, start_worker, fields, param):
    worker = await start_worker("w1", client)
    if fields.get("max_tokens") == 4096:
        fields = {**fields, "messages": [{"role": "user", "content": "x" * 200}]}
    status, body, _ = await client.post({"model": "demo", "messages": MESSAGES, **fields})
    assert status == 400
    assert body["error"]["param"] == param
    assert worker.bodies == []


@pytest.mark.parametrize(
    "prompt", [["x"] * 33, [1] * 5000, "x" * 600_000, [[1], [2]] * 20], ids=["many", "tokens", "long", "lists"]
)
async def test_prompts_are_bounded_in_number_and_length(client, start_worker, prompt):
    worker = await start_worker("w1", client)
    status, body, _ = await client.post({"model": "demo", "prompt": prompt}, "/v1/completions")
    assert (status, body["error"]["param"]) == (400, "prompt")
    assert worker.bodies == []


async def test_what_may_fit_is_left_to_the_worker(client, start_worker):
    worker = await start_worker("w1", client)
    for fields in (
        {"n": 16, "stop": ["x"] * 16, "max_tokens": 4095, "logit_bias": {"5": 1}},
        {"messages": [{"role": "user", "content": " " * 600_000 + "x"}]},  # a template may strip it
        {"messages": [{"role": "user", "content": "x" * 500_000}], "max_tokens": None},
        {"logprobs": True, "top_logprobs": 20},
    ):
        assert (await client.post({"model": "demo", "messages": MESSAGES, **fields}))[0] == 200
    assert (await client.post({"model": "demo", "prompt": [1] * 4000, "logprobs": 5}, "/v1/completions"))[0] == 200
    assert len(worker.bodies) == 5


TWICE = [
    b'{"model": "demo", "model": "demo", "messages": %s}',
    b'{"model": "demo", "mod\\u0065l": "other", "messages": %s}',
    b'{"model": "demo", "x": {"a": 1, "b": {}, "a": ":"}, "messages": %s}',
    b'{"model": "demo", "x": "\\u003a", "x": "y", "messages": %s}',
    b'{"model": "demo", "messages": [], "messages": %s}',
    b'{"model": "demo", "x": [{"a:b": 1, "a:b": 2}], "messages": %s}',
]
ONCE = [
    b'{"model": "demo", "x": "a:b \\u003a \\\\u003a", "y:": {"model": {"model": ":"}}, "messages": %s}',
    b'{"model": "demo", "x": [":", {"a": ["::", ":\\":"]}], "messages": %s}',
]


async def test_a_name_that_stands_twice_is_refused_however_it_is_written(client, start_worker):
    worker = await start_worker("w1", client)
    for bodies, status in ((TWICE, 400), (ONCE, 200)):
        for body in bodies:
            data = body % orjson.dumps(MESSAGES)
            answered, answer = await send(client, data)
            assert answered == status, body
            if status == 400:
                assert answer["error"]["code"] == "duplicate_field"
    assert len(worker.bodies) == len(ONCE)


async def send(client: Any, data: bytes) -> tuple[int, Any]:
    url, headers = client.url + "/v1/chat/completions", {"Content-Type": "application/json"}
    async with client.session.post(url, data=data, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"0x1", b"1_0", b"+1"])
async def test_numbers_that_are_no_json_are_refused(client, start_worker, number):
    worker = await start_worker("w1", client)
    status, answer = await send(client, b'{"model": "demo", "temperature": %s, "messages": []}' % number)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert worker.bodies == []


async def test_headers_are_bounded_in_number_and_size(client):
    many = b"".join(b"x-%d: 1\r\n" % number for number in range(200))
    for extra in (many, b"x: " + b"p" * 40_000 + b"\r\n"):
        answer = await exchange(
            client.url, b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + extra + b"\r\n"
        )
        assert statuses(answer) == [431]
        assert b'"error"' in answer
    long_address = await exchange(
        client.url, b"GET /health/live?" + b"q" * 40_000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert statuses(long_address) == [431]
    endless = await exchange(
        client.url, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", *[b"x: " + b"p" * 30_000] * 10
    )
    assert statuses(endless) in ([400], [])
    assert await client.get("/health/live") == (200, {"status": "ok"})


async def test_a_head_that_does_not_end_is_cut_off(client, monkeypatch):
    monkeypatch.setattr(heads, "_HEAD_SECONDS", 0.2)
    for parts in ((), (b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"x", b"y", b"z")):
        reader, writer = await asyncio.open_connection(*client.url.removeprefix("http://").split(":"))
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_a_body_that_goes_on_after_its_answer_is_cut_off(start_controller, monkeypatch):
    monkeypatch.setattr(heads, "_LINGER_SECONDS", 0.2)
    client = await start_controller(api_keys=("key",))
    reader, writer = await asyncio.open_connection(*client.url.removeprefix("http://").split(":"))
    writer.write(HEAD + JSON + b"Host: a\r\nContent-Length: 1000000\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")

    async def trickle() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(10):
        await reader.read()
    trickling.cancel()
    writer.close()


SMUGGLED = b"GET /admin/workers HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        b"Host: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Host: a\r\nContent-Length: 4\r\nContent-Length: 40\r\n",
        b"Host: a\r\nContent-Length: 4, 40\r\n",
        b"Host: a\r\nContent-Length: +4\r\n",
        b"Host: a\r\nContent-Length: -4\r\n",
        b"Host: a\r\nTransfer-Encoding: xchunked\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked, identity\r\n",
        b"Host: a\r\nTransfer-Encoding : chunked\r\n",
        b"Host: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n",
        b"Host: a\r\nX: y\rTransfer-Encoding: chunked\r\n",
        b"Host: a\r\nX\x00: y\r\n",
        b"Host: a\r\nHost: localhost\r\n",
        b"Host: localhost:80@evil\r\n",
        b"Host: a b\r\n",
        b"Host: http://a/\r\n",
        b"Host:\r\n",
        b"",
    ],
)
async def test_a_head_that_two_parsers_may_read_in_two_ways_is_refused(start_controller, start_worker, lines):
    client = await start_controller(api_keys=("key",))
    worker = await start_worker("w1", client)
    answer = await exchange(
        client.url, HEAD + JSON + b"Authorization: Bearer key\r\n" + lines + b"\r\n0\r\n\r\n" + SMUGGLED
    )
    assert statuses(answer)[:1] in ([400], [415]), answer
    assert 200 not in statuses(answer)
    assert worker.bodies == []


@pytest.mark.parametrize(
    "lines",
    [
        b"Authorization: Bearer key\r\nAuthorization: Bearer key\r\n",
        b"Authorization: Bearer wrong\r\nAuthorization: Bearer key\r\n",
        b"Authorization: Bearer key\r\nAuthorization: Bearer wrong\r\n",
        b"Authorization: Bearer key, Bearer wrong\r\n",
        b"Authorization: Bearerkey\r\n",
        b"Authorization: key\r\n",
        b"Proxy-Authorization: Bearer key\r\n",
        b"X-Api-Key: key\r\n",
        b"X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /health/live\r\n",
    ],
)
async def test_only_one_plain_authorization_opens(start_controller, start_worker, lines):
    client = await start_controller(api_keys=("key",))
    worker = await start_worker("w1", client)
    data = orjson.dumps({"model": "demo", "messages": MESSAGES})
    head = HEAD + JSON + b"Host: a\r\nContent-Length: %d\r\nConnection: close\r\n" % len(data)
    assert statuses(await exchange(client.url, head + lines + b"\r\n" + data)) == [401]
    assert worker.bodies == []
    assert statuses(await exchange(client.url, head + b"Authorization: bearer key\r\n\r\n" + data)) == [200]


# Paths that answer without a key, and why.
OPEN = {
    "/": "the playground's page: files that everybody may have",
    "/dashboard": "the dashboard's page; what it shows comes from /admin",
    "/assets": "the pages' scripts and styles",
    "/health/live": "probes carry no key",
    "/health/ready": "probes carry no key",
    "/metrics": "scrapers carry no key; numbers alone",
    "/openapi.json": "the documentation",
}


def leaves(routes: Any) -> list[Any]:
    """Every single route, those of included routers with it."""
    found: list[Any] = []
    for route in routes:
        included = getattr(route, "original_router", None)
        found += [route] if included is None else leaves(included.routes)
    return found


async def test_every_route_but_those_that_are_listed_asks_for_a_key(start_controller, start_worker):
    client = await start_controller(api_keys=("key",), admin_key="admin")
    await start_worker("w1", client)
    front: Any = create_app(client.controller)
    asked = 0
    for route in leaves(front._app.routes):
        if route.path in OPEN:
            continue
        path = route.path.replace("{model:path}", "demo").replace("{worker_id}", "w1")
        path = path.split("{")[0] + "x" * ("{" in path)
        for method in sorted(route.methods):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                async with client.session.request(method, client.url + path, headers=headers, json={}) as response:
                    assert response.status in (401, 405), (method, path, response.status)
                    asked += response.status == 401
    assert asked > 10


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/%6dodels",
        "/V1/models",
        "/v1/models?x=/health/live",
        "/v1/models;/x",
        "/health/live/../../v1/models",
        "/health/live/%2e%2e/%2e%2e/v1/models",
        "/assets/../v1/models",
        "/admin/workers/",
        "/admin//workers",
        "/%61dmin/workers",
        "/internal/workers/",
        "http://a/v1/models",
    ],
)
async def test_no_way_of_writing_a_path_leads_around_the_key(start_controller, start_worker, path):
    client = await start_controller(api_keys=("key",), admin_key="admin")
    await start_worker("w1", client)
    answer = await exchange(client.url, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert statuses(answer)[0] in (400, 401, 404, 405), answer
    assert b"demo" not in answer
    assert b"location:" not in answer.lower()  # nowhere that a Host header names


async def test_a_tenant_is_named_by_the_controller_alone(start_controller, start_worker):
    client = await start_controller(api_keys=("first", "second"))
    worker = await start_worker("w1", client)
    for key in ("first", "second", "first"):
        headers = {"Authorization": f"Bearer {key}", "X-Tephra-Tenant": "name:victim", "X-Tephra-Continue": "5"}
        assert (await client.chat("hi", headers=headers))[0] == 200
    tenants = [headers.getall("X-Tephra-Tenant") for headers in worker.headers]  # type: ignore[attr-defined]
    assert tenants[0] == tenants[2] != tenants[1]
    assert all(len(one) == 1 and "victim" not in one[0] and "first" not in one[0] for one in tenants)


@pytest.mark.parametrize("settings", [{}, {"api_keys": ("first",), "tenant_caches": "shared"}])
async def test_without_keys_or_where_caches_are_shared_there_are_no_tenants(start_controller, start_worker, settings):
    client = await start_controller(**settings)
    worker = await start_worker("w1", client)
    headers = {"Authorization": "Bearer first", "X-Tephra-Tenant": "name:victim"}
    assert (await client.chat("hi", headers=headers))[0] == 200
    assert "X-Tephra-Tenant" not in worker.headers[0]


async def test_a_request_over_its_time_is_504_and_its_work_is_cancelled(hang, client, start_worker):
    worker = await start_worker("w1", client)
    worker.handler = hang
    status, body, _ = await client.chat("hi", headers={"X-Request-Timeout": "0.3"})
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert 0 < float(worker.headers[0]["X-Request-Timeout"]) < 0.3
    await asyncio.wait_for(worker.abandoned.wait(), 10)
    assert await client.metric("deadlines_exceeded_total") == 1
    assert len(worker.bodies) == 1


async def test_the_setting_bounds_what_a_client_may_ask_for(hang, start_controller, start_worker):
    client = await start_controller(request_seconds=0.3)
    worker = await start_worker("w1", client)
    worker.handler = hang
    for headers in ({}, {"X-Request-Timeout": "500"}):
        assert (await client.chat("hi", headers=headers))[0] == 504
    assert all(float(headers["X-Request-Timeout"]) <= 0.3 for headers in worker.headers)


async def test_a_stream_over_its_time_ends_with_the_error(client, start_worker, open_stream, chunk):
    worker = await start_worker("w1", client)

    async def slow(request: web.Request) -> web.StreamResponse:
        response = await open_stream(request)
        await response.write(chunk("one "))
        await asyncio.sleep(60)
        return response

    worker.handler = slow
    body = {"model": "demo", "stream": True, "messages": MESSAGES}
    headers = {"X-Request-Timeout": "0.5"}
    async with client.session.post(client.url + "/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200
        events = (await response.text()).split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


async def test_a_worker_that_says_that_time_is_over_is_believed(client, start_worker):
    first, second = await start_worker("w1", client), await start_worker("w2", client)

    async def over(request: web.Request) -> web.StreamResponse:
        error = {"message": "over", "type": "server_error", "code": "deadline_exceeded"}
        return web.json_response({"error": error}, status=504)

    first.handler = second.handler = over
    status, body, _ = await client.chat("hi")
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert len(first.bodies) + len(second.bodies) == 1


@pytest.mark.parametrize("value", ["soon", "-1", "0", "1e9", "nan", "9" * 30, "1, 2"])
async def test_a_time_that_makes_no_sense_is_400(client, start_worker, value):
    worker = await start_worker("w1", client)
    status, body, _ = await client.chat("hi", headers={"X-Request-Timeout": value})
    assert (status, body["error"]["code"]) == (400, "invalid_timeout")
    assert worker.bodies == []


async def test_when_all_workers_are_full_the_wait_follows_their_pace(start_controller, start_worker):
    client = await start_controller(max_queue=10)
    workers = [await start_worker(f"w{number}", client) for number in range(2)]
    for worker, waiting in zip(workers, (10, 9), strict=True):
        worker.silence()
        worker.load = {"running": 8, "waiting": waiting}
        assert await worker.post(f"/{worker.id}/heartbeat", {"load": worker.load}) == 204
    assert (await client.chat("hi"))[0] == 200  # one has room
    await workers[1].post("/w1/heartbeat", {"load": {"running": 8, "waiting": 500}})
    status, body, headers = await client.chat("hi")
    assert (status, body["error"]["code"]) == (429, "overloaded")
    assert 1 <= int(headers["Retry-After"]) <= 60
