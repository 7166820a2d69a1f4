"""Gets one answer: through the budget, the journal and the endpoint's moods.

Each attempt is journalled before it leaves and after it ends. What fails is tried again with waits that grow, or as
long as the endpoint asks for; a wait that it asks for holds all requests, not one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

import msgspec

from training.data.instruct.budget import Budget, Tokens, prompt_bound
from training.data.instruct.endpoint import AskAgain, Endpoint, EndpointError, RequestRefused
from training.data.instruct.journal import Answered, Failed, Journal, Sent

LONGEST_WAIT = 60.0  # seconds between two attempts, unless the endpoint asks for more
LONGEST_ASKED = 900.0  # seconds: an endpoint that asks for more ends the run


class Unreached(Exception):
    """No answer after all attempts; a later run may get one."""


@dataclass(frozen=True)
class Patience:
    attempts: int = 6
    first_wait: float = 1.0  # seconds; doubles with each attempt, and is drawn between half and all of it


class Asker:
    def __init__(
        self, endpoint: Endpoint, journal: Journal, budget: Budget, *, max_tokens: int, patience: Patience
    ) -> None:
        self.retries = 0
        self._endpoint = endpoint
        self._journal = journal
        self._budget = budget
        self._max_tokens = max_tokens
        self._patience = patience
        self._random = Random()
        self._not_before = 0.0  # on the monotonic clock

    async def ask(self, key: str, turn: int, messages: Sequence[dict[str, str]]) -> Answered:
        """The journal's answer, or a new one. Raises Unreached, RequestRefused, EndpointError, BudgetSpent, OSError."""
        if (known := self._journal.answer(key, turn)) is not None:
            return known
        why = ""
        for attempt in range(self._patience.attempts):
            if attempt:
                self.retries += 1
            await self._pause()
            try:
                return await self._attempt(key, turn, messages)
            except AskAgain as failure:
                why = str(failure)
                await self._wait(attempt, failure)
        raise Unreached(f"{self._patience.attempts} attempts failed, the last: {why}")

    async def _attempt(self, key: str, turn: int, messages: Sequence[dict[str, str]]) -> Answered:
        bound = Tokens(prompt_bound(messages), self._max_tokens)
        await self._budget.reserve(bound)
        try:
            await self._journal.append(Sent(key, turn, bound.prompt, bound.completion))
            try:
                reply = await self._endpoint.ask(messages, self._idempotency_key(key, turn, messages))
            except AskAgain as failure:
                await self._journal.append(Failed(key, turn, str(failure), failure.unsure))
                raise
            except (RequestRefused, EndpointError) as failure:
                await self._journal.append(Failed(key, turn, str(failure), unsure=False))
                raise
            estimated = reply.prompt_tokens is None or reply.completion_tokens is None
            answer = Answered(
                key,
                turn,
                reply.text,
                reply.finish,
                bound.prompt if reply.prompt_tokens is None else reply.prompt_tokens,
                bound.completion if reply.completion_tokens is None else reply.completion_tokens,
                estimated,
            )
            await self._journal.append(answer)
            return answer
        finally:
            await self._budget.release(bound)

    def _idempotency_key(self, key: str, turn: int, messages: Sequence[dict[str, str]]) -> str:
        """The same for each attempt at the same question, in this run and in later ones."""
        question = msgspec.json.encode([self._journal.run, key, turn, messages])
        return blake2b(question, digest_size=16).hexdigest()

    async def _pause(self) -> None:
        left = self._not_before - time.monotonic()
        while left > 0:
            await asyncio.sleep(left)
            left = self._not_before - time.monotonic()  # it may have been put off meanwhile

    async def _wait(self, attempt: int, failure: AskAgain) -> None:
        if failure.after is not None:
            if failure.after > LONGEST_ASKED:
                raise EndpointError(f"the endpoint asks to wait for {failure.after:.0f} s ({failure})")
            self._not_before = max(self._not_before, time.monotonic() + failure.after)
        if attempt + 1 < self._patience.attempts:
            longest = min(LONGEST_WAIT, self._patience.first_wait * 2**attempt)
            await asyncio.sleep(self._random.uniform(longest / 2, longest))
