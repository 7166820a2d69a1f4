"""What came of the last attempts at one worker: bounded in time and in number."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

_MOST_ATTEMPTS = 1000
_MOST_TIMES = 200


class Window:
    """Counts over the last `seconds` by `clock`."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._attempts: deque[tuple[float, bool]] = deque()  # when, failed
        self._first_tokens: deque[tuple[float, float]] = deque(maxlen=_MOST_TIMES)  # when, seconds
        self._failures = 0

    def add(self, *, failed: bool) -> None:
        self._attempts.append((self._clock(), failed))
        self._failures += failed
        if len(self._attempts) > _MOST_ATTEMPTS:
            self._drop()
        self._expire()

    def add_first_token(self, seconds: float) -> None:
        self._first_tokens.append((self._clock(), seconds))

    def clear(self) -> None:
        self._attempts.clear()
        self._first_tokens.clear()
        self._failures = 0

    @property
    def attempts(self) -> int:
        self._expire()
        return len(self._attempts)

    @property
    def failures(self) -> int:
        self._expire()
        return self._failures

    @property
    def first_token_seconds(self) -> tuple[float, ...]:
        """Times to the first token of streamed answers."""
        self._expire()
        return tuple(seconds for _, seconds in self._first_tokens)

    @property
    def median_first_token(self) -> float | None:
        times = self.first_token_seconds
        return statistics.median(times) if times else None

    def _expire(self) -> None:
        limit = self._clock() - self._seconds
        while self._attempts and self._attempts[0][0] <= limit:
            self._drop()
        while self._first_tokens and self._first_tokens[0][0] <= limit:
            self._first_tokens.popleft()

    def _drop(self) -> None:
        self._failures -= self._attempts.popleft()[1]
