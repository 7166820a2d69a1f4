"""How many connections a server keeps open, in all and from one address, and which of them gives way to a new one.

uvicorn's own bound (`limit_concurrency`) is asked when a request's head is complete, so it never sees connections that
send none. Here a new connection takes the place of the one that has longest waited for a request, be it an idle client
or one that sends its head a byte at a time; only where every connection has a request under way is the new one told
503. Knows connections by their address and by whether they wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

Verdict = Literal["refused", "gave_way"]  # what became of a connection that was one too many

_ERROR = msgspec.json.encode(
    {
        "error": {
            "message": "Too many connections are open; try again shortly.",
            "type": "server_error",
            "param": None,
            "code": "too_many_connections",
        }
    }
)
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_ERROR), _ERROR)
)


class Connection(Protocol):
    @property
    def address(self) -> str:
        """The client's, without its port."""

    def give_way(self) -> None:
        """Closes it."""


class Connections:
    """Those of one server; all verbs are called on its event loop."""

    def __init__(
        self,
        most: int = 0,
        most_of_address: int = 0,
        opened: Callable[[int], None] = lambda change: None,
        dropped: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        """0: no bound. `opened` is told every change of their number, `dropped` of each that was one too many."""
        self._most = most
        self._most_of_address = most_of_address
        self._opened = opened
        self._dropped = dropped
        self._of: Counter[str] = Counter()  # by address
        self._waiting: dict[Connection, None] = {}  # the one that has waited longest first
        self.count = 0

    def open(self, connection: Connection) -> bool:
        """Whether it may stay. `close` is to be called in any case."""
        self.count += 1
        self._of[connection.address] += 1
        self._opened(1)
        over = self._most_of_address and self._of[connection.address] > self._most_of_address
        if not (self._most and self.count > self._most) and not over:
            self._waiting[connection] = None
            return True
        idle = (one for one in self._waiting if not over or one.address == connection.address)
        longest = next(idle, None)
        if longest is None:
            self._dropped("refused")
            return False
        self._dropped("gave_way")
        del self._waiting[longest]
        longest.give_way()
        self._waiting[connection] = None
        return True

    def busy(self, connection: Connection) -> None:
        """A request's head is complete."""
        self._waiting.pop(connection, None)

    def idle(self, connection: Connection) -> None:
        """Its answer is complete, and no other request is there."""
        self._waiting[connection] = None

    def close(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        self.count -= 1
        self._opened(-1)
        self._of[connection.address] -= 1
        if not self._of[connection.address]:
            del self._of[connection.address]
