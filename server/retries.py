"""How often attempts may be repeated, over all requests: a share of the traffic, so that trouble is not multiplied.

Above the share stands what the sudden death of one worker costs, be it the one that had everything in hand.
"""

from __future__ import annotations

import time

_SHARE = 0.2  # of a repeat that each request pays for
_A_SECOND = 1.0  # repeats that a quiet controller may make


class RetryBudget:
    """A token bucket that requests and time fill, and repeats empty."""

    def __init__(self, most: int) -> None:
        """`most`: requests that may be under way, and so may be lost, at once."""
        self._most = float(most)
        self._left = self._most
        self._at = time.monotonic()

    def deposit(self) -> None:
        self._left = min(self._most, self._left + _SHARE)

    def withdraw(self) -> bool:
        """Whether one more repeat may be made; takes it if so."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * _A_SECOND)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
