"""Carries a request to a worker and its answer back.

Until the first byte of an answer has gone to the client, a failed attempt is repeated at another worker, within a
budget; after it, another worker of the same version carries the stream on from the tokens already sent, where the
workers can do that (`server.protocol.continuing`), and else it ends with an error event. It knows nothing of prompts
or pictures. Cancelling the task that runs `answer` closes the connection to the worker at once, which is how the work
there is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from server.carry_over import CarryOver
from server.deadline import remaining
from server.health.worker import Outcome
from server.logs import log
from server.metrics import Metrics
from server.probes import Probes
from server.protocol.call_headers import DEADLINE_EXCEEDED, TENANT, TIMEOUT, TIMINGS, read_timings, write_timeout
from server.protocol.continuing import ALIVE_SECONDS, CONTINUE, RESUMABLE
from server.protocol.errors import ApiError, unavailable
from server.quarantine import Case, Quarantine
from server.registry.table import Worker
from server.reply import Reply
from server.retries import RetryBudget
from server.routing.base import Work
from server.routing.router import Router
from server.settings import Settings
from server.sse import DONE_FRAME, FrameTooLong, StreamProgress
from server.stats import RequestRecord, Stats
from server.upstream import Failed, Stream, WholeAnswer, read_whole
from server.watch import ClientLeft
from server.worker_client import Answer, Garbled, Lost, Unreachable, WorkerClient

_KEEP_ALIVE = 4.0  # seconds: shorter than any server's, so that an idle connection is rarely closed under us
_FIRST_PAUSE = 0.2  # seconds until a worker is looked for again that could carry on a stream; doubled each time
_MISSED = 3  # signs of life that a stream may miss


@dataclass(frozen=True)
class Call:
    """What goes to a worker."""

    request_id: str
    path: str
    body: bytes
    model: str
    work: Work
    tenant: str = ""  # whose caches it may use; empty: everybody's
    deadline: float | None = None  # by the event loop's clock
    version: str | None = None  # of the model, that the answer must be computed on; None: any


@dataclass
class _Journey:
    """One request's way through the workers."""

    call: Call
    reply: Reply
    record: RequestRecord
    case: Case
    tried: set[str] = field(default_factory=set)
    repeated_at: set[str] = field(default_factory=set)
    last: Failed | None = None
    carry: CarryOver = field(default_factory=CarryOver)
    progress: StreamProgress = field(default_factory=StreamProgress)
    broken: str = ""  # why the stream waits to be carried on
    state: bytes = b""  # what the next worker is told of it
    legs: int = 0  # workers that have sent a part of the stream
    give_up_at: float = 0.0  # by the event loop's clock
    pause: float = _FIRST_PAUSE
    text_at: float | None = None  # when the last text came, by the performance counter


