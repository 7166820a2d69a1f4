"""Pictures that were fetched lately, within a budget of bytes and for a short time.

Event loop only. Knows nothing of tenants: whoever may share a picture is in its name (`media.shared_fetches`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from prometheus_client import Gauge

_OVERHEAD = 1024  # bytes reckoned for a picture besides its own: names, timers


@dataclass(frozen=True)
class _Kept:
    data: bytes
    timer: asyncio.TimerHandle


class PictureCache:
    """`budget` bytes; 0 keeps nothing. Of too many, the one used longest ago goes first."""

    def __init__(self, budget: int, gauge: Gauge) -> None:
        self._budget = budget
        self._gauge = gauge
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._bytes = 0

    def get(self, name: Hashable) -> bytes | None:
        kept = self._kept.get(name)
        if kept is None:
            return None
        self._kept.move_to_end(name)
        return kept.data

    def put(self, name: Hashable, data: bytes, seconds: float) -> None:
        self._drop(name)
        size = len(data) + _OVERHEAD
        if seconds <= 0 or size > self._budget:
            return
        while self._bytes + size > self._budget:
            self._drop(next(iter(self._kept)))
        timer = asyncio.get_running_loop().call_later(seconds, self._drop, name)
        self._kept[name] = _Kept(data, timer)
        self._account(size)

    def _drop(self, name: Hashable) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.timer.cancel()
            self._account(-len(kept.data) - _OVERHEAD)

    def _account(self, size: int) -> None:
        self._bytes += size
        self._gauge.set(self._bytes)
