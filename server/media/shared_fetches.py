"""One fetch for all who ask for the same picture at the same time, and for those who ask shortly after.

Shared within a tenant only: by the time that a picture takes, one tenant could else learn what another one asks about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from prometheus_client import Counter, Gauge

from server.media.fetch import Fetched, ImageFetcher, Reserve
from server.media.picture_cache import PictureCache
from server.protocol.errors import ApiError


class SharingMetrics(Protocol):
    """Queries are answered by the cache (hits), by a fetch under way (joined), or by a fetch of their own."""

    media_cache_queries: Counter
    media_cache_hits: Counter
    media_cache_bytes: Gauge
    media_fetches_joined: Counter
    media_fetches_running: Gauge


@dataclass(frozen=True)
class _Name:
    """Who may share a picture, and which."""

    tenant: str
    url: str


class SharedFetches:
    """Event loop only."""

    def __init__(self, fetcher: ImageFetcher, cache_bytes: int, metrics: SharingMetrics) -> None:
        self._fetcher = fetcher
        self._metrics = metrics
        self._cache = PictureCache(cache_bytes, metrics.media_cache_bytes)
        self._flights: dict[_Name, _Flight] = {}

    async def fetch(self, tenant: str, url: str, reserve: Reserve) -> bytes:
        """Raises ApiError as `ImageFetcher` does, and what `reserve` raises.

        One who leaves, or whose `reserve` refuses, ends nothing for the others; the last one to leave ends the fetch.
        """
        name = _Name(tenant, url)
        self._metrics.media_cache_queries.inc()
        data = self._cache.get(name)
        if data is not None:
            self._metrics.media_cache_hits.inc()
            reserve(len(data))
            return data
        flight = self._flights.get(name)
        if flight is None:
            flight = _Flight(self._fetcher, name, lambda fetched: self._landed(name, fetched))
            self._flights[name] = flight
            self._metrics.media_fetches_running.set(len(self._flights))
        else:
            self._metrics.media_fetches_joined.inc()
        return await flight.wait(reserve)

    def _landed(self, name: _Name, fetched: Fetched | None) -> None:
        """Called once for each flight: with its picture, or with None when it failed or everyone left it."""
        del self._flights[name]
        self._metrics.media_fetches_running.set(len(self._flights))
        if fetched is not None:
            self._cache.put(name, fetched.data, fetched.keep_seconds)


class _Flight:
    """A fetch under way and those who wait for it."""

    def __init__(self, fetcher: ImageFetcher, name: _Name, landed: Callable[[Fetched | None], None]) -> None:
        self._waiting: dict[asyncio.Future[bytes], Reserve] = {}
        self._received = 0
        self._landed: Callable[[Fetched | None], None] | None = landed
        self._task = asyncio.create_task(self._fly(fetcher, name))

    async def wait(self, reserve: Reserve) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[future] = reserve
        try:
            reserve(self._received)
            return await future
        finally:
            self._waiting.pop(future, None)
            if not self._waiting:
                self._task.cancel()
                self._end(None)

    async def _fly(self, fetcher: ImageFetcher, name: _Name) -> None:
        try:
            fetched = await fetcher.get(name.url, self._reserve, name.tenant)
        except Exception as error:  # theirs who wait, whatever it is
            self._end(None)
            for future in list(self._waiting):
                self._refuse(future, error)
        else:
            self._end(fetched)
            for future in self._waiting:
                if not future.done():
                    future.set_result(fetched.data)

    def _reserve(self, size: int) -> None:
        """Asks everyone who waits; those who refuse wait no longer. Raises the last refusal when nobody is left."""
        self._received += size
        for future, reserve in list(self._waiting.items()):
            try:
                reserve(size)
            except ApiError as error:
                self._refuse(future, error)
                if not self._waiting:
                    self._end(None)  # before anything is awaited: nobody joins a fetch that is given up
                    raise

    def _refuse(self, future: asyncio.Future[bytes], error: Exception) -> None:
        del self._waiting[future]
        if not future.done():
            # A copy for each: whoever it belongs to notes in it which picture of theirs it is about.
            future.set_exception(replace(error) if isinstance(error, ApiError) else error)
            future.exception()  # retrieved, for asyncio: one who is just leaving does not hear of it

    def _end(self, fetched: Fetched | None) -> None:
        if self._landed is not None:
            landed, self._landed = self._landed, None
            landed(fetched)
