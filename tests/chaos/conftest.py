"""A system whose every process may be lost: two workers, a controller, and a Valkey outside of it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from server.auth.keys_file import new_key
from server.state import EmbeddedValkey


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("chaos")


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    valkey = EmbeddedValkey()
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture(scope="module")
def shared_system(running_system: Any, valkey: EmbeddedValkey) -> Iterator[Any]:
    """Workers decode four answers at once, so that others wait at them."""
    controller = {"redis_url": valkey.url}
    with running_system(controller, {"max_running": 4}) as system:
        yield system


@pytest.fixture
def system(shared_system: Any, eventually: Any) -> Any:
    """Whole and idle, whatever the test before did to it."""
    shared_system.restore()
    shared_system.wait_whole()
    eventually(shared_system.idle, "the workers have nothing in hand")
    return shared_system


@dataclass
class Outcome:
    """What became of one request."""

    id: str
    text: str = ""
    begun: bool = False  # the first piece of a streamed answer came
    error: str = ""  # the code with which a begun stream ended


class Caller:
    """Asks about pictures. Only a stream that has begun may fail, and only in the way that streams tell of errors."""

    def __init__(self, client: AsyncOpenAI, system: Any, pictures: Any) -> None:
        self._client = client
        self._system = system
        self._pictures = pictures
        self._asked = 0

    def outcome(self) -> Outcome:
        self._asked += 1
        return Outcome(f"chaos-{id(self):x}-{self._asked}")

    async def ask(self, number: int, *, stream: bool, tokens: int = 40, outcome: Outcome | None = None) -> Outcome:
        """Greedy, so that the same question has the same answer everywhere."""
        outcome = outcome or self.outcome()
        text = {"type": "text", "text": f"what is it, number {number}?"}
        fields: dict[str, Any] = {
            "model": self._system.model,
            "messages": [{"role": "user", "content": [self._pictures.part(number), text]}],
            "temperature": 0,
            "max_tokens": tokens,
            "extra_body": {"ignore_eos": True},
            "extra_headers": {"X-Request-Id": outcome.id},
        }
        if not stream:
            answer = await self._client.chat.completions.create(**fields)
            outcome.text = answer.choices[0].message.content or ""
            return outcome
        chunks = await self._client.chat.completions.create(**fields, stream=True)
        try:
            async for chunk in chunks:
                outcome.begun = True
                outcome.text += chunk.choices[0].delta.content or ""
        except openai.APIConnectionError:
            raise
        except openai.APIError as error:
            if not outcome.begun:
                raise
            outcome.error = str(error.code)
        return outcome


@pytest.fixture
async def caller(system: Any, pictures: Any) -> AsyncIterator[Caller]:
    async with AsyncOpenAI(base_url=f"{system.url}/v1", api_key=system.key, max_retries=0, timeout=300.0) as client:
        yield Caller(client, system, pictures)


class Traffic:
    """Requests that go on all the time, streamed and not, each compared with what was answered before."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._right: dict[int, str] = {}
        self._numbers = itertools.count()
        self._over = False
        self.asked = 0
        self.faults: list[str] = []
        self.longest = 0.0  # seconds for one request

    async def __aenter__(self) -> Traffic:
        for number in range(4):
            self._right[number] = (await self._caller.ask(number, stream=False)).text
        self._tasks = [asyncio.create_task(self._keep_asking()) for _ in range(3)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _keep_asking(self) -> None:
        while not self._over:
            number = next(self._numbers)
            began = time.monotonic()
            try:
                outcome = await self._caller.ask(number % 4, stream=number % 3 != 0)
            except openai.OpenAIError as error:
                self.faults.append(repr(error))
            else:
                if outcome.error or outcome.text != self._right[number % 4]:
                    self.faults.append(repr(outcome))
            self.asked += 1
            self.longest = max(self.longest, time.monotonic() - began)


@pytest.fixture
def traffic(caller: Caller) -> Traffic:
    return Traffic(caller)


class Keys:
    """A file of keys with limits, and requests by them."""

    def __init__(self, file: Path) -> None:
        file.touch()
        self.file = str(file)

    async def make(self, *urls: str, **limits: int) -> str:
        """A key with these limits, that the controllers at `urls` know."""
        key = new_key(Path(self.file), f"key-{secrets.token_hex(4)}", **limits)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session, asyncio.timeout(240):
            for url in urls:
                while (await session.get(f"{url}/v1/models")).status == 401:
                    await asyncio.sleep(0.1)
        return key

    async def use(self, key: str, system: Any, url: str = "") -> int:
        """The status of one request's answer."""
        body = {"model": system.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        headers = {"Authorization": f"Bearer {key}", "X-Request-Timeout": "100"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url or system.url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            await response.read()
            return response.status


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.jsonl")


class Wall:
    """A TCP proxy in front of a worker. While it is up it takes everything and passes on nothing."""

    def __init__(self) -> None:
        self.target = 0  # a port
        self.up = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Every connection through it breaks."""
        for end in list(self._sockets):
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                continue  # its other end closed it meanwhile
            self._close(end)

    def close(self) -> None:
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._sockets |= {near, far}
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """What comes while the wall is up is lost, so the connection is of no use afterwards."""
        try:
            while data := source.recv(65536):
                if self.up:
                    while self.up:
                        time.sleep(0.05)
                    break
                sink.sendall(data)
        except OSError:
            pass  # one end is gone, and with it the other
        finally:
            self._close(source)
            self._close(sink)

    def _close(self, end: socket.socket) -> None:
        self._sockets.discard(end)
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed already
        end.close()


@pytest.fixture
def walls() -> Iterator[dict[str, Wall]]:
    walls = {name: Wall() for name in ("east", "west")}
    yield walls
    for wall in walls.values():
        wall.close()


class Liar:
    """A worker that knows the secret and answers nonsense, of another kind each time."""

    def __init__(self) -> None:
        self._answers = itertools.cycle(
            (self._no_json, self._no_stream, self._strange_status, self._endless_head, self._giant_frame, self._drip)
        )

    async def __aenter__(self) -> Liar:
        self.dripping = 0  # answers that it sends byte by byte now
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._session = aiohttp.ClientSession()
        self._tasks: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def only_drips(self) -> None:
        """From now on it sends its answers a byte at a time, and they never end."""
        self._answers = itertools.cycle((self._drip_plain, self._drip_events))

    async def join(self, system: Any) -> None:
        self._workers = f"{system.url}/internal/workers"
        self._headers = {"Authorization": f"Bearer {system.secret}"}
        member = system.members()["east"]
        card = {"name": system.model, "version": member["version"], "context_length": 2048, "created": 1}
        body = {"worker_id": "liar", "url": self._url, "model": card, "engine": "native", "device": "cpu"}
        body |= {"max_running": 64, "started_at": time.time()}
        async with self._session.post(self._workers, json=body, headers=self._headers) as response:
            assert response.status == 200, await response.text()

    async def leave(self) -> None:
        async with self._session.delete(f"{self._workers}/liar", headers=self._headers) as response:
            assert response.status == 204

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await next(self._answers)(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the controller has had enough
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _no_json(self, writer: asyncio.StreamWriter) -> None:
        await self._say(
            writer, b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"choic'
        )

    async def _no_stream(self, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, _STREAM + b"data: <html>\n\ndata: [DONE]\n\n")

    async def _strange_status(self, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    async def _endless_head(self, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, b"HTTP/1.1 200 OK\r\n")
        while True:
            await self._say(writer, b"X-More: and more\r\n" * 1000)

    async def _giant_frame(self, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, _STREAM + b"data: ")
        while True:
            await self._say(writer, b"x" * 65536)

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, b"HTTP/1.1 500 ")
        for _ in range(20):
            await self._say(writer, b"x")
            await asyncio.sleep(0.2)

    async def _drip_plain(self, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        await self._drip_on(writer)

    async def _drip_events(self, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, _STREAM + b"data: ")
        await self._drip_on(writer)

    async def _drip_on(self, writer: asyncio.StreamWriter) -> None:
        self.dripping += 1
        try:
            while True:
                await self._say(writer, b" ")
                await asyncio.sleep(0.05)
        finally:
            self.dripping -= 1

    async def _say(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()


_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.fixture
async def liar() -> AsyncIterator[Liar]:
    async with Liar() as liar:
        yield liar
