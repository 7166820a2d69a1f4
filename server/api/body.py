"""Reads a request's body under limits, and its JSON under more: size, time, number of values, depth, names given once.

Names are held to once because parsers differ in which of two they take: what was checked here must be what a worker
reads. NaN, Infinity and numbers beyond a double are no JSON to orjson.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, AnyStr

import orjson
from starlette.types import Receive

from server.api.inline_pictures import Shortened, shorten
from server.auth import Headers
from server.media.images import INLINE_BYTES, INLINE_PICTURE_BYTES, run_sized
from server.protocol.errors import ApiError, bad_request, too_large
from server.watch import ClientLeft

MAX_DEPTH = 64
_LONG, _FEW = 4096, 1000  # bytes, marks
_ESCAPED_COLON = rb"\u003"  # and some neighbours of the colon's
MAX_VALUES = 500_000  # a hundred times what a long conversation holds; base64 adds nothing to it


async def read_body(
    headers: Headers, receive: Receive, *, limit: int, seconds: float, reserve: Callable[[int], None]
) -> bytes:
    """Raises ApiError (408, 413, or what `reserve` raises) and ClientLeft. Never holds more than `limit` bytes."""
    announced = next((value for name, value in headers if name == b"content-length"), b"")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                reserve(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {seconds:g} seconds.", code="request_timeout") from None


def require_json(headers: Headers) -> None:
    """Raises ApiError 415. A web page cannot send this type to another origin unasked, so it also keeps those out."""
    kinds = [value.split(b";")[0].strip().lower() for name, value in headers if name == b"content-type"]
    if kinds != [b"application/json"]:
        raise ApiError(415, "Send the body as JSON, with the header 'Content-Type: application/json'.")
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        raise ApiError(415, "Compressed request bodies are not accepted.")


async def parse_off_loop(pool: Executor, body: bytes) -> dict[str, Any]:
    """As `parse_object`, in the pool where there is much to parse beside pictures. Raises ApiError 400."""
    if len(body) <= INLINE_BYTES:
        return _parse(body)
    shortened = await run_sized(pool, len(body), partial(shorten, body), inline=INLINE_PICTURE_BYTES)
    size = len(body) if shortened is None else len(shortened.body)
    return await run_sized(pool, size, partial(_parse_shortened, body, shortened))


def parse_object(body: bytes) -> dict[str, Any]:
    """Raises ApiError 400. CPU work in proportion to the body: large ones belong in a pool."""
    return _parse_shortened(body, shorten(body) if len(body) > INLINE_BYTES else None)


def _parse_shortened(body: bytes, shortened: Shortened | None) -> dict[str, Any]:
    if shortened is not None:
        try:
            tree = _parse(shortened.body)
        except ApiError:
            return _parse(body)  # for the place that its error names
        if shortened.restore(tree):
            return tree
    return _parse(body)


def _parse(body: bytes) -> dict[str, Any]:
    if sum(_occurrences(body, mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise bad_request(f"The body holds more than {MAX_VALUES} values.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise bad_request(f"The body is not valid JSON: {error.msg} ({where}).") from None
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.")
    colons = _walk(value)
    # Outside of strings each colon stands behind a name. As many there as in the tree: no name was lost to another.
    if _ESCAPED_COLON in body:
        _check_names(body)
    elif _occurrences(body, b":") != colons:
        raise _twice()
    return value


def _walk(value: dict[str, Any]) -> int:
    """How many colons its JSON has: one behind each name, and those in strings. Raises ApiError 400."""
    level: list[Any] = [value]
    colons = 0
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for outer in level:
            inside: Any = outer
            if isinstance(outer, dict):
                inside = outer.values()
                colons += len(outer) + sum(name.count(":") for name in outer)
            for inner in inside:
                if isinstance(inner, str):
                    colons += _occurrences(inner, ":")
                elif isinstance(inner, (dict, list)):
                    deeper.append(inner)
        if not deeper:
            return colons
        level = deeper
    raise bad_request(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _occurrences(text: AnyStr, mark: AnyStr) -> int:
    """As `text.count(mark)`, and ten times as fast where there are few in much: `find` looks at many bytes at once."""
    if len(text) <= _LONG:
        return text.count(mark)
    found, at = 0, text.find(mark)
    while at >= 0:
        found += 1
        if found > _FEW:
            return text.count(mark)
        at = text.find(mark, at + 1)
    return found


def _check_names(body: bytes) -> None:
    """The same by a slower way, for bodies that write a colon of a string as an escape. Raises ApiError 400."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _twice()

    json.loads(body, object_pairs_hook=once)


def _twice() -> ApiError:
    return bad_request("The body names a field twice in one object.", code="duplicate_field")


def _too_large(limit: int) -> ApiError:
    return too_large(f"The body is larger than {limit} bytes.")
