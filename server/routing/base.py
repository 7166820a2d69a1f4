"""The contract of routing policies. A policy knows workers by their load alone: no HTTP, no Redis, no prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Work:
    """What a request is expected to cost, in tokens."""

    prompt_tokens: int
    answer_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


class Candidate(Protocol):
    """A worker as a policy sees it."""

    @property
    def id(self) -> str: ...

    @property
    def in_flight(self) -> int:
        """Requests that this controller has there."""

    @property
    def outstanding_tokens(self) -> int:
        """Work estimated to lie before it, from this controller and from others."""


Chosen = TypeVar("Chosen", bound=Candidate)


class Policy(Protocol):
    """Pure choice: `candidates` holds at least one worker, all of them able to take the request."""

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Chosen: ...
