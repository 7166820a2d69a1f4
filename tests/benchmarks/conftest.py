"""A stand-in for a server: it speaks OpenAI's API over real HTTP, and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from aiohttp import web

MODEL = "stand-in"
Behaviour = str  # "ok", "slow", "500", "429", "hang", "cut", "not json", "error event", "html", "empty", "strict"


class StandIn:
    """Answers the nth chat request as the nth behaviour says, from the start again after the last."""

    def __init__(self, behaviours: Sequence[Behaviour], tokens: int, pause: float) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.url = ""
        self._behaviours = behaviours
        self._tokens = tokens
        self._pause = pause  # seconds before each token
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    async def _listen(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behaviour = self._behaviours[len(self.bodies) % len(self._behaviours)]
        self.bodies.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._answer(request, body, behaviour)
        finally:
            self._at_once -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any], behaviour: Behaviour) -> web.StreamResponse:
        if behaviour == "strict" and {"ignore_eos", "stream_options"} & body.keys():
            return web.json_response({"error": {"message": "unknown field", "code": "unknown_field"}}, status=400)
        if behaviour == "500":
            return web.Response(status=500, text="it broke")
        if behaviour == "429":
            return web.json_response({"error": {"message": "later", "code": "rate_limit_exceeded"}}, status=429)
        if behaviour == "html":
            return web.Response(text="<p>welcome</p>", content_type="text/html")
        if behaviour == "hang":
            await asyncio.sleep(3600)
        tokens = min(self._tokens, body["max_tokens"])
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
        words = ["word "] * tokens
        if not body["stream"]:
            message = {"role": "assistant", "content": "".join(words)}
            choices = [{"index": 0, "message": message, "finish_reason": "length"}]
            return web.json_response({"choices": choices, "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in words if behaviour != "empty" else []:
            await asyncio.sleep(self._pause)
            await response.write(event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}))
            if behaviour == "cut":
                assert request.transport is not None
                request.transport.abort()
                raise asyncio.CancelledError  # as when the peer is gone
            if behaviour == "not json":
                await response.write(b"data: {oops\n\n")
            if behaviour == "error event":
                await response.write(event({"error": {"message": "lost", "code": "worker_lost"}}))
                return response
        await response.write(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}))
        if body.get("stream_options") and behaviour != "empty":
            await response.write(event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


StartStandIn = Callable[..., StandIn]


@pytest.fixture
def stand_in() -> Iterator[StartStandIn]:
    """stand_in("ok", "500", tokens=5, pause=0.0): a running one."""
    started: list[StandIn] = []

    def start(*behaviours: Behaviour, tokens: int = 5, pause: float = 0.0) -> StandIn:
        server = StandIn(behaviours or ("ok",), tokens, pause)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
