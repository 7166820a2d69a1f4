"""The contract of routing policies. A policy knows workers by their load alone: no HTTP, no Redis, no prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar


@dataclass(frozen=True)
class Work:
    """What a request is expected to cost, in tokens, and what it has in common with others."""

    prompt_tokens: int
    answer_tokens: int
    affinity: bytes = b""  # digest of pictures, else of the prompt's beginning; requests that share it share caches
    reusable_tokens: int = 0  # of the prompt, that a worker which saw the same affinity need not compute again
    session: bytes = b""  # digest of the session that the request asks to stay in

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class TokenCosts:
    """Seconds that a worker takes for a token of a prompt and for one of an answer, amid its other work."""

    prompt: float
    answer: float

    def seconds(self, prompt_tokens: int, answer_tokens: int) -> float:
        return self.prompt * prompt_tokens + self.answer * answer_tokens


# Where no worker of a model tells its own: prompts are computed in parallel, answers token by token.
TYPICAL_COSTS = TokenCosts(prompt=0.0005, answer=0.005)


class Candidate(Protocol):
    """A worker as a policy sees it."""

    @property
    def id(self) -> str: ...

    @property
    def in_flight(self) -> int:
        """Requests that this controller has there."""

    @property
    def slots(self) -> int:
        """Requests that it works on at once; more wait."""

    @property
    def weight(self) -> float:
        """The share that it may have of a full worker's: above 0, at most 1."""

    @property
    def costs(self) -> TokenCosts: ...

    @property
    def queue_seconds(self) -> float:
        """Work estimated to lie before it, from this controller and from others."""


# Why a worker was chosen.
Reason = Literal[
    "only",  # nobody else could
    "turn",  # its turn
    "least",  # the least work before it
    "two",  # the lesser of two drawn
    "home",  # its caches know the request's pictures or beginning
    "next",  # the home had more than its share; this one is next in the key's order
    "cheaper",  # waiting for the caches would have cost more than they save
    "session",  # the session's worker
    "probe",  # to see whether it has recovered
    "last_resort",  # every breaker is open
]

Chosen = TypeVar("Chosen", bound=Candidate)


@dataclass(frozen=True)
class Choice(Generic[Chosen]):
    worker: Chosen
    reason: Reason


class Policy(Protocol):
    """Pure choice: `candidates` holds at least one worker, all of them able to take the request."""

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Choice[Chosen]: ...


def seconds_to_end(one: Candidate, work: Work) -> float:
    """When `work` would be done there, over the worker's weight: what balancing policies compare."""
    return (one.queue_seconds + one.costs.seconds(work.prompt_tokens, work.answer_tokens)) / one.weight
