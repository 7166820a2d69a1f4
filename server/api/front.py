"""The outermost layer: names each request, sends the hot paths straight to their routes and the rest to FastAPI."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.logs import log
from server.protocol.errors import ApiError
from server.protocol.heads import check_head
from server.reply import REQUEST_ID, Reply

_BEATS = "/internal/"  # what workers send every few seconds
_MOST_PATH = 128  # characters of a path that are logged
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class Front:
    """`hot` maps POST paths to ASGI applications that name requests in their answers themselves."""

    def __init__(self, app: ASGIApp, hot: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID] = request_id = _request_id(scope)
        try:
            check_head(scope)
        except ApiError as error:
            await Reply(scope, send).error(error)
            return
        hot = self._hot.get(scope["path"])
        if hot is not None and scope["method"] == "POST":
            await hot(scope, receive, send)
            return

        began, status = time.perf_counter(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            log(
                logging.DEBUG if scope["method"] == "GET" or scope["path"].startswith(_BEATS) else logging.INFO,
                "request",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"][:_MOST_PATH],
                status=status or 499,
                ms=round((time.perf_counter() - began) * 1000, 1),
            )


def _request_id(scope: Scope) -> str:
    """The client's, where it is short and plain; else one of ours."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
