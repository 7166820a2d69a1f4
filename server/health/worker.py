"""One worker's health: its breaker, and the share of requests that it may have while it warms up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from server.health.breaker import BreakerState, CircuitBreaker
from server.health.rules import HealthRules
from server.health.window import Window

Outcome = Literal[
    "ok",  # an answer began, or came whole
    "refused",  # answered with an error that is the request's or its load's: 4xx
    "failed",  # an answer that broke off, never came, made no sense, or said 5xx
    "unreachable",  # no connection could be made: nothing listens there
    "abandoned",  # the client left: tells nothing
    "expired",  # the time that the client gave the request was over: tells nothing
]

FIRST_SHARE = 0.1  # of a full share, with which a slow start begins


class WorkerHealth:
    """`record` takes what came of every attempt; the rest reads."""

    def __init__(
        self,
        rules: HealthRules,
        *,
        established: bool = False,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[BreakerState, str], None] = lambda state, reason: None,
    ) -> None:
        """`established`: it has served before, and needs no slow start. `changed` is told the breaker's new state and
        the reason."""
        self._rules = rules
        self._clock = clock
        self.window = Window(rules.window_seconds, clock)
        self._breaker = CircuitBreaker(rules, self.window, clock, changed)
        self._started: float | None = None if established else clock()

    def record(self, outcome: Outcome, seconds: float | None = None) -> None:
        """What came of an attempt. A stream is `ok` when it begins, and `failed` besides if it breaks later.

        `seconds`: from asking the worker to the first piece of a streamed answer; None where it was not streamed.
        """
        if outcome in ("ok", "refused"):
            if self._breaker.succeed():
                self._started = self._clock()
            if outcome == "ok" and seconds is not None:
                self.window.add_first_token(seconds)
        elif outcome in ("failed", "unreachable"):
            self._breaker.fail(outcome, at_once=outcome == "unreachable")

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one attempt, so that a probe of which nothing was recorded is followed by another."""
        probe = self._breaker.begin()
        try:
            yield
        finally:
            if probe:
                self._breaker.release()

    def eject(self, reason: str) -> None:
        """It does far worse than its peers."""
        self._breaker.trip(reason)

    def recover(self) -> None:
        """Whatever was wrong is over: it starts slowly."""
        self._breaker.close()
        self._started = self._clock()

    @property
    def breaker(self) -> BreakerState:
        return self._breaker.state

    @property
    def reason(self) -> str:
        """Why the breaker is not closed."""
        return self._breaker.reason

    @property
    def admits(self) -> bool:
        """Takes requests like any other."""
        return self._breaker.state == "closed"

    @property
    def wants_probe(self) -> bool:
        """May be tried with one request."""
        return self._breaker.wants_probe

    @property
    def weight(self) -> float:
        """The share that it may have of what another would get: above 0, at most 1."""
        if self._started is None:
            return 1.0
        passed = self._clock() - self._started
        if passed >= self._rules.slow_start_seconds:
            self._started = None
            return 1.0
        return max(FIRST_SHARE, passed / self._rules.slow_start_seconds)
