"""The controller's log: one line a request with its way and its time, audit lines, and nothing that a client said."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from aiohttp import web

from server.media.fetch import resolve_by_system
from server.protocol.log_lines import JsonLines

SECRETS = ("xyzzy-prompt", "xyzzy-schema", "xyzzy-query", "xyzzy-api-key", "xyzzy-admin-key", "xyzzy-answer")
PROMPT, SCHEMA, QUERY, API_KEY, ADMIN_KEY, ANSWER = SECRETS


@pytest.fixture
def lines(caplog):
    """Every line so far, of any logger at any level, as a process would write it."""
    caplog.set_level(logging.DEBUG)
    for name in ("tephra", "tephra.server", "uvicorn", "uvicorn.error", "uvicorn.access", "aiohttp", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    return lambda: [JsonLines().format(record) for record in caplog.records]


def requests(lines):
    return [line for line in map(json.loads, lines()) if line["event"] == "request"]


async def test_each_request_leaves_one_line_with_its_way_and_where_its_time_went(client, start_worker, lines):
    worker = await start_worker("w1", client)
    status, _, headers = await client.chat(headers={"X-Request-Id": "mine-1"})
    assert status == 200
    (line,) = [line for line in requests(lines) if line["request_id"] == "mine-1"]
    assert worker.headers[0]["X-Request-Id"] == headers["X-Request-Id"] == "mine-1"
    assert (line["status"], line["worker"], line["version"], line["ended"]) == (200, "w1", "v1", "complete")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 2)
    assert line["ms"] >= line["first_byte_ms"] > 0
    assert sum(line["phases_ms"].values()) == pytest.approx(line["ms"], abs=1)


async def test_what_operators_do_leaves_a_line_with_its_request_and_an_audit_line(
    start_controller, start_worker, lines
):
    client = await start_controller(admin_key=ADMIN_KEY)
    await start_worker("w1", client)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "X-Request-Id": "op-1"}
    assert (await client.post({}, "/admin/workers/w1/drain", headers))[0] == 200
    assert (await client.post({}, "/admin/workers/w9/drain", headers))[0] == 404
    audits = [line for line in map(json.loads, lines()) if line["event"] == "audit"]
    assert [(line["worker"], line["outcome"], line["request_id"]) for line in audits] == [
        ("w1", "done", "op-1"),
        ("w9", "failed", "op-1"),
    ]
    assert [(line["method"], line["status"]) for line in requests(lines) if line["request_id"] == "op-1"] == [
        ("POST", 200),
        ("POST", 404),
    ]


async def test_nothing_that_a_client_or_a_worker_said_stands_in_any_line(
    start_controller, start_worker, chunk, open_stream, with_image, data_url, png, lines, monkeypatch
):
    async def resolve(host: str, port: int):
        if host == "fault.example":
            raise RuntimeError(f"a fault that quotes {PROMPT}")
        return await resolve_by_system(host, port)

    client = await start_controller(
        resolve, api_keys=(API_KEY,), admin_key=ADMIN_KEY, media_allow_private=True, media_ports="*", retries=1
    )
    worker = await start_worker("w1", client)
    good, key = worker.handler, {"Authorization": f"Bearer {API_KEY}"}
    tool = {"type": "function", "function": {"name": "f", "description": SCHEMA, "parameters": {"title": SCHEMA}}}

    async def ask(content=PROMPT, **fields):
        return (await client.chat(content, headers=key, **fields))[0]

    assert await ask(with_image(data_url(png()), PROMPT), tools=[tool]) == 200
    assert await ask(with_image(f"http://127.0.0.1:9/a.png?token={QUERY}", PROMPT)) >= 400
    assert await ask(with_image(f"http://no.such.host.invalid/{QUERY}?{QUERY}", PROMPT)) >= 400
    assert await ask(with_image(f"http://fault.example/?{QUERY}", PROMPT)) == 500
    assert await ask(with_image(f"ftp://{QUERY}/", PROMPT)) == 400
    assert await ask(model=PROMPT) == 404
    assert await ask(stream=PROMPT, response_format={"type": "json_schema", "json_schema": {"name": SCHEMA}}) == 400
    for wrong in ({"Authorization": f"Bearer {ADMIN_KEY}"}, {"Authorization": f"Basic {API_KEY}"}):
        assert (await client.chat(PROMPT, headers=wrong))[0] == 401
        assert (await client.get("/admin/stats", {"Authorization": f"Bearer {API_KEY}"}))[0] == 401
    json_headers = {**key, "Content-Type": "application/json"}
    for body in (b'{"model": "' + PROMPT.encode(), b'{"messages": "\xff' + PROMPT.encode() + b'"}', b"[" * 5000):
        async with client.session.post(client.url + "/v1/chat/completions", data=body, headers=json_headers) as answer:
            assert answer.status == 400

    async def garbage(request):
        return web.Response(text=f"<html>{ANSWER}", content_type="text/html")

    async def failing(request):
        return web.json_response({"error": {"message": ANSWER, "type": "server_error", "code": "x"}}, status=500)

    async def breaking(request):
        response = await open_stream(request)
        await response.write(chunk(ANSWER))
        await response.write(b"data: {" + ANSWER.encode() + b"\n\n")
        return response

    for handler in (garbage, failing, breaking):
        worker.handler = handler
        async with client.session.post(
            client.url + "/v1/chat/completions",
            json={"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "stream": True},
            headers=key,
        ) as answer:
            await answer.read()
    worker.handler = good

    async def fault(worker_id: str, request_id: str):
        raise ValueError(f"a fault that quotes {PROMPT}") from KeyError(ADMIN_KEY)

    monkeypatch.setattr(client.controller.membership, "drain", fault)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    assert (await client.post({"note": PROMPT}, "/admin/workers/w1/drain", headers))[0] == 500
    await asyncio.sleep(0)
    written = lines()
    assert len([line for line in written if '"request"' in line]) > 10
    assert any("ValueError" in line and "test_logs.py" in line for line in written), "faults are still to be found"
    for line in written:
        assert not [secret for secret in SECRETS if secret in line], line
