"""A worker around an engine that plays a script, behind a real uvicorn: for what happens outside the engine."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image

from model.checkpoint import Checkpoint, load_checkpoint
from model.checkpoint.files import read_json
from model.config import LlavaConfig
from model.images import read_preprocessor
from model.prompts import load_prompter
from model.tiny import make_tiny_checkpoint
from server.protocol.connections import Connections
from server.protocol.heads import bounded
from worker.api.app import create_app
from worker.engine.config import EngineConfig
from worker.engine.native import NativeEngine
from worker.engine.protocol import EngineLoad, EngineOutput, EngineRequest, TokenLogprobs
from worker.metrics import WorkerMetrics
from worker.service import Service
from worker.settings import WorkerSettings
from worker.start import ModelFiles, assemble

END = 258  # the tiny checkpoint's end token

Script = Callable[[EngineRequest], Iterable[EngineOutput | Exception]]


@dataclass
class ScriptedEngine:
    """Plays `script` for each request, and remembers what it was asked and what was cancelled."""

    script: Script
    context_length: int = 2048
    healthy: bool = True
    requests: list[EngineRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    hold: asyncio.Event | None = None  # set to an Event: every token waits for it

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        self.requests.append(request)
        self.started.set()
        ended = False
        try:
            for step in self.script(request):
                if self.hold is not None:
                    await self.hold.wait()
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    ended = True
                    raise step
                ended = step.finish_reason is not None
                yield step
                if ended:
                    return
        finally:
            if not ended:
                self.cancelled.append(request.id)

    def load(self) -> EngineLoad:
        return EngineLoad(len(self.requests), 0, 0, 0.25, 1000)


def play(*tokens: int, ended: bool = True) -> Script:
    """The tokens within max_tokens, then the end token if there is room for it; `logprobs` where they are asked for."""

    def script(request: EngineRequest) -> Iterable[EngineOutput]:
        wanted = request.sampling
        drawn = [*tokens, END] if ended else list(tokens)
        for place, token in enumerate(drawn[: wanted.max_tokens], start=1):
            scores = None
            if wanted.logprobs is not None:
                scores = TokenLogprobs(-0.5, tuple((token + rival, -0.5 - rival) for rival in range(wanted.logprobs)))
            stop = token in wanted.stop_token_ids
            reason = "stop" if stop else "length" if place == wanted.max_tokens else None
            yield EngineOutput(token, scores, reason, stop, cached_tokens=3)
            if reason:
                return

    return script


@dataclass(frozen=True)
class Stage:
    """A running worker and its parts."""

    client: httpx.AsyncClient
    url: str
    port: int
    service: Service
    engine: Any
    server: uvicorn.Server

    async def chat(self, content: Any = "hello", **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("worker") / "tiny")


@pytest.fixture(scope="session")
def files(checkpoint: Path) -> ModelFiles:
    config = LlavaConfig.from_hf(read_json(checkpoint / "config.json"))
    return ModelFiles(config, load_prompter(checkpoint, config), read_preprocessor(checkpoint, config))


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    config = uvicorn.Config(
        create_app(service),
        port=0,
        http=bounded(Connections()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


def encode_picture(format: str = "PNG", size: tuple[int, int] = (60, 40), color: str = "teal") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, format)
    return stream.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class Props:
    """What tests put together requests and scripts from."""

    play = staticmethod(play)
    engine = ScriptedEngine
    encode_picture = staticmethod(encode_picture)
    data_url = staticmethod(data_url)

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def say(self, text: str) -> Script:
        """The text a byte a token, then the end token."""
        return play(*self.tokenizer.encode(text, add_special_tokens=False))

    def picture_part(self, **how: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": data_url(encode_picture(**how))}}


Open = Callable[..., Awaitable[Stage]]


@pytest.fixture
async def stage(files: ModelFiles, props: Props) -> AsyncIterator[Open]:
    """Opens a worker: `await stage(say("Hello."), max_images=2)`; settings by name, `source=` for remote images,
    `files=` for another model than the tiny one."""
    tiny = files
    async with AsyncExitStack() as stack:

        async def open_stage(
            script: Script | None = None,
            *,
            engine: Any = None,
            source: Any = None,
            files: ModelFiles = tiny,
            **fields: Any,
        ) -> Stage:
            settings = WorkerSettings(model="tiny", **fields)
            engine = engine or ScriptedEngine(script or props.say("Hello."))
            metrics = WorkerMetrics("tiny", "v1")
            service = assemble(settings, files, engine, metrics, name="tiny", version="v1", source=source)
            stack.callback(service.close)
            server, port = await stack.enter_async_context(serving(service))
            url = f"http://127.0.0.1:{port}"
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30))
            return Stage(client, url, port, service, engine, server)

        yield open_stage


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(checkpoint)


@pytest.fixture
async def random_worker(stage: Open, loaded: Checkpoint) -> AsyncIterator[Stage]:
    """A worker over the tiny checkpoint's own random weights."""
    engine = NativeEngine(loaded.model, EngineConfig(kv_cache_bytes=2**23, threads=1, max_running=8))
    await engine.start()
    yield await stage(engine=engine, files=ModelFiles(loaded.config, loaded.prompter, loaded.preprocessor))
    await engine.stop()


@pytest.fixture(scope="session")
def props(files: ModelFiles) -> Props:
    return Props(files.prompter.tokenizer)
