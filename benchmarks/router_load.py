"""The client of `tephra bench router`: the same request again and again over kept connections, at next to no cost.

It sends bytes made beforehand and reads of an answer what it needs to find its end, so that what is measured is the
server. It takes every answer whose status is not 200 for a failure of the whole measurement.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

_ANSWER_SECONDS = 30.0


class LoadFailed(Exception):
    """Not every request was answered; one line."""


@dataclass(frozen=True)
class Load:
    port: int  # of this machine
    body: bytes
    concurrency: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """What one measurement found; times in seconds."""

    requests: int
    rate: float  # a second
    p50: float
    p99: float


async def drive(load: Load) -> Sample:
    """Raises LoadFailed."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(load.body)}\r\n\r\n"
    ).encode()
    taken: list[float] = []
    began = time.perf_counter()
    clients = [_client(load.port, head + load.body, began + load.seconds, taken) for _ in range(load.concurrency)]
    try:
        async with asyncio.timeout(load.seconds + _ANSWER_SECONDS):
            await asyncio.gather(*clients)
    except (OSError, EOFError, ValueError) as error:  # TimeoutError among them
        raise LoadFailed(str(error) or type(error).__name__) from error
    elapsed = time.perf_counter() - began
    taken.sort()
    return Sample(len(taken), len(taken) / elapsed, taken[len(taken) // 2], taken[int(len(taken) * 0.99)])


async def _client(port: int, request: bytes, until: float, taken: list[float]) -> None:
    """One connection. Asks at least once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        while True:
            began = time.perf_counter()
            writer.write(request)
            await writer.drain()
            await _read_answer(reader)
            now = time.perf_counter()
            taken.append(now - began)
            if now >= until:
                return
    finally:
        writer.close()


async def _read_answer(reader: asyncio.StreamReader) -> None:
    """Raises ValueError for any status but 200, EOFError where the answer breaks off."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = head[9:12].decode("latin-1")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), None)
    if length is not None:
        body = await reader.readexactly(length)
    else:
        body = await _read_chunks(reader)
    if status != "200":
        raise ValueError(f"answered {status}: {body[:200].decode(errors='replace')}")


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body
