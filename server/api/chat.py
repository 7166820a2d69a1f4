"""POST /v1/chat/completions and /v1/completions: from the socket to the relay, around FastAPI's per-request machinery.

The body goes on as it came unless a picture had to be fetched. Its full validation is the worker's: here is checked
only what decides about safety, cost and the way.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from server.admission import Place, image_tokens
from server.api import affinity
from server.api.body import parse_off_loop, read_body, require_json
from server.api.wishes import Served, Wishes, find_served, read_wishes
from server.auth import ApiKey
from server.controller import Controller
from server.deadline import Deadline
from server.limits.limiter import Grant
from server.logs import log, log_exception, logs
from server.media.images import find_images, run_sized
from server.protocol.call_headers import DEADLINE_EXCEEDED
from server.protocol.errors import ApiError, bad_request, internal_error, too_large, unavailable
from server.protocol.openai.bounds import check_bounds, check_context
from server.protocol.registration import ModelCard
from server.relay import Call
from server.reply import REQUEST_ID, Reply
from server.routing.base import Work
from server.stats import RequestRecord
from server.watch import ClientLeft, ControllerStopping

_BYTES_PER_TOKEN = 4  # of text, for routing's estimate
_EXPECTED_ANSWER = 256  # tokens, where the request sets no limit
_MAX_EXPECTED = 1 << 20

# Fields with which another server behind us would run a template or a loader of the client's choosing.
_REFUSED_FIELDS = ("chat_template", "mm_processor_kwargs", "media_io_kwargs")


class GenerationRoute:
    """An ASGI application for one path."""

    def __init__(self, controller: Controller, path: str, *, chat: bool) -> None:
        self._controller = controller
        self._path = path
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        controller = self._controller
        reply = Reply(scope, send)
        record = RequestRecord(id=scope[REQUEST_ID], route=self._path)
        try:
            await self._answer(scope, receive, reply, record)
        except ClientLeft:
            if not (reply.streaming and record.ended == "complete"):
                record.ended = "client_left"
                controller.metrics.client_disconnects.inc()
        except ControllerStopping:
            await self._fail(unavailable("The server is stopping."), reply, record)
        except ApiError as error:
            await self._fail(error, reply, record)
        except Exception:
            log_exception("request failed", request_id=record.id, path=self._path)
            await self._fail(internal_error(record.id), reply, record)
        finally:
            self._close(reply, record)

    async def _answer(self, scope: Scope, receive: Receive, reply: Reply, record: RequestRecord) -> None:
        controller, settings, headers = self._controller, self._controller.settings, scope["headers"]
        key = controller.client_auth.check(headers)
        record.key = key.name
        wishes = read_wishes(headers, key.tenant)
        record.asked_version, record.session = wishes.version, wishes.session
        require_json(headers)
        if controller.stopping:
            raise unavailable("The server is stopping.")
        deadline = Deadline(headers, settings.request_seconds, record.elapsed)
        with controller.room.enter() as place, controller.limiter.enter(key) as grant:
            reply.headers = grant.headers
            async with deadline:
                body = await read_body(
                    headers,
                    receive,
                    limit=settings.max_body_bytes,
                    seconds=settings.body_seconds,
                    reserve=place.reserve,
                )
                async with controller.watches.watch(scope, receive):
                    await self._handle(body, place, grant, deadline, reply, record)

    async def _handle(
        self, body: bytes, place: Place, grant: Grant, deadline: Deadline, reply: Reply, record: RequestRecord
    ) -> None:
        call = await self._prepare(body, place, grant, deadline, record)
        record.prepare_seconds = record.elapsed
        await self._relay(call, place, grant, reply, record)

    async def _relay(self, call: Call, place: Place, grant: Grant, reply: Reply, record: RequestRecord) -> None:
        cut_off = False
        try:
            await self._controller.relay.answer(call, reply, record)
        except asyncio.CancelledError:
            cut_off = True
            raise
        finally:
            place.answered = reply.status == 200
            grant.used(_tokens_used(call.work, reply, record, cut_off=cut_off))

    async def _prepare(
        self, body: bytes, place: Place, grant: Grant, deadline: Deadline, record: RequestRecord
    ) -> Call:
        """Raises ApiError for what can be refused without asking a worker."""
        controller = self._controller
        payload = await parse_off_loop(controller.pool, body)
        for field in _REFUSED_FIELDS:
            if payload.get(field) is not None:
                raise bad_request(f"{field} is not accepted.", param=field, code="unsupported_parameter")
        stream = payload.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise bad_request("stream: expected true or false", param="stream")
        record.stream = bool(stream)
        check_bounds(payload)
        served = self._served(payload.get("model"), grant.key, record)
        card = served.card
        record.model = card.name
        controller.room.check_queue(served.workers)
        rewritten = payload["model"] != card.name
        payload["model"] = card.name
        references = find_images(payload.get("messages")) if self._has_messages(payload) else []
        text_bytes = len(body) - sum(len(reference.url) for reference in references)
        work = self._estimate(payload, max(0, text_bytes) // _BYTES_PER_TOKEN)
        await grant.take(requests=1, tokens=work.tokens, images=len(references))
        tokens = 0
        shared = affinity.of_text(payload, grant.key.tenant)
        if references:
            images = await controller.images.resolve(references, card.max_images, place.reserve, grant.key.tenant)
            tokens = image_tokens(card, images.headers)
            record.images = len(references)
            await grant.take(tokens=tokens)
            rewritten |= images.rewritten
            shared = affinity.of_pictures(references, tokens, grant.key.tenant)
        if rewritten:
            body = await run_sized(controller.pool, len(body), partial(orjson.dumps, payload))
            if len(body) > (most := controller.settings.max_body_bytes):
                raise too_large(f"With its pictures the request is larger than {most} bytes.")
        self._check_context(payload, tokens, card)
        work = Work(
            min(work.prompt_tokens + tokens, _MAX_EXPECTED),
            work.answer_tokens,
            affinity=shared.digest,
            reusable_tokens=shared.tokens,
            session=record.session.encode(),
        )
        return Call(
            record.id,
            self._path,
            body,
            card.name,
            work,
            tenant=grant.key.tenant,
            deadline=deadline.at,
            version=served.version,
        )

    def _card_of(self, model: object, key: ApiKey, record: RequestRecord) -> ModelCard:
        return self._served(model, key, record).card

    def _has_messages(self, payload: dict[str, Any]) -> bool:
        return self._chat

    def _estimate(self, payload: dict[str, Any], prompt_tokens: int) -> Work:
        return _estimate(payload, prompt_tokens)

    def _check_context(self, payload: dict[str, Any], image_tokens: int, card: ModelCard) -> None:
        check_context(payload, image_tokens, card.context_length)

    def _served(self, model: object, key: ApiKey, record: RequestRecord) -> Served:
        return find_served(
            self._controller.table, model, Wishes(record.asked_version, record.session), key.require_model
        )

    async def _fail(self, error: ApiError, reply: Reply, record: RequestRecord) -> None:
        if error.code == DEADLINE_EXCEEDED:
            self._controller.metrics.deadlines_exceeded.inc()
        record.error = error.code or error.type
        record.ended = "broken" if reply.started else "error"
        try:
            async with asyncio.timeout(self._controller.settings.send_seconds):
                await reply.error(error)
        except TimeoutError:
            record.ended = "client_left"  # it takes nothing any more

    def _close(self, reply: Reply, record: RequestRecord) -> None:
        controller = self._controller
        record.seconds, record.send_seconds = record.elapsed, reply.send_seconds
        record.status = reply.status or 499  # as proxies log a client that left before an answer began
        controller.stats.add(record)
        controller.metrics.requests.labels(self._path, str(record.status)).inc()
        controller.metrics.latency.labels(self._path).observe(record.seconds)
        if not logs(logging.INFO):
            return
        log(
            logging.INFO,
            "request",
            request_id=record.id,
            path=self._path,
            key=record.key,
            status=record.status,
            ended=record.ended,
            model=record.model,
            worker=record.worker,
            version=record.version,
            stream=record.stream,
            images=record.images,
            retries=record.retries,
            carried_over=record.carried_over,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            first_byte_ms=round(record.first_byte_seconds * 1000, 1),
            ms=round(record.seconds * 1000, 1),
            phases_ms={name: round(seconds * 1000, 1) for name, seconds in record.phases().items() if seconds},
            error=record.error,
        )


def _estimate(payload: dict[str, Any], prompt_tokens: int) -> Work:
    """What the request may cost, for routing. Fields that make no sense count as absent: the worker refuses them."""
    answers = _count(payload.get("n"), 1)
    limit = _count(payload.get("max_completion_tokens"), 0) or _count(payload.get("max_tokens"), _EXPECTED_ANSWER)
    return Work(min(prompt_tokens, _MAX_EXPECTED), min(limit * answers, _MAX_EXPECTED))


def _tokens_used(work: Work, reply: Reply, record: RequestRecord, *, cut_off: bool) -> int:
    """What a request that went to a worker did cost: as the worker reported it, else as far as it can be known."""
    if record.prompt_tokens:
        return record.prompt_tokens + record.completion_tokens
    if reply.streaming:
        return work.prompt_tokens + record.completion_tokens
    # An answer that nobody waited for may have been computed to its end; an error was not computed.
    return work.tokens if cut_off or reply.status == 200 else 0


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