class Relay:
    """start() ... answer() ... stop()"""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        metrics: Metrics,
        stats: Stats,
        worker_secret: str | None,
        quarantine: Quarantine,
    ) -> None:
        self._settings = settings
        self._router = router
        self._metrics = metrics
        self._stats = stats
        self._quarantine = quarantine
        self._budget = RetryBudget(settings.max_inflight)
        self._probes = Probes(settings.lease_seconds / 2, settings.lease_seconds)
        self._silence = max(settings.lease_seconds, _MISSED * ALIVE_SECONDS)
        self._client = WorkerClient(settings.connect_seconds, _KEEP_ALIVE)  # unbounded: `admission.Room` bounds it
        self._authorization = f"Bearer {worker_secret}" if worker_secret else ""

    async def start(self) -> None:
        await self._probes.start()
        await self._quarantine.start()

    async def stop(self) -> None:
        await self._quarantine.stop()
        await self._probes.stop()
        await self._client.close()

    async def answer(self, call: Call, reply: Reply, record: RequestRecord) -> None:
        """Raises ApiError when no worker could answer or a stream broke (`reply.started` tells which), ClientLeft when
        the client takes nothing any more."""
        case = await self._quarantine.open(call.path, call.body, call.request_id)
        journey = _Journey(call, reply, record, case)
        self._budget.deposit()
        try:
            while True:
                worker = await self._next_worker(journey)
                if worker is None:
                    assert journey.last is not None and journey.last.answer is not None
                    return await self._send_whole(journey.last.answer, journey)
                record.worker, record.version = worker.id, worker.card.version
                if not reply.started:
                    record.lost_seconds = record.elapsed - record.prepare_seconds
                try:
                    with worker.assigned(call.work):
                        await self._attempt(worker, journey)
                    return await case.answered()
                except Failed as failed:
                    journey.last = failed
                if await self._is_over(journey.last, worker, journey):
                    return
        except ApiError:
            await case.failed()
            raise
        finally:
            if journey.legs:
                self._take_usage(journey)

    async def _next_worker(self, journey: _Journey) -> Worker | None:
        """None: nobody is left to ask, and a worker's refusal is to be passed on. Raises ApiError."""
        call, reply = journey.call, journey.reply
        version = journey.carry.version if reply.started else call.version
        while True:
            try:
                return self._router.choose(call.model, call.work, journey.tried, version)
            except ApiError:
                if not reply.started:
                    if journey.last is not None and journey.last.answer is not None:
                        return None
                    raise
                if asyncio.get_running_loop().time() + journey.pause > journey.give_up_at:
                    raise self._broken(journey) from None
            await asyncio.sleep(journey.pause)  # one may come back, or have room again
            journey.pause *= 2
            journey.tried.clear()

    async def _is_over(self, failed: Failed, worker: Worker, journey: _Journey) -> bool:
        """What follows from a failed attempt: whether the answer is complete all the same. Raises ApiError."""
        call, reply, record = journey.call, journey.reply, journey.record
        log(logging.WARNING, "attempt failed", request_id=call.request_id, worker=worker.id, reason=failed.reason)
        if failed.died:
            try:
                await journey.case.died(worker)
            except ApiError:
                if reply.started:
                    journey.broken = failed.reason
                    self._broken(journey)
                raise
        if not failed.may_repeat_here or worker.id in journey.repeated_at:
            journey.tried.add(worker.id)
        journey.repeated_at.add(worker.id)
        if reply.started:
            return await self._is_over_in_stream(failed, worker, journey)
        if record.retries >= self._settings.retries or not self._budget.withdraw():
            if failed.answer is not None:
                await self._send_whole(failed.answer, journey)
                return True
            raise unavailable("The workers that could answer failed; try again shortly.")
        record.retries += 1
        self._metrics.retries.labels(failed.reason).inc()
        return False

    async def _is_over_in_stream(self, failed: Failed, worker: Worker, journey: _Journey) -> bool:
        if journey.progress.usage is not None:  # the last that a stream tells: only the end mark is missing
            await journey.reply.frames(DONE_FRAME)
            await self._end(journey)
            return True
        if journey.broken:
            return False  # a worker that could not even begin to carry on; the next may
        journey.broken = failed.reason
        journey.state = journey.carry.continuation() if journey.legs <= self._settings.carry_overs else b""
        if not journey.state or not self._budget.withdraw():
            error = self._broken(journey)
            if not failed.frame:
                raise error
            journey.progress.failed = True
            await journey.reply.frames(failed.frame)
            await self._end(journey)
            return True
        journey.tried = {worker.id}
        journey.give_up_at = asyncio.get_running_loop().time() + self._settings.lease_seconds
        journey.pause = _FIRST_PAUSE
        return False

    async def _attempt(self, worker: Worker, journey: _Journey) -> None:
        """One worker. Raises Failed when another may be asked, ApiError, ClientLeft."""
        call, reply = journey.call, journey.reply
        outcome: Outcome = "failed"
        response: Answer | None = None
        stream: Stream | None = None
        began = time.perf_counter()
        unreachable = False
        flowing = False
        try:
            async with asyncio.timeout(self._settings.answer_seconds) as clock:

                def give_up() -> None:
                    nonlocal unreachable
                    unreachable = True
                    clock.reschedule(asyncio.get_running_loop().time())

                with worker.awaited(clock), self._probes.watching(worker, give_up):
                    headers, body = self._message(journey)
                    response = await self._client.post(worker.url, call.path, headers, body)
                    if response.status == 200 and response.content_type == "text/event-stream":
                        stream = Stream(response)
                        first = await stream.next()
                        if not first:
                            raise Failed("disconnected", died=True, may_repeat_here=True)
                    else:
                        answer = await read_whole(response, self._settings.max_answer_bytes)
                expired = stream is None and answer.error_code == DEADLINE_EXCEEDED
                if reply.started and (stream is None or not stream.resumable):
                    outcome = "expired" if expired else "failed"
                    raise Failed(f"status_{response.status}")
                if not reply.started:
                    _note_timings(response, journey.record)
                    reply.headers.append((b"x-tephra-version", worker.card.version.encode("ascii", "replace")))
                if stream is None:
                    clock.reschedule(asyncio.get_running_loop().time() + self._settings.send_seconds)
                    await self._send_whole(answer, journey)
                else:
                    worker.health.record("ok", time.perf_counter() - began)
                    flowing = True
                    await self._pass_on(stream, first, clock, journey)
            outcome = _outcome(reply.status, expired=expired)
        except asyncio.CancelledError:
            outcome = "abandoned"
            raise
        except ApiError as error:
            outcome = "refused"
            if reply.started:
                raise Failed(f"status_{error.status}") from error
            raise
        except (OSError, Garbled, FrameTooLong) as error:
            if isinstance(error, TimeoutError) and reply.sending:
                outcome = "abandoned"
                raise ClientLeft from error
            failed = _explain(error, worker, flowing=flowing, unreachable=unreachable)
            if failed.reason in ("connect", "unreachable"):
                outcome = "unreachable"
            raise failed from error
        finally:
            if stream is None or outcome != "ok":
                worker.health.record(outcome)
            if response is not None:
                response.close()  # harmless once all was read; else it tells the worker to stop
            if not worker.gone:
                self._metrics.worker_requests.labels(worker.id, outcome).inc()

    def _message(self, journey: _Journey) -> tuple[dict[str, str], tuple[bytes, ...]]:
        """Headers and body for a worker."""
        call = journey.call
        headers = {"Content-Type": "application/json", "X-Request-Id": call.request_id, RESUMABLE: "1"}
        if call.tenant:
            headers[TENANT] = call.tenant
        if call.deadline is not None:
            headers[TIMEOUT] = write_timeout(remaining(call.deadline))
        if self._authorization:
            headers["Authorization"] = self._authorization
        if not journey.state:
            return headers, (call.body,)
        headers[CONTINUE] = str(len(journey.state))
        return headers, (journey.state, call.body)

    async def _send_whole(self, answer: WholeAnswer, journey: _Journey) -> None:
        record = journey.record
        record.first_byte_seconds = record.elapsed
        if answer.status == 200:
            record.ended = "complete"
            usage = answer.completion.usage if answer.completion else None
            if usage is not None:
                record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
                self._stats.add_tokens(usage.completion_tokens)
                self._metrics.generation_tokens.inc(usage.completion_tokens)
        else:
            record.error = answer.error_code
        await journey.reply.json(answer.status, answer.body, answer.headers)

    async def _pass_on(self, stream: Stream, frames: bytes, clock: asyncio.Timeout, journey: _Journey) -> None:
        """Raises Failed, and what `Stream.next` raises."""
        loop, progress, reply, record = asyncio.get_running_loop(), journey.progress, journey.reply, journey.record
        silence = self._silence if stream.resumable else self._settings.stall_seconds
        while frames:
            pieces = progress.read(frames)
            if progress.garbled:
                progress.garbled = False
                raise Failed("bad_answer")
            if stream.resumable:
                frames = journey.carry.take(frames)
            failure = b""
            if progress.failed and stream.resumable and progress.error_code in _WORKERS_OWN:
                progress.failed = False
                frames, failure = _split_last(frames)
            if frames:
                self._note_begin(pieces, journey)
                if pieces:
                    before, journey.text_at = journey.text_at, time.perf_counter()
                    self._stats.add_tokens(pieces, None if before is None else journey.text_at - before)
                record.completion_tokens = progress.pieces
                clock.reschedule(loop.time() + self._settings.send_seconds)
                await reply.frames(frames, last=progress.done and not failure and stream.over)
                if progress.done and not progress.failed:
                    record.ended = "complete"  # clients close at the end mark, before the connection to the worker ends
            if failure:
                failed = Failed("worker_error")
                failed.frame = failure
                raise failed
            clock.reschedule(loop.time() + silence)
            frames = await stream.next()
        if not (progress.done or progress.failed or (progress.complete and not stream.resumable)):
            raise Lost(begun=True)
        await self._end(journey)

    def _note_begin(self, pieces: int, journey: _Journey) -> None:
        """Of an answer, or of what another worker adds to it."""
        record = journey.record
        if pieces:
            journey.case.progressed()
        if not journey.legs:
            record.first_byte_seconds = record.elapsed
            self._metrics.ttft.observe(record.first_byte_seconds)
        elif not journey.broken:
            return
        else:
            record.carried_over += 1
            self._metrics.streams_carried_over.labels(journey.broken).inc()
            log(
                logging.WARNING,
                "stream carried over",
                request_id=record.id,
                worker=record.worker,
                reason=journey.broken,
                times=record.carried_over,
            )
            journey.broken = ""
        journey.legs += 1

    async def _end(self, journey: _Journey) -> None:
        journey.record.ended = "broken" if journey.progress.failed else "complete"
        await journey.reply.end()

    def _take_usage(self, journey: _Journey) -> None:
        progress, record = journey.progress, journey.record
        record.completion_tokens = progress.pieces
        if progress.usage is not None:
            record.prompt_tokens = progress.usage.prompt_tokens
            record.completion_tokens = progress.usage.completion_tokens
        self._metrics.generation_tokens.inc(record.completion_tokens)

    def _broken(self, journey: _Journey) -> ApiError:
        """The end of a stream that nobody can carry on."""
        self._metrics.streams_broken.labels(journey.broken).inc()
        what = "sent nothing for too long" if journey.broken == "stalled" else "was lost"
        return ApiError(
            502, f"The worker {what} before the answer was complete.", type="server_error", code="stream_broken"
        )


