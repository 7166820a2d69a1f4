"""Reads request bodies under a cap; routes that FastAPI documents but that are served without its per-request work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.protocol.errors import ApiError, bad_request, too_large
from server.protocol.validation import parse_request
from worker.api.continuing import continuation_bytes, read_continuation


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The whole body. Raises ApiError: 413 once it is too large, whatever Content-Length says; 408 when it stalls."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {seconds:g} s.", code="timeout") from None
    except ClientDisconnect:
        raise ClientGone from None
    if not body:
        raise bad_request("The request has no body; send a JSON object.")
    return bytes(body)


class ClientGone(Exception):
    """Nobody is there to answer."""


def body_route(max_bytes: int, seconds: float) -> type[APIRoute]:
    """A route class for endpoints `(request, body: SomeModel) -> Response`: the signature is the documentation."""

    class BodyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            endpoint = self.endpoint
            model = get_type_hints(endpoint)["body"]

            async def handle(request: Request) -> Response:
                ahead = continuation_bytes(request)
                data = await read_body(request, max_bytes + ahead, seconds)
                request.state.continuation = read_continuation(data[:ahead]) if ahead else None
                body = parse_request(model, data[ahead:] if ahead else data)
                response: Response = await endpoint(request, body)
                return response

            return handle

    return BodyRoute


def _too_large(max_bytes: int) -> ApiError:
    # The connection stays open: closing it on a client that is still sending would reset it before the answer is read.
    # uvicorn drops what else arrives.
    return too_large(f"The body is larger than the {max_bytes} bytes that are accepted.")
