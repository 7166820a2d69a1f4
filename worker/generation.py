"""Runs the answers of one request on the engine and gives out their text as it comes, interleaved.

Whoever stops listening closes the iterator, and every engine request of it is cancelled. It knows nothing of HTTP; its
errors are ApiErrors because they are written for the client.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, cast

from server.protocol.call_headers import deadline_exceeded
from server.protocol.continuing import Told
from server.protocol.errors import ApiError, bad_request, overloaded, unavailable
from worker.answers.answer import Answer, AnswerPiece
from worker.engine.protocol import (
    Engine,
    EngineError,
    EngineFailure,
    EngineOutput,
    EngineOverloaded,
    EngineRequest,
    TokenLogprobs,
)
from worker.grammar.matcher import AnswerMatcher

_AHEAD = 32  # pieces that may wait for a slow client before the engine's own queue takes over


@dataclass(frozen=True)
class Running:
    """One answer in the making. `prompt` says to which of the request's prompts it belongs."""

    request: EngineRequest
    answer: Answer
    prompt: int = 0
    matcher: AnswerMatcher | None = None  # of an answer of a given form
    told: Told | None = None  # what another worker has told of it already


@dataclass(frozen=True)
class TokenCounts:
    prompt: int
    image: int
    cached: int
    completion: int


class Generation:
    """All answers of one request."""

    def __init__(
        self,
        engine: Engine,
        answers: Sequence[Running],
        deadline_seconds: float,
        over: Callable[[Literal["queue", "answer"]], None],
    ) -> None:
        """`over` is told when the time ran out: before the first token or after it."""
        self._engine = engine
        self._answers = answers
        self._deadline_seconds = deadline_seconds
        self._end_at = math.inf
        self._over = over
        self._begun = False
        self._queue_seconds = self._prefill_seconds = 0.0
        self._first_at = self._last_at = 0.0  # by the event loop's clock: of the pieces

    def end_by(self, deadline: float, seconds: float) -> None:
        """Ends by that time of the event loop's clock, if not before; the client had given it so many seconds."""
        self._end_at, self._deadline_seconds = deadline, min(seconds, self._deadline_seconds)

    def replay(self) -> Iterator[tuple[int, AnswerPiece]]:
        """What another worker has given out of answers that it could not finish. Raises ApiError 400.

        To be read to the end before `pieces`. CPU work: it belongs off the event loop.
        """
        for index, running in enumerate(self._answers):
            told = running.told
            if told is None:
                continue
            if told.ended:
                running.answer.completion_tokens = len(told.tokens)
                continue
            for piece in running.answer.replay(
                told.tokens, [TokenLogprobs(s.logprob, tuple(s.top)) for s in told.held]
            ):
                if piece.finish_reason is not None:
                    raise bad_request("The answer to carry on has ended already.", code="continuation_refused")
                yield index, piece

    @property
    def size(self) -> int:
        """How many answers there will be."""
        return len(self._answers)

    def counts(self) -> TokenCounts:
        """Tokens so far. A prompt counts once, however many answers it gets."""
        first = {running.prompt: running for running in reversed(self._answers)}.values()
        return TokenCounts(
            prompt=sum(len(running.request.token_ids) for running in first),
            image=sum(image.layout.tokens for running in first for image in running.request.images),
            cached=sum(running.answer.cached_tokens for running in first),
            completion=sum(running.answer.completion_tokens for running in self._answers),
        )

    @property
    def timings(self) -> dict[str, float]:
        """Seconds so far: the longest wait of any answer for its first step and for its first token, and the time since
        the first piece of them."""
        return {
            "queue": self._queue_seconds,
            "prefill": self._prefill_seconds,
            "decode": self._last_at - self._first_at,
        }

    async def pieces(self) -> AsyncGenerator[tuple[int, AnswerPiece], None]:
        """(answer, piece), until every answer has given its last. Raises ApiError."""
        queue: asyncio.Queue[tuple[int, AnswerPiece] | Exception] = asyncio.Queue(_AHEAD)
        loop = asyncio.get_running_loop()
        deadline = min(loop.time() + self._deadline_seconds, self._end_at)
        pumps = [
            loop.create_task(self._pump(index, running, queue))
            for index, running in enumerate(self._answers)
            if running.told is None or not running.told.ended
        ]
        unfinished = len(pumps)
        try:
            while unfinished:
                item = await self._next(queue, deadline)
                if isinstance(item, Exception):
                    raise item
                self._last_at = loop.time()
                if not self._begun:
                    self._begun, self._first_at = True, self._last_at
                unfinished -= item[1].finish_reason is not None
                yield item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _next(
        self, queue: asyncio.Queue[tuple[int, AnswerPiece] | Exception], deadline: float
    ) -> tuple[int, AnswerPiece] | Exception:
        try:
            async with asyncio.timeout_at(deadline):
                return await queue.get()
        except TimeoutError:
            self._over("answer" if self._begun else "queue")
            return deadline_exceeded(self._deadline_seconds)

    async def _pump(
        self, index: int, running: Running, queue: asyncio.Queue[tuple[int, AnswerPiece] | Exception]
    ) -> None:
        """One answer's engine steps, turned to text; an error goes to the reader, who ends everything."""
        try:
            # Engines write `generate` as an async generator; the protocol promises only an iterator that can be closed.
            steps = cast("AsyncGenerator[EngineOutput, None]", self._engine.generate(running.request))
            async with aclosing(steps):
                async for step in steps:
                    piece = running.answer.take(step)
                    self._queue_seconds = max(self._queue_seconds, step.queue_seconds)
                    self._prefill_seconds = max(self._prefill_seconds, step.prefill_seconds)
                    if piece.finish_reason == "abort":
                        raise unavailable("The worker stopped while it was answering; send the request again.")
                    if piece.finish_reason is not None and running.matcher is not None and running.matcher.failure:
                        raise bad_request(f"The answer was given up: {running.matcher.failure}.", code="grammar_failed")
                    if not piece.empty:
                        await queue.put((index, piece))
                    if piece.finish_reason is not None:
                        return
            raise unavailable("The engine ended the answer half way; send the request again.")
        except EngineError as error:
            await queue.put(self._told(error, running.answer))
        except Exception as error:
            await queue.put(error)

    def _told(self, error: EngineError, answer: Answer) -> ApiError:
        if isinstance(error, EngineOverloaded):
            return overloaded(str(error), error.retry_after)
        if isinstance(error, EngineFailure):  # 503, so that whoever stands in front asks another worker
            return ApiError(503, str(error), type="server_error", code="engine_error", headers={"Retry-After": "1"})
        if answer.completion_tokens or not self._engine.healthy:
            return ApiError(500, str(error), type="server_error", code="engine_error")
        return bad_request(str(error), code="engine_refused")
