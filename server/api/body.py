"""Reads a request's body under limits, and its JSON under more: size, time, number of values, depth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from starlette.types import Receive

from server.auth import Headers
from server.protocol.errors import ApiError, bad_request, too_large
from server.watch import ClientLeft

MAX_DEPTH = 64
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


def parse_object(body: bytes) -> dict[str, Any]:
    """Raises ApiError 400. CPU work in proportion to the body: large ones belong in a pool."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise bad_request(f"The body holds more than {MAX_VALUES} values.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise bad_request(f"The body is not valid JSON: {error.msg} ({where}).") from None
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.")
    _check_depth(value)
    return value


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise bad_request(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _too_large(limit: int) -> ApiError:
    return too_large(f"The body is larger than {limit} bytes.")
