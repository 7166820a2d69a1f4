"""A circuit breaker: after too many failures no requests for a while, then one as a probe, then all again.

    closed     takes requests; opens on failures in a row, on their rate, or at once when told to
    open       takes none until its time is over
    half_open  takes one request at a time as a probe: what comes of it closes the breaker or opens it for twice as long

Knows no HTTP and no worker, only outcomes and a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from server.health.rules import HealthRules
from server.health.window import Window

BreakerState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    def __init__(
        self,
        rules: HealthRules,
        window: Window,
        clock: Callable[[], float],
        changed: Callable[[BreakerState, str], None],
    ) -> None:
        """`changed` is told every new state and its reason; that it is half open, when the probe is sent."""
        self._rules = rules
        self._window = window
        self._clock = clock
        self._changed = changed
        self._in_a_row = 0
        self._open_until: float | None = None  # None: closed
        self._closed_at = clock()
        self._trips = 0  # without a window's time of good health between them
        self._probing = False
        self.reason = ""  # why it is not closed

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half_open"

    @property
    def wants_probe(self) -> bool:
        return self.state == "half_open" and not self._probing

    @property
    def open_seconds(self) -> float:
        """How long it opens for, this time."""
        return min(self._rules.open_seconds * 2.0 ** min(self._trips - 1, 30), self._rules.most_open_seconds)

    def begin(self) -> bool:
        """An attempt is being made; whether it is the probe."""
        if self.wants_probe:
            self._probing = True
            self._changed("half_open", self.reason)
            return True
        return False

    def release(self) -> None:
        """The probe ended and told nothing."""
        self._probing = False

    def succeed(self) -> bool:
        """An attempt was answered; whether that closed the breaker."""
        self._in_a_row = 0
        self._window.add(failed=False)
        if self.state != "half_open":
            return False  # an answer begun before it opened says nothing about now
        self.close()
        return True

    def fail(self, reason: str, *, at_once: bool = False) -> None:
        self._window.add(failed=True)
        self._in_a_row += 1
        if (state := self.state) == "half_open" or (state == "closed" and (at_once or self._too_many)):
            self.trip(reason)

    def trip(self, reason: str) -> None:
        """Opens it."""
        now = self._clock()
        if self._open_until is None and now - self._closed_at >= self._rules.window_seconds:
            self._trips = 0
        self._trips += 1
        self._open_until = now + self.open_seconds
        self._probing = False
        self.reason = reason
        self._changed("open", reason)

    def close(self) -> None:
        """What was counted before counts no more."""
        if self._open_until is not None:
            self._changed("closed", self.reason)
        self._open_until = None
        self._closed_at = self._clock()
        self._in_a_row = 0
        self._probing = False
        self.reason = ""
        self._window.clear()

    @property
    def _too_many(self) -> bool:
        rules, window = self._rules, self._window
        if self._in_a_row >= rules.failures_in_a_row:
            return True
        return window.attempts >= rules.least_attempts and window.failures >= rules.failure_rate * window.attempts
