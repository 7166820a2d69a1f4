"""A controller on a real port over a real Valkey, and small OpenAI-compatible servers that stand in for workers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import redis
from aiohttp import web
from PIL import Image

from server.controller import Controller
from server.listen import ControllerServer, bind
from server.media.fetch import Resolve, resolve_by_system
from server.settings import Settings
from server.state import EmbeddedValkey

SECRET = "the-workers-secret"
MODEL = "demo"
QUICK = Settings(
    port=0,
    worker_secret=SECRET,
    heartbeat_seconds=0.1,
    lease_seconds=10.0,
    poll_seconds=0.05,
    breaker_open_seconds=0.5,
    slow_start_seconds=0.0,
    connect_seconds=1.0,
    shutdown_seconds=1.0,
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _completion(text: str = "hello") -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "system_fingerprint": "v1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


def _chunk(text: str, finish: str | None = None) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def _open_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def _answer(request: web.Request) -> web.StreamResponse:
    """What a worker in good health does: three words, streamed or whole."""
    if not (await request.json()).get("stream"):
        return web.json_response(_completion())
    response = await _open_stream(request)
    for word in ("one ", "two ", "three"):
        await response.write(_chunk(word))
    await response.write(_chunk("", "stop") + b"data: [DONE]\n\n")
    return response


async def _hang(request: web.Request) -> web.StreamResponse:
    """What a worker does that takes a request and never answers it."""
    await asyncio.sleep(100)
    return web.Response()


class StandInWorker:
    """Speaks OpenAI's API by `handler` and keeps account of what it saw."""

    def __init__(self, worker_id: str, session: aiohttp.ClientSession) -> None:
        self.id = worker_id
        self.handler: Handler = _answer
        self.bodies: list[dict[str, Any]] = []
        self.states: list[Any] = []
        self.headers: list[Mapping[str, str]] = []
        self.abandoned = asyncio.Event()  # a request's connection was closed before its answer's end
        self.url = ""
        self.controller = ""
        self.load: dict[str, Any] = {}
        self.card: dict[str, Any] = {
            "name": MODEL,
            "version": "v1",
            "context_length": 4096,
            "created": 1,
            "image": {"tile": 28, "grid": 2, "canvases": [[56, 28], [28, 56], [56, 56]]},
            "max_images": 4,
        }
        self._session = session
        self._heart: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._serve)
        app.router.add_post("/v1/completions", self._serve)
        app.router.add_post("/tokenize", self._serve)
        app.router.add_post("/detokenize", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, backlog=1024)  # as workers have it
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def die(self) -> None:
        """Connections break, the port closes, the heart stops: as after a kill."""
        self.silence()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            assert runner.server is not None
            for handler in list(runner.server.connections):
                if handler.transport is not None:
                    handler.transport.abort()
            await runner.cleanup()

    async def close_port(self) -> None:
        """Refuses connections while its heart beats on."""
        assert self._runner is not None
        runner, self._runner = self._runner, None
        await runner.cleanup()

    def silence(self) -> None:
        if self._heart is not None:
            self._heart.cancel()
            self._heart = None

    def registration(self, **changes: Any) -> dict[str, Any]:
        return {
            "worker_id": self.id,
            "url": self.url,
            "model": self.card,
            "engine": "native",
            "device": "cpu",
            "max_running": 8,
            "started_at": time.time(),
            "load": self.load,
            **changes,
        }

    async def join(self, controller: str, *, beating: bool = True) -> None:
        self.controller = controller
        status = await self.post("", self.registration())
        assert status == 200, status
        if beating:
            self._heart = asyncio.create_task(self._beat())

    async def post(self, path: str, body: dict[str, Any], secret: str = SECRET) -> int:
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"{self.controller}/internal/workers{path}"
        async with self._session.post(url, json=body, headers=headers) as response:
            await response.read()
            return response.status

    async def leave(self) -> int:
        self.silence()
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with self._session.delete(f"{self.controller}/internal/workers/{self.id}", headers=headers) as response:
            return response.status

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(QUICK.heartbeat_seconds)
            status = await self.post(f"/{self.id}/heartbeat", {"load": self.load})
            if status == 404:
                await self.post("", self.registration())

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        ahead = int(request.headers.get("X-Tephra-Continue", 0))  # bytes about a stream that another worker began
        self.states.append(json.loads(body[:ahead] or b"null"))
        self.bodies.append(json.loads(body[ahead:]))
        self.headers.append(request.headers)
        try:
            return await self.handler(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.abandoned.set()
            raise


class Client:
    """Talks to one controller."""

    def __init__(self, session: aiohttp.ClientSession, server: ControllerServer, controller: Controller) -> None:
        self.session = session
        self.server = server
        self.url = server.url  # kept: a closed socket has no name
        self.controller = controller

    async def chat(self, content: Any = "hi", **fields: Any) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        headers = fields.pop("headers", {})
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return await self.post(body, headers=headers)

    async def post(
        self, body: dict[str, Any], path: str = "/v1/chat/completions", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        async with self.session.post(self.url + path, json=body, headers=headers) as response:
            return response.status, await response.json(), response.headers

    async def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        async with self.session.get(self.url + path, headers=headers) as response:
            kind = response.content_type
            return response.status, await (response.json() if kind == "application/json" else response.text())

    async def stream(self, content: Any = "hi", **fields: Any) -> list[str]:
        """The data of every event."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": True, **fields}
        async with self.session.post(self.url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            text = await response.text()
        assert text.endswith("\n\n")
        return [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]

    async def metric(self, name: str, **labels: str) -> float:
        value = self.controller.metrics.registry.get_sample_value(f"tephra_controller_{name}", labels)
        return value or 0.0


async def _until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for something that must come; fails when it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


def _png(width: int = 40, height: int = 30) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(data, "PNG")
    return data.getvalue()


def _data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _with_image(url: str, text: str = "what is it?") -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[EmbeddedValkey]:
    valkey = EmbeddedValkey()
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """One that a test may stop."""
    valkey = EmbeddedValkey()
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture
def redis_url(shared_valkey: EmbeddedValkey) -> str:
    with redis.Redis.from_url(shared_valkey.url) as client:
        client.flushall()
    return shared_valkey.url


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def session(stack: AsyncExitStack) -> aiohttp.ClientSession:
    return await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))


StartController = Callable[..., Awaitable[Client]]
StartWorker = Callable[..., Awaitable[StandInWorker]]


@pytest.fixture
def start_controller(stack: AsyncExitStack, session: aiohttp.ClientSession, redis_url: str) -> StartController:
    async def start(resolve: Resolve = resolve_by_system, **changes: Any) -> Client:
        settings = replace(QUICK, **{"redis_url": redis_url, **changes})
        controller = Controller(settings, resolve)
        server = ControllerServer(controller, bind(settings.host, settings.port))
        await server.start()

        async def stop() -> None:
            server.stop()
            await server.wait()

        stack.push_async_callback(stop)
        return Client(session, server, controller)

    return start


@pytest.fixture
def start_worker(stack: AsyncExitStack, session: aiohttp.ClientSession) -> StartWorker:
    async def start(worker_id: str = "w1", controller: Client | None = None, **card: Any) -> StandInWorker:
        worker = StandInWorker(worker_id, session)
        worker.card.update(card)
        await worker.start()
        stack.push_async_callback(worker.die)
        if controller is not None:
            await worker.join(controller.url)
        return worker

    return start


@pytest.fixture
async def client(start_controller: StartController) -> Client:
    return await start_controller()


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return _until


@pytest.fixture
def open_stream() -> Handler:
    return _open_stream


@pytest.fixture
def hang() -> Handler:
    return _hang


@pytest.fixture
def chunk() -> Callable[..., bytes]:
    return _chunk


@pytest.fixture
def png() -> Callable[..., bytes]:
    return _png


@pytest.fixture
def data_url() -> Callable[..., str]:
    return _data_url


@pytest.fixture
def with_image() -> Callable[..., list[dict[str, Any]]]:
    return _with_image
