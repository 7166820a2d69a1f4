"""A worker that answers at once: what stands in front of it is what a measurement then sees.

    python -m benchmarks.mock_worker --port 9000 [--controller http://127.0.0.1:8000 ... --secret ...]

It reads requests by hand off the socket, whatever their size, answers every POST with the same small completion (an
event stream where the body asks for one) and every GET with a list of its one model, and joins the controllers that it
is given, as a worker does. It understands no prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import cast

import aiohttp
import uvloop

MODEL = "mock"
_USAGE = b'{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":0}}'
_WHOLE = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"mock","system_fingerprint":"v1","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"Hello."},"logprobs":null,"finish_reason":"stop"}],"usage":'
    + _USAGE
    + b"}"
)
_CHUNK = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"mock","system_fingerprint":"v1",'
    b'"choices":[{"index":0,"delta":{"content":"Hello."},"logprobs":null,"finish_reason":%s}]}\n\n'
)
_STREAM = _CHUNK % b"null" + _CHUNK % b'"stop"' + b"data: [DONE]\n\n"
_MODELS = (
    b'{"object":"list","status":"ok","model_path":"mock","data":'
    b'[{"id":"mock","object":"model","created":1,"owned_by":"mock","max_model_len":4096}]}'
)
_BEAT_SECONDS = 1.0
_SEARCHED = 256  # bytes at a body's end in which "stream":true is looked for


def _answer(kind: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body


_ANSWERS = {
    "whole": _answer(b"application/json", _WHOLE),
    "stream": _answer(b"text/event-stream", _STREAM),
    "models": _answer(b"application/json", _MODELS),
}


class _Connection(asyncio.Protocol):
    """Requests one after the other, as long as the other side keeps it open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._head = b""
        self._left = 0  # bytes of the body that are still to come
        self._get = False
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        while data:
            if not self._left:
                self._head += data
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                head, data, self._head = self._head[:end].lower(), self._head[end + 4 :], b""
                self._get, self._tail = head.startswith(b"get "), b""
                self._left = _content_length(head)
                if not self._left:
                    self._respond()
                    continue
            part, data = data[: self._left], data[self._left :]
            self._left -= len(part)
            self._tail = (self._tail + part[-_SEARCHED:])[-_SEARCHED:]
            if not self._left:
                self._respond()

    def _respond(self) -> None:
        stream = b'"stream":true' in self._tail or b'"stream": true' in self._tail
        self._transport.write(_ANSWERS["models" if self._get else "stream" if stream else "whole"])


def _content_length(head: bytes) -> int:
    return next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)


async def _stay_joined(controller: str, secret: str, port: int) -> None:
    """Registers and beats, again and again until it is ended."""
    registration = {
        "worker_id": f"mock-{port}",
        "url": f"http://127.0.0.1:{port}",
        "model": {"name": MODEL, "version": "v1", "context_length": 1 << 20, "created": 1, "image": _IMAGE},
        "engine": "external",
        "device": "cpu",
        "max_running": 4096,
        "started_at": time.time(),
    }
    joined = False
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {secret}"}) as session:
        while True:
            path, body = (f"/mock-{port}/heartbeat", {"load": {}}) if joined else ("", registration)
            try:
                async with session.post(f"{controller}/internal/workers{path}", json=body) as answer:
                    joined = answer.status in (200, 204)
            except (aiohttp.ClientError, OSError):
                joined = False  # it has not started yet, or is gone
            await asyncio.sleep(_BEAT_SECONDS if joined else 0.1)


_IMAGE = {"tile": 336, "grid": 24, "canvases": [[672, 672], [336, 672], [672, 336], [1008, 336], [336, 1008]]}


async def _serve(port: int, controllers: Sequence[str], secret: str) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port, backlog=1024)
    async with asyncio.TaskGroup() as group:
        for controller in controllers:
            group.create_task(_stay_joined(controller, secret, port))
        group.create_task(server.serve_forever())


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mock_worker")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--controller", action="append", default=[], help="to join; may be given several times")
    parser.add_argument("--secret", default="")
    asked = parser.parse_args(arguments)
    uvloop.run(_serve(asked.port, asked.controller, asked.secret))


if __name__ == "__main__":
    main(sys.argv[1:])
