"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.protocol.call_headers import TIMINGS, write_timings
from server.protocol.continuing import Beginning
from server.protocol.openai import ChatCompletion, ChatCompletionRequest, Completion, CompletionRequest
from worker.answers.answer import NOTHING, AnswerPiece
from worker.api.body import body_route
from worker.api.continuing import Journey, Trail
from worker.api.documentation import CHAT_RESPONSES, TEXT_RESPONSES
from worker.api.responses import DONE, EventStream, json_response, sse_frame, unless_gone
from worker.api.shapes import AnswerHeader, AnswerShape, CallShape, ChatShape, CompletionShape, usage_json
from worker.generation import Generation
from worker.service import Service, call_reader, new_answer_id, unix_now
from worker.terms import Terms

Pieces = AsyncGenerator[tuple[int, AnswerPiece], None]


def completion_routes(service: Service) -> APIRouter:
    limits = service.limits
    router = APIRouter(route_class=body_route(limits.max_body_bytes, limits.body_seconds), tags=["OpenAI"])

    async def chat_completions(request: Request, body: ChatCompletionRequest) -> Any:
        """Answers a conversation, with pictures where the model sees."""
        calling = service.calling(body)
        calls = CallShape(lambda: call_reader(calling), named=calling.named) if calling is not None else None
        journey = Journey(request, body, service)
        terms: Terms = request.state.terms
        body = terms.salted(journey.with_seed(body))
        shape = ChatShape(_header(service, "chatcmpl", journey), scored=bool(body.logprobs), calls=calls)
        return await _respond(
            request,
            body,
            shape,
            journey,
            lambda: terms.prepare(
                service.chat(body, request.state.slot, calling, journey.told), service.metrics.deadline_exceeded
            ),
        )

    async def completions(request: Request, body: CompletionRequest) -> Any:
        """Continues raw text; no chat template, no pictures."""
        journey = Journey(request, body, service)
        terms: Terms = request.state.terms
        body = terms.salted(journey.with_seed(body))
        shape = CompletionShape(_header(service, "cmpl", journey), scored=body.logprobs is not None)
        return await _respond(
            request,
            body,
            shape,
            journey,
            lambda: terms.prepare(service.complete(body, journey.told), service.metrics.deadline_exceeded),
        )

    router.post("/v1/chat/completions", response_model=ChatCompletion, responses=CHAT_RESPONSES)(chat_completions)
    router.post("/v1/completions", response_model=Completion, responses=TEXT_RESPONSES)(completions)
    return router


def _header(service: Service, prefix: str, journey: Journey) -> AnswerHeader:
    card, before = service.card, journey.continuation
    if before is not None:
        return AnswerHeader(before.beginning.id, before.beginning.created, card.name, card.version)
    return AnswerHeader(new_answer_id(prefix), unix_now(), card.name, card.version)


async def _respond(
    request: Request,
    body: ChatCompletionRequest | CompletionRequest,
    shape: AnswerShape,
    journey: Journey,
    prepare: Callable[[], Awaitable[Generation]],
) -> Response:
    if not body.stream:
        content, timings = await unless_gone(request, _whole(shape, prepare))
        return json_response(content, headers={TIMINGS: write_timings(timings)})
    trail = None
    if journey.resumable:
        header = shape.header
        trail = Trail(Beginning(header.id, header.created, header.version, body.seed or 0))
    stream = await unless_gone(request, _begin(shape, prepare, trail, journey.told, body.include_usage))
    response = EventStream(stream.frames(), stream.close, request.state.request_id, resumable=journey.resumable)
    response.headers[TIMINGS] = write_timings(stream.timings)
    return response


async def _whole(
    shape: AnswerShape, prepare: Callable[[], Awaitable[Generation]]
) -> tuple[dict[str, Any], Mapping[str, float]]:
    """The answer, and where its time went."""
    generation = await prepare()
    answers: list[list[AnswerPiece]] = [[] for _ in range(generation.size)]
    async with aclosing(generation.pieces()) as pieces:
        async for index, piece in pieces:
            answers[index].append(piece)
    return shape.whole(answers, generation.counts()), generation.timings


async def _begin(
    shape: AnswerShape,
    prepare: Callable[[], Awaitable[Generation]],
    trail: Trail | None,
    told: Container[int],
    include_usage: bool,
) -> _AnswerStream:
    """Waits for the first token, so that whatever goes wrong before it is told by a proper status."""
    generation = await prepare()
    if told:
        await asyncio.to_thread(_replay, generation, shape)
    pieces = generation.pieces()
    first = await anext(pieces, None)  # None: every answer had ended before the stream was carried on
    return _AnswerStream(shape, generation, first, pieces, trail, told, include_usage)


def _replay(generation: Generation, shape: AnswerShape) -> None:
    """Brings the shape to where the client is: what it was told is not told again."""
    for index, piece in generation.replay():
        shape.piece(index, piece)


class _AnswerStream:
    """A response on its way, as event frames."""

    def __init__(
        self,
        shape: AnswerShape,
        generation: Generation,
        first: tuple[int, AnswerPiece] | None,
        rest: Pieces,
        trail: Trail | None,
        told: Container[int],
        include_usage: bool,
    ) -> None:
        self._shape = shape
        self._generation = generation
        self._first = first
        self._rest = rest
        self._trail = trail
        self._told = told  # the answers that another worker has begun
        self._include_usage = include_usage

    async def frames(self) -> AsyncGenerator[bytes, None]:
        for index in range(self._generation.size):
            if index not in self._told and (opening := self._shape.opening(index)) is not None:
                yield self._frame(opening, index, NOTHING)
        if self._first is not None and (frame := self._tell(*self._first)):
            yield frame
        async for index, piece in self._rest:
            if frame := self._tell(index, piece):
                yield frame
        if self._include_usage:
            yield sse_frame(self._shape.chunk([], usage_json(self._generation.counts())))
        yield DONE

    @property
    def timings(self) -> Mapping[str, float]:
        """Until the first token."""
        return {name: seconds for name, seconds in self._generation.timings.items() if name != "decode"}

    async def close(self) -> None:
        await self._rest.aclose()

    def _tell(self, index: int, piece: AnswerPiece) -> bytes:
        """Empty where the piece has nothing to tell yet."""
        choice = self._shape.piece(index, piece)
        if choice is not None:
            return self._frame(choice, index, piece)
        if self._trail is not None:
            self._trail.add(index, piece)
        return b""

    def _frame(self, choice: dict[str, Any], index: int, piece: AnswerPiece) -> bytes:
        chunk = self._shape.chunk([choice])
        if self._include_usage:
            chunk["usage"] = None  # OpenAI's chunks carry the field once usage was asked for
        frame = sse_frame(chunk)
        return frame if self._trail is None else self._trail.lines(index, piece) + frame
