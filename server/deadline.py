"""A request's time: what the client gave it, never more than the setting allows."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from server.auth import Headers
from server.protocol.call_headers import TIMEOUT, deadline_exceeded, read_timeout

_HEADER = TIMEOUT.lower().encode()
_MARGIN = 0.25  # seconds of the request's time kept back at most, so that the worker can say itself that it is over
_SHARE = 0.1  # of what is left, for short times


class Deadline:
    """A context that ends what runs in it. Raises ApiError 504 from it, and 400 at once for a header of no sense."""

    def __init__(self, headers: Headers, most_seconds: float, elapsed: float) -> None:
        """`elapsed`: seconds since the request arrived."""
        given = [value for name, value in headers if name == _HEADER]
        self._seconds = most_seconds
        if given:
            self._seconds = min(most_seconds, read_timeout(b",".join(given).decode("latin-1")))
        self._clock = asyncio.timeout(max(0.0, self._seconds - elapsed))

    @property
    def at(self) -> float:
        """By the event loop's clock."""
        when = self._clock.when()
        assert when is not None
        return when

    async def __aenter__(self) -> Self:
        await self._clock.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._clock.__aexit__(kind, error, trace)
        except TimeoutError as over:
            raise deadline_exceeded(self._seconds) from over


def remaining(deadline: float) -> float:
    """Seconds to tell the worker: a little less than there are."""
    left = deadline - asyncio.get_running_loop().time()
    return left - min(_MARGIN, left * _SHARE)
