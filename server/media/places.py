"""How many fetches run at once, and whose: nobody's slow pictures keep everybody else's waiting.

A tenant may hold as many places as it leaves free: one alone half of them, a second one half of the rest. So some are
always left for those who come next (dynamic thresholds, Choudhury and Hahne 1998, with alpha = 1). Requests of no
tenant are all one party's, and may hold every place. Knows nothing of pictures.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Any


class Place:
    """One fetch's; to be given back."""

    def __init__(self, places: Places, tenant: str) -> None:
        self._places, self._tenant = places, tenant
        self._work: asyncio.Future[Any] | None = None

    def held_by(self, work: asyncio.Future[Any]) -> None:
        """Work that cannot be ended early; given back before its end, the place is free only after it."""
        self._work = work

    def give_back(self) -> None:
        if self._work is None or self._work.done():
            self._places.give_back(self._tenant)
        else:
            self._work.add_done_callback(lambda _: self._places.give_back(self._tenant))


class Places:
    """Event loop only. Who waits is bounded by the caller's time limit."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self, tenant: str) -> Place:
        """Waits; of the tenants who do, the one that holds least comes first. Empty: no tenant."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(tenant, turn)
            else:
                self.give_back(tenant)  # it came in the very moment
            raise
        return Place(self, tenant)

    def give_back(self, tenant: str) -> None:
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            tenant = min(self._waiting, key=lambda one: self._held[one])
            if tenant and self._held[tenant] >= self._free:
                return
            turn = self._waiting[tenant][0]
            self._forget(tenant, turn)
            if not turn.done():  # else one who is just leaving
                turn.set_result(None)
                self._free -= 1
                self._held[tenant] += 1

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(tenant)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[tenant]
