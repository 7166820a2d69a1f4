"""What every request passes before any route: request id, header cap, API key, the gate; and how every failure is told.

Plain ASGI. The request id is on every answer, errors included, and in the log line that each request leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.protocol.errors import ApiError, internal_error, unauthorized
from server.protocol.heads import check_head
from worker.api.body import ClientGone
from worker.api.responses import error_response
from worker.gate import Gate
from worker.terms import Terms

log = logging.getLogger("tephra.access")

# Orchestrators probe and Prometheus scrapes without keys; these paths tell nothing of anybody's prompts.
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/metrics"})
CLIENT_GONE = 499  # for the log alone: there is nobody to send it to

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Front:
    """Wraps the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        api_keys: frozenset[str],
        worker_secret: str | None,
        send_seconds: float,
    ) -> None:
        self._app = app
        self._gate = gate
        self._send_seconds = send_seconds  # a client that takes nothing for so long counts as gone
        self._key_digests = [_digest(key.encode()) for key in sorted(api_keys)]
        self._secret_digest = _digest(worker_secret.encode()) if worker_secret else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            try:
                async with asyncio.timeout(self._send_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        try:
            await self._pass_on(scope, receive, send_with_id, headers)
        except ClientGone:
            status = CLIENT_GONE
        except ApiError as error:
            if not status:
                await error_response(error)(scope, receive, send_with_id)
        except Exception:
            log.exception("A request failed", extra={"fields": {"request_id": request_id}})
            if not status:
                await error_response(internal_error(request_id))(scope, receive, send_with_id)
        finally:
            milliseconds = round((time.perf_counter() - began) * 1000, 1)
            fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}
            quiet = scope["path"] in OPEN_PATHS
            log.log(
                logging.DEBUG if quiet else logging.INFO,
                "request",
                extra={"fields": {**fields, "status": status, "ms": milliseconds}},
            )

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        check_head(scope)
        if scope["path"] not in OPEN_PATHS:
            trusted = scope["state"]["from_controller"] = self._check_key(headers.get(b"authorization", b""))
            scope["state"]["terms"] = Terms.read(headers, from_controller=trusted)
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        with self._gate.enter() as slot:
            scope["state"]["slot"] = slot
            await self._app(scope, receive, send)

    def _check_key(self, authorization: bytes) -> bool:
        """Whether the key is the secret shared with the controller. Raises ApiError 401 for one that does not open.

        Compares digests with every key in constant time, so that neither a key's length nor its place leaks.
        """
        if not self._key_digests:
            return False
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._key_digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise unauthorized()
        return self._secret_digest is not None and hmac.compare_digest(given, self._secret_digest)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _request_id(sent: bytes) -> str:
    """The client's own id if it is one that can stand in logs and headers, else a new one."""
    text = sent.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex
