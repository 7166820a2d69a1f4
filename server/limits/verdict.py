"""What passes between the limiter and those who keep its books (`shared` in Redis, `local` in memory)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.auth.api_key import KeyLimits

Limit = Literal["requests", "tokens", "images", "concurrent"]
BUCKETS: tuple[Limit, ...] = ("requests", "tokens", "images")


@dataclass(frozen=True)
class Cost:
    """What is taken out of the buckets; negative: given back."""

    requests: int = 0
    tokens: int = 0
    images: int = 0

    @property
    def amounts(self) -> tuple[int, int, int]:
        """In the order of BUCKETS."""
        return (self.requests, self.tokens, self.images)


@dataclass(frozen=True)
class Bucket:
    """One limit after a request was weighed against it."""

    limit: int  # a minute
    remaining: int
    reset_seconds: float  # until it is full again


@dataclass(frozen=True)
class Verdict:
    """Whether there was room. Only the buckets that the key has are listed."""

    buckets: dict[Limit, Bucket]
    refused: Limit | None = None
    retry_seconds: float = 0.0  # until there may be room


def capacities(limits: KeyLimits) -> tuple[int, int, int]:
    """In the order of BUCKETS; 0: no such limit."""
    return (limits.requests_per_minute or 0, limits.tokens_per_minute or 0, limits.images_per_minute or 0)
