"""Tokens and what they cost, and the limit that a run does not pass.

A request is let go only if all requests under way, each at its bound, would fit with it. The bound of a prompt is its
bytes (no byte-level tokenizer makes more tokens than bytes; a few are added for each message), of an answer its
max_tokens. So the limit holds as long as the endpoint keeps to max_tokens and counts as such tokenizers do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MESSAGE_TOKENS = 16  # role and separators of one message, generously


@dataclass(frozen=True)
class Tokens:
    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens, in whatever currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, tokens: Tokens) -> float:
        return (tokens.prompt * self.prompt + tokens.completion * self.completion) / 1e6


@dataclass(frozen=True)
class Limits:
    """None: no limit."""

    tokens: int | None = None
    money: float | None = None


class BudgetSpent(Exception):
    """The next request might pass the limit; the message says which."""


class Budget:
    """Over the whole journal: `spent` is asked each time what it says so far, at most."""

    def __init__(self, limits: Limits, prices: Prices, spent: Callable[[], Tokens]) -> None:
        self.prices = prices
        self._limits = limits
        self._spent = spent
        self._reserved = Tokens()
        self._changed = asyncio.Condition()

    async def reserve(self, bound: Tokens) -> None:
        """Waits while requests under way may still leave room. Raises BudgetSpent."""
        async with self._changed:
            while (passed := self._passed(bound)) is not None:
                if not self._reserved.total:
                    raise BudgetSpent(passed)
                await self._changed.wait()
            self._reserved += bound

    async def release(self, bound: Tokens) -> None:
        """The request has ended; what it cost is in the journal by now."""
        async with self._changed:
            self._reserved -= bound
            self._changed.notify_all()

    def _passed(self, bound: Tokens) -> str | None:
        after = self._spent() + self._reserved + bound
        if self._limits.tokens is not None and after.total > self._limits.tokens:
            return f"the budget of {self._limits.tokens:,} tokens has no room for one more request"
        if self._limits.money is not None and self.prices.cost(after) > self._limits.money:
            return f"the budget of {self._limits.money:g} has no room for one more request"
        return None


def prompt_bound(messages: Sequence[dict[str, str]]) -> int:
    """The most tokens that messages can be."""
    return sum(len(message["content"].encode()) + _MESSAGE_TOKENS for message in messages)
