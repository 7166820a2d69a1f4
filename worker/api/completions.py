"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.protocol.openai import ChatCompletion, ChatCompletionRequest, Completion, CompletionRequest
from worker.answers.answer import AnswerPiece
from worker.api.body import body_route
from worker.api.documentation import CHAT_RESPONSES, TEXT_RESPONSES
from worker.api.responses import DONE, EventStream, json_response, sse_frame, unless_gone
from worker.api.shapes import AnswerHeader, AnswerShape, CallShape, ChatShape, CompletionShape, usage_json
from worker.generation import Generation
from worker.service import Service, call_reader, new_answer_id, unix_now

Pieces = AsyncGenerator[tuple[int, AnswerPiece], None]


def completion_routes(service: Service) -> APIRouter:
    limits = service.limits
    router = APIRouter(route_class=body_route(limits.max_body_bytes, limits.body_seconds), tags=["OpenAI"])

    async def chat_completions(request: Request, body: ChatCompletionRequest) -> Any:
        """Answers a conversation, with pictures where the model sees."""
        calling = service.calling(body)
        calls = CallShape(lambda: call_reader(calling), named=calling.named) if calling is not None else None
        shape = ChatShape(_header(service, "chatcmpl"), scored=bool(body.logprobs), calls=calls)
        return await _respond(request, body, shape, lambda: service.chat(body, request.state.slot, calling))

    async def completions(request: Request, body: CompletionRequest) -> Any:
        """Continues raw text; no chat template, no pictures."""
        shape = CompletionShape(_header(service, "cmpl"), scored=body.logprobs is not None)
        return await _respond(request, body, shape, lambda: service.complete(body))

    router.post("/v1/chat/completions", response_model=ChatCompletion, responses=CHAT_RESPONSES)(chat_completions)
    router.post("/v1/completions", response_model=Completion, responses=TEXT_RESPONSES)(completions)
    return router


def _header(service: Service, prefix: str) -> AnswerHeader:
    return AnswerHeader(new_answer_id(prefix), unix_now(), service.card.name, service.card.version)


async def _respond(
    request: Request,
    body: ChatCompletionRequest | CompletionRequest,
    shape: AnswerShape,
    prepare: Callable[[], Awaitable[Generation]],
) -> Response:
    if not body.stream:
        return json_response(await unless_gone(request, _whole(shape, prepare)))
    stream = await unless_gone(request, _begin(shape, prepare, body.include_usage))
    return EventStream(stream.frames(), stream.close, request.state.request_id)


async def _whole(shape: AnswerShape, prepare: Callable[[], Awaitable[Generation]]) -> dict[str, Any]:
    generation = await prepare()
    answers: list[list[AnswerPiece]] = [[] for _ in range(generation.size)]
    async with aclosing(generation.pieces()) as pieces:
        async for index, piece in pieces:
            answers[index].append(piece)
    return shape.whole(answers, generation.counts())


async def _begin(
    shape: AnswerShape, prepare: Callable[[], Awaitable[Generation]], include_usage: bool
) -> _AnswerStream:
    """Waits for the first token, so that whatever goes wrong before it is told by a proper status."""
    generation = await prepare()
    pieces = generation.pieces()
    return _AnswerStream(shape, generation, await anext(pieces), pieces, include_usage)


class _AnswerStream:
    """A response on its way, as event frames."""

    def __init__(
        self,
        shape: AnswerShape,
        generation: Generation,
        first: tuple[int, AnswerPiece],
        rest: Pieces,
        include_usage: bool,
    ) -> None:
        self._shape = shape
        self._generation = generation
        self._first = first
        self._rest = rest
        self._include_usage = include_usage

    async def frames(self) -> AsyncGenerator[bytes, None]:
        for index in range(self._generation.size):
            if (opening := self._shape.opening(index)) is not None:
                yield self._frame(opening)
        if (choice := self._shape.piece(*self._first)) is not None:
            yield self._frame(choice)
        async for index, piece in self._rest:
            if (choice := self._shape.piece(index, piece)) is not None:
                yield self._frame(choice)
        if self._include_usage:
            yield sse_frame(self._shape.chunk([], usage_json(self._generation.counts())))
        yield DONE

    async def close(self) -> None:
        await self._rest.aclose()

    def _frame(self, choice: dict[str, Any]) -> bytes:
        chunk = self._shape.chunk([choice])
        if self._include_usage:
            chunk["usage"] = None  # OpenAI's chunks carry the field once usage was asked for
        return sse_frame(chunk)
