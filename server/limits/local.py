"""The books of one controller alone, by the same rules as Redis: for the time that Redis is gone.

While it is there they are kept in step with what it says, so that nobody begins anew when it goes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from server.auth.api_key import ApiKey
from server.limits.verdict import BUCKETS, Bucket, Cost, Limit, Verdict, capacities

_MAX_BOOKS = 100_000


@dataclass
class _Book:
    levels: dict[Limit, float] = field(default_factory=dict)  # a missing one is full
    at: float = field(default_factory=time.monotonic)


class LocalBooks:
    def __init__(self) -> None:
        self._books: OrderedDict[str, _Book] = OrderedDict()  # the one used longest ago first

    def take(self, key: ApiKey, cost: Cost) -> Verdict:
        """Takes everything or nothing."""
        book = self._filled(key)
        refused: Limit | None = None
        wait = 0.0
        for name, limit, amount in _named(key, cost):
            missing = (amount - book.levels[name]) * 60 / limit
            if amount > 0 and missing > wait:
                refused, wait = name, missing
        if refused is None:
            self._pay(book, key, cost)
        return Verdict(_shown(book, key), refused, wait)

    def settle(self, key: ApiKey, cost: Cost) -> None:
        """Takes `cost`, whatever the level."""
        self._pay(self._filled(key), key, cost)

    def adopt(self, key: ApiKey, verdict: Verdict) -> None:
        """Takes over what Redis said."""
        book = self._filled(key)
        for name, bucket in verdict.buckets.items():
            book.levels[name] = bucket.limit * (1 - bucket.reset_seconds / 60)

    def _filled(self, key: ApiKey) -> _Book:
        book = self._books.setdefault(key.name, _Book())
        self._books.move_to_end(key.name)
        if len(self._books) > _MAX_BOOKS:
            self._books.popitem(last=False)
        now = time.monotonic()
        for name, limit, _ in _named(key, Cost()):
            level = book.levels.get(name, float(limit))
            book.levels[name] = min(float(limit), level + (now - book.at) * limit / 60)
        book.at = now
        return book

    @staticmethod
    def _pay(book: _Book, key: ApiKey, cost: Cost) -> None:
        for name, limit, amount in _named(key, cost):
            book.levels[name] = min(float(limit), book.levels[name] - amount)


def _named(key: ApiKey, cost: Cost) -> list[tuple[Limit, int, int]]:
    """(bucket, capacity, cost) of those that the key has."""
    return [
        (name, limit, amount)
        for name, limit, amount in zip(BUCKETS, capacities(key.limits), cost.amounts, strict=True)
        if limit
    ]


def _shown(book: _Book, key: ApiKey) -> dict[Limit, Bucket]:
    return {
        name: Bucket(limit, int(max(0.0, book.levels[name])), (limit - book.levels[name]) * 60 / limit)
        for name, limit, _ in _named(key, Cost())
    }
