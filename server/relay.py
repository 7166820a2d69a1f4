"""Carries a request to a worker and its answer back.

Until the first byte of an answer has gone to the client, a failed attempt is repeated at another worker, within a
budget; after it, a stream that breaks ends with an error event. It knows nothing of prompts or pictures. Cancelling the
task that runs `answer` closes the connection to the worker at once, which is how the work there is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from server.deadline import remaining
from server.health.worker import Outcome
from server.logs import log
from server.metrics import Metrics
from server.protocol.call_headers import DEADLINE_EXCEEDED, TENANT, TIMEOUT, write_timeout
from server.protocol.errors import ApiError, unavailable
from server.registry.table import Worker
from server.reply import Headers, Reply
from server.retries import RetryBudget
from server.routing.base import Work
from server.routing.router import Router
from server.settings import Settings
from server.sse import FrameCutter, FrameTooLong, StreamProgress, Usage
from server.stats import RequestRecord, Stats
from server.watch import ClientLeft

_READ_SIZE = 64 * 1024
_MAX_ERROR_BODY = 1024 * 1024
_KEEP_ALIVE = 4.0  # seconds: shorter than any server's, so that an idle connection is rarely closed under us


@dataclass(frozen=True)
class Call:
    """What goes to a worker."""

    request_id: str
    path: str
    body: bytes
    model: str
    work: Work
    version: str | None = None  # of the model, that the answer must be computed on; None: any
    tenant: str = ""  # whose caches it may use; empty: everybody's
    deadline: float | None = None  # by the event loop's clock


class _Failed(Exception):
    """An attempt that ended before anything went to the client."""

    def __init__(self, reason: str, *, may_repeat_here: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_repeat_here = may_repeat_here
        self.answer: _Answer | None = None  # what to pass on if nobody else can answer


class _ErrorAnswer(msgspec.Struct):
    class Detail(msgspec.Struct):
        message: str
        type: object = None
        code: object = None

    error: Detail


class _Completion(msgspec.Struct):
    usage: Usage | None = None


@dataclass(frozen=True)
class _Answer:
    """A whole answer that is not a stream."""

    status: int
    body: bytes
    headers: Headers


class Relay:
    """start() ... answer() ... stop()"""

    def __init__(
        self, settings: Settings, router: Router, metrics: Metrics, stats: Stats, worker_secret: str | None
    ) -> None:
        self._settings = settings
        self._router = router
        self._metrics = metrics
        self._stats = stats
        self._budget = RetryBudget(settings.max_inflight)
        self._authorization = f"Bearer {worker_secret}" if worker_secret else ""

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            # No limit here: `admission.Room` holds it.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent",),
        )

    async def stop(self) -> None:
        await self._session.close()

    async def answer(self, call: Call, reply: Reply, record: RequestRecord) -> None:
        """Raises ApiError when no worker could answer or a stream broke (`reply.started` tells which), ClientLeft when
        the client takes nothing any more."""
        self._budget.deposit()
        tried: set[str] = set()
        repeated_here: set[str] = set()
        last: _Failed | None = None
        while True:
            try:
                worker = self._router.choose(call.model, call.work, tried, call.version)
            except ApiError:
                if last is not None and last.answer is not None:
                    return await self._send_whole(last.answer, reply, record)
                raise
            record.worker = worker.id
            try:
                with worker.assigned(call.work):
                    return await self._attempt(worker, call, reply, record)
            except _Failed as failed:
                last = failed
            if not last.may_repeat_here or worker.id in repeated_here:
                tried.add(worker.id)
            repeated_here.add(worker.id)
            log(logging.WARNING, "attempt failed", request_id=call.request_id, worker=worker.id, reason=last.reason)
            if record.retries >= self._settings.retries or not self._budget.withdraw():
                if last.answer is not None:
                    return await self._send_whole(last.answer, reply, record)
                raise unavailable("The workers that could answer failed; try again shortly.")
            record.retries += 1
            self._metrics.retries.labels(last.reason).inc()

    async def _attempt(self, worker: Worker, call: Call, reply: Reply, record: RequestRecord) -> None:
        """One worker. Raises _Failed while nothing was sent to the client; later ApiError."""
        outcome: Outcome = "failed"
        response: aiohttp.ClientResponse | None = None
        stream: _Stream | None = None
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._settings.answer_seconds) as clock:
                with worker.awaited(clock):
                    response = await self._session.post(
                        worker.url + call.path, data=call.body, headers=self._headers(call), allow_redirects=False
                    )
                    if response.status == 200 and response.content_type == "text/event-stream":
                        stream = _Stream(response)
                        first = await stream.next()
                        if not first:
                            raise _Failed("disconnected", may_repeat_here=True)
                    else:
                        answer = await self._whole(response)
                if not reply.started:
                    reply.headers.append((b"x-tephra-version", worker.card.version.encode("ascii", "replace")))
                if stream is None:
                    clock.reschedule(asyncio.get_running_loop().time() + self._settings.send_seconds)
                    await self._send_whole(answer, reply, record)
                else:
                    worker.health.record("ok", time.perf_counter() - began)
                    await self._pass_on(stream, first, clock, reply, record)
            outcome = "ok" if reply.status < 400 else "refused" if reply.status < 500 else "failed"
        except asyncio.CancelledError:
            outcome = "abandoned"
            raise
        except ApiError:
            outcome = "refused"
            raise
        except (aiohttp.ClientError, OSError, FrameTooLong) as error:
            explained = self._explain(error, worker, reply)
            if isinstance(explained, ClientLeft):
                outcome = "abandoned"
            elif isinstance(explained, _Failed) and explained.reason == "connect":
                outcome = "unreachable"
            raise explained from error
        finally:
            if stream is None or outcome != "ok":
                worker.health.record(outcome)
            if response is not None:
                response.close()  # harmless once all was read; else it tells the worker to stop
            if not worker.gone:
                self._metrics.worker_requests.labels(worker.id, outcome).inc()

    def _headers(self, call: Call) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "X-Request-Id": call.request_id}
        if call.tenant:
            headers[TENANT] = call.tenant
        if call.deadline is not None:
            headers[TIMEOUT] = write_timeout(remaining(call.deadline))
        if self._authorization:
            headers["Authorization"] = self._authorization
        return headers

    def _explain(self, error: Exception, worker: Worker, reply: Reply) -> Exception:
        if reply.started:
            if isinstance(error, TimeoutError) and reply.sending:
                return ClientLeft()
            reason = "stalled" if isinstance(error, TimeoutError) else "worker_lost"
            self._metrics.streams_broken.labels(reason).inc()
            what = "sent nothing for too long" if reason == "stalled" else "was lost"
            return ApiError(
                502, f"The worker {what} before the answer was complete.", type="server_error", code="stream_broken"
            )
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            return _Failed("connect")
        if isinstance(error, TimeoutError):
            return _Failed("lease_lost" if worker.lost else "timeout")
        if isinstance(error, aiohttp.ClientPayloadError):
            return _Failed("disconnected")
        if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)):
            # Perhaps only an idle connection that closed under us, so the same worker may be asked once more.
            return _Failed("disconnected", may_repeat_here=True)
        return _Failed("bad_answer")

    async def _whole(self, response: aiohttp.ClientResponse) -> _Answer:
        """Reads an answer that is no stream. Raises _Failed for one that no client should see."""
        limit = self._settings.max_answer_bytes if response.status == 200 else _MAX_ERROR_BODY
        body = bytearray()
        async for chunk in response.content.iter_chunked(_READ_SIZE):
            body += chunk
            if len(body) > limit:
                raise _Failed("bad_answer")
        answer = _Answer(response.status, bytes(body), _passed_headers(response))
        status = response.status
        if status in (401, 403):
            log(logging.ERROR, "a worker refused the controller's secret", status=status)
            raise _Failed("secret_refused")
        if status == 200 and response.content_type == "application/json":
            return answer
        if 400 <= status < 600 and _error_code(answer.body):
            if status in (502, 503, 504) and _error_code(answer.body) != DEADLINE_EXCEEDED:  # which no other can help
                failed = _Failed(f"status_{status}")
                failed.answer = answer
                raise failed
            return answer
        if 400 <= status < 500:
            raise ApiError(status, f"The worker refused the request with status {status}.", code="worker_error")
        raise _Failed("bad_answer")

    async def _send_whole(self, answer: _Answer, reply: Reply, record: RequestRecord) -> None:
        record.first_byte_seconds = record.elapsed
        if answer.status == 200:
            record.ended = "complete"
            self._account(record, _usage(answer.body))
        else:
            record.error = _error_code(answer.body)
        await reply.json(answer.status, answer.body, answer.headers)

    async def _pass_on(
        self, stream: _Stream, frames: bytes, clock: asyncio.Timeout, reply: Reply, record: RequestRecord
    ) -> None:
        loop = asyncio.get_running_loop()
        record.first_byte_seconds = record.elapsed
        self._metrics.ttft.observe(record.first_byte_seconds)
        progress = StreamProgress()
        while frames:
            self._stats.add_tokens(progress.read(frames))
            record.completion_tokens = progress.pieces
            clock.reschedule(loop.time() + self._settings.send_seconds)
            await reply.frames(frames)
            clock.reschedule(loop.time() + self._settings.stall_seconds)
            frames = await stream.next()
        if progress.usage is not None:
            record.prompt_tokens = progress.usage.prompt_tokens
            record.completion_tokens = progress.usage.completion_tokens
        self._metrics.generation_tokens.inc(record.completion_tokens)
        if not progress.complete:
            raise aiohttp.ServerDisconnectedError
        record.ended = "broken" if progress.failed else "complete"
        await reply.end()

    def _account(self, record: RequestRecord, usage: Usage | None) -> None:
        if usage is not None:
            record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
            self._stats.add_tokens(usage.completion_tokens)
            self._metrics.generation_tokens.inc(usage.completion_tokens)


class _Stream:
    """An upstream event stream, in whole frames."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self._cutter = FrameCutter()

    async def next(self) -> bytes:
        """At least one whole frame; empty at the end."""
        while data := await self._content.readany():
            if frames := self._cutter.feed(data):
                return frames
        return b""


def _passed_headers(response: aiohttp.ClientResponse) -> Headers:
    after = response.headers.get("Retry-After", "")
    return [(b"retry-after", after.encode())] if after.isdigit() else []


def _error_code(body: bytes) -> str:
    """The code of an error in OpenAI's shape, or its type; empty where the body has another shape."""
    try:
        detail = msgspec.json.decode(body, type=_ErrorAnswer).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return str(detail.code or detail.type or "error")[:64]


def _usage(body: bytes) -> Usage | None:
    try:
        return msgspec.json.decode(body, type=_Completion).usage
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
