"""A real HTTP endpoint that does what a test scripts, and counts what it answered; pictures in words to ask about."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

WORDS = """
amber brisk calm dusty early faint gentle hollow idle jolly keen lively mellow narrow open pale quiet rough silent tidy
upright vivid warm yellow ancient bright clear dim even fresh grand high inner just kind long mild near odd plain quick
rare soft tall usual vast wide young zesty round
"""


@dataclass(frozen=True)
class Ask:
    """One request as it came."""

    kind: str
    context: str  # captions, and boxes
    repair: bool
    attempt: int  # of the same question, from 0
    key: str  # the idempotency key
    body: dict


def good_answer(ask: Ask, *, varied: bool = True) -> str:
    draw = random.Random(hashlib.md5(ask.context.encode()).hexdigest() + ask.kind if varied else "same")
    words = " ".join(draw.choices(WORDS.split(), k=40))
    if ask.kind == "detail":
        return f"The scene is {words}."
    pairs = 1 if ask.kind == "reasoning" else 3
    return "\n===\n".join(
        f"Question:\nWhat is {' '.join(draw.choices(WORDS.split(), k=6))}?\n===\nAnswer:\nIt is {words} {at}."
        for at in range(pairs)
    )


@dataclass(frozen=True)
class Says:
    """An answer of some text; `usage` None leaves the tokens out, `seconds` pass before it."""

    text: str | None = None  # None: a good one
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 50)
    seconds: float = 0.0
    same: bool = False  # the same for each picture


@dataclass(frozen=True)
class Fails:
    status: int
    retry_after: str | None = None
    body: str = '{"error": {"message": "not now"}}'


@dataclass(frozen=True)
class Breaks:
    """`cut`: the body ends early; `hang`: nothing comes; `drip`: a byte at a time, for ever; `junk`: no JSON."""

    how: str


Behaviour = Says | Fails | Breaks


class ScriptedEndpoint:
    """Runs on a thread of its own, so that it outlives the runs that it answers."""

    def __init__(self) -> None:
        self.script: Callable[[Ask], Behaviour] = lambda ask: Says()
        self.asks: list[Ask] = []
        self.answered: Counter[str] = Counter()  # whole good bodies sent, by idempotency key: what is paid for
        self.most_at_once = 0
        self._now = 0
        self._attempts: Counter[tuple[str, bool]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.get("/v1/models", self._models),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = site._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "scripted"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        messages = body["messages"]
        system = messages[0]["content"]
        kind = (
            "conversation" if "dialogue" in system else "detail" if "describe" in system.lower()[:60] else "reasoning"
        )
        repair = messages[-2]["role"] == "assistant" and "cannot be used" in messages[-1]["content"]
        context = messages[-3 if repair else -1]["content"]
        key = request.headers["Idempotency-Key"]
        ask = Ask(kind, context, repair, self._attempts[key], key, body)
        self._attempts[key] += 1
        self.asks.append(ask)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._behave(request, ask, self.script(ask))
        finally:
            self._now -= 1

    async def _behave(self, request: web.Request, ask: Ask, does: Behaviour) -> web.StreamResponse:
        match does:
            case Fails(status, retry_after, body):
                headers = {"Retry-After": retry_after} if retry_after is not None else {}
                return web.Response(status=status, text=body, headers=headers)
            case Breaks("hang"):
                await asyncio.sleep(60)
                return web.Response()
            case Breaks("junk"):
                return web.Response(text='{"choices": [{"mess')
            case Breaks(how):
                response = web.StreamResponse(headers={"Content-Length": "5000"})
                await response.prepare(request)
                await response.write(b'{"choices": [')
                while how == "drip":
                    await asyncio.sleep(0.05)
                    await response.write(b" ")
                request.transport.abort()
                return response
            case Says(text, finish, usage, seconds, same):
                await asyncio.sleep(seconds)
                content = good_answer(ask, varied=not same) if text is None else text
                whole = {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}]}
                if usage is not None:
                    whole["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
                self.answered[ask.key] += 1
                return web.json_response(whole)


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    scripted = ScriptedEndpoint()
    yield scripted
    scripted.close()


@pytest.fixture
def says() -> type[Says]:
    return Says


@pytest.fixture
def fails() -> type[Fails]:
    return Fails


@pytest.fixture
def breaks() -> type[Breaks]:
    return Breaks


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[int], Path]:
    """So many pictures in words, as a file of rows."""

    def write(count: int) -> Path:
        file = tmp_path / "items.jsonl"
        rows = (
            {
                "image": f"{at:06}.jpg",
                "captions": [f"A dog near kennel number {at}.", "A dog sits."],
                "boxes": [{"category": "dog", "box": [0.1, 0.2, 0.5, 0.75]}],
            }
            for at in range(count)
        )
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return file

    return write
