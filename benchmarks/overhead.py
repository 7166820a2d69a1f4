"""What the client of `tephra bench serve` costs by itself, measured against a server that does next to nothing.

    python -m benchmarks.overhead [--concurrency 1,8,32,128] [--tokens 64] [--pace 0.01]

The server writes each token's moment of sending as its text (both processes read the same monotonic clock), so that the
lag of the client's stamps is seen: how much later than sent a token is taken to have arrived. The processor time that
the client takes is per request and per token: where it nears what a server needs, the client would be the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence

import uvloop

from benchmarks.drive import Drive, Load
from benchmarks.pictures import PictureShelf
from benchmarks.statistics import Distribution
from benchmarks.target import Exchange, Target
from benchmarks.workload import Workload

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tokens: int, pace: float) -> None:
    """One connection, for as long as it asks."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            writer.write(_HEAD)
            for number in range(tokens):
                await asyncio.sleep(pace)
                text = f"{time.perf_counter():.9f} "
                writer.write(_chunk(f'data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}\n\n'.encode()))
                if number == tokens - 1:
                    writer.write(_chunk(_END) + b"0\r\n\r\n")
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()  # the client has gone


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def _listen(tokens: int, pace: float) -> None:
    server = await asyncio.start_server(lambda r, w: _answer(r, w, tokens, pace), "127.0.0.1", 0, limit=2**26)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class _Lags(Target):
    """A target that also notes how late its stamps are."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "m")
        self.lags: list[float] = []

    async def ask(self, workload: Workload, messages: Sequence[dict[str, object]]) -> Exchange:
        exchange = await super().ask(workload, messages)
        answer = exchange.answer
        moment = answer.first or 0.0
        for text, gap in zip(answer.texts, [*answer.gaps, 0.0], strict=True):
            self.lags.append(moment - float(text))
            moment += gap
        return exchange


async def _measure(url: str, workload: Workload, concurrency: int, requests: int) -> str:
    shelf = PictureShelf(workload.sizes, workload.picture_format, workload.seed)
    shelf.prepare(workload.pictures(requests))
    async with _Lags(url) as target:
        drive = Drive(target, workload, Load(concurrency, requests=requests), shelf)
        began, used = time.perf_counter(), time.process_time()
        measured = await drive.run()
        elapsed, used = time.perf_counter() - began, time.process_time() - used
        lags = Distribution.of(target.lags)
    shelf.close()
    tokens = sum(outcome.parts for outcome in measured.answered)
    assert lags is not None and not measured.errors, measured.errors
    return (
        f"| {workload.images} | {concurrency} | {len(measured.answered) / elapsed:.0f} | {tokens / elapsed:.0f} | "
        f"{used / elapsed:.0%} | {used / len(measured.answered) * 1e3:.2f} | {used / tokens * 1e6:.0f} | "
        f"{lags.p50 * 1e3:.2f} | {lags.p99 * 1e3:.2f} |"
    )


async def _all(url: str, concurrency: Sequence[int], tokens: int, requests: int) -> None:
    print("| pictures | at once | requests/s | tokens/s | client's core | ms a request | µs a token | lag p50 | p99 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for images in ("none", "distinct"):
        workload = Workload(images=images, max_tokens=tokens)
        for number in concurrency:
            print(await _measure(url, workload, number, max(requests, 4 * number)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concurrency", default="1,8,32,128")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pace", type=float, default=0.01, help="seconds from token to token")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--listen", action="store_true", help="be the server")
    asked = parser.parse_args()
    if asked.listen:
        uvloop.run(_listen(asked.tokens, asked.pace))
        return
    command = [sys.executable, "-m", "benchmarks.overhead", "--listen"]
    command += ["--tokens", str(asked.tokens), "--pace", str(asked.pace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            uvloop.run(_all(url, [int(part) for part in asked.concurrency.split(",")], asked.tokens, asked.requests))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