def _outcome(status: int, *, expired: bool) -> Outcome:
    """Of an answer that was passed on. The client's time being over is none of the worker's faults."""
    if expired:
        return "expired"
    return "ok" if status < 400 else "refused" if status < 500 else "failed"


def _note_timings(response: Answer, record: RequestRecord) -> None:
    told = read_timings(response.header(TIMINGS))
    record.queue_seconds, record.prefill_seconds = told.get("queue", 0.0), told.get("prefill", 0.0)
    record.decode_seconds = told.get("decode", 0.0)


# Errors by which a worker says that it cannot go on, while another could.
_WORKERS_OWN = ("unavailable", "engine_error")


def _explain(error: Exception, worker: Worker, *, flowing: bool, unreachable: bool) -> Failed:
    if isinstance(error, FrameTooLong):
        return Failed("bad_answer")
    if flowing:
        return Failed("stalled") if isinstance(error, TimeoutError) else Failed("worker_lost", died=True)
    if isinstance(error, Unreachable):
        return Failed("connect")
    if isinstance(error, TimeoutError):
        if unreachable:
            return Failed("unreachable")
        return Failed("lease_lost", died=True) if worker.lost else Failed("timeout")
    if isinstance(error, Lost):
        # Perhaps only an idle connection that closed under us: then the same worker may be asked once more.
        return Failed("disconnected", died=True, may_repeat_here=not error.begun)
    return Failed("bad_answer")


def _split_last(frames: bytes) -> tuple[bytes, bytes]:
    """(all frames but the last, the last)."""
    end = frames.rstrip(b"\n").rfind(b"\n\n") + 2
    return (frames[:end], frames[end:]) if end > 1 else (b"", frames)
