"""Plain ASGI responses: JSON, errors, and event streams that end their work when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.protocol.continuing import ALIVE, ALIVE_SECONDS, RESUMABLE
from server.protocol.errors import ApiError, internal_error
from worker.api.body import ClientGone

log = logging.getLogger(__name__)

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    return json_response(error.body(), error.status, error.headers)


def sse_frame(content: object) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Does the work, or cancels it and raises ClientGone when the client disconnects first. The body must be read."""
    job = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_gone(request.receive))
    try:
        await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        raise ClientGone
    finally:
        job.cancel()
        gone.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events from a generator, which is closed when the client leaves.

    An error after the first byte is sent as an event, and the stream ends there without [DONE]. A resumable one goes to
    the controller, and says at least once in ALIVE_SECONDS that it lives.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        request_id: str,
        *,
        resumable: bool,
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **({RESUMABLE: "1"} if resumable else {})}
        super().__init__(media_type="text/event-stream", headers=headers)
        self._resumable = resumable
        self._quiet = False  # nothing was sent since this was set
        del self.headers["content-length"]
        self._frames = frames
        self._close = close  # a generator that was never begun cannot close what it reads from
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_wait_gone(receive))
        try:
            while self._resumable and not (sending.done() or gone.done()):
                self._quiet = True
                await asyncio.wait((sending, gone), timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._quiet and not (sending.done() or gone.done()):
                    await send({"type": "http.response.body", "body": ALIVE, "more_body": True})
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                raise ClientGone
        finally:
            sending.cancel()
            gone.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._frames.aclose()
            await self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for frame in self._frames:
                self._quiet = False
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except ApiError as error:
            await send({"type": "http.response.body", "body": sse_frame(error.body()), "more_body": True})
        except ClientGone:
            raise
        except OSError as error:
            raise ClientGone from error
        except Exception:
            log.exception("The stream failed", extra={"fields": {"request_id": self._request_id}})
            frame = sse_frame(internal_error(self._request_id).body())
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
