"""Asks a worker that keeps a request waiting whether it can still be reached, by a connection made for it.

A worker may think long before its answer begins, so silence alone proves nothing; and its heartbeats come by another
way than the answers go. Any answer at all will do, whatever stands behind the address.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp

from server.registry.table import Worker

_PATH = "/health/live"


class Probes:
    """`quiet` seconds without an answer make a probe, which has `patience` seconds."""

    def __init__(self, quiet: float, patience: float) -> None:
        self._quiet = quiet
        self._patience = patience
        self._under_way: dict[str, asyncio.Task[bool]] = {}  # by address; one at a time for all who wait
        self._answered: dict[str, float] = {}  # address -> when, monotonic; of the last `quiet` seconds

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=self._patience),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def stop(self) -> None:
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._session.close()

    @contextmanager
    def watching(self, worker: Worker, unreachable: Callable[[], None]) -> Iterator[None]:
        """Calls `unreachable` when a probe gets no answer while the block is entered; nothing before `quiet`."""
        watch = _Watch(self, worker.url, unreachable)
        try:
            yield
        finally:
            watch.end()

    def ask(self, url: str) -> asyncio.Task[bool]:
        """Whether it answers. A probe that is under way serves all; so does one that was answered just now."""
        task = self._under_way.get(url)
        if task is None:
            task = self._under_way[url] = asyncio.create_task(self._probe(url), name="probe")
            task.add_done_callback(lambda _: self._under_way.pop(url, None))
        return task

    @property
    def quiet(self) -> float:
        return self._quiet

    async def _probe(self, url: str) -> bool:
        now = time.monotonic()
        self._answered = {known: at for known, at in self._answered.items() if now - at < self._quiet}
        if url in self._answered:
            return True
        try:
            async with self._session.get(url + _PATH, allow_redirects=False):
                self._answered[url] = time.monotonic()
                return True
        except (aiohttp.ClientError, OSError):
            return False


class _Watch:
    """One request's wait."""

    def __init__(self, probes: Probes, url: str, unreachable: Callable[[], None]) -> None:
        self._probes = probes
        self._url = url
        self._unreachable = unreachable
        self._over = False
        self._arm()

    def end(self) -> None:
        self._over = True
        self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._probes.quiet, self._ask)

    def _ask(self) -> None:
        self._probes.ask(self._url).add_done_callback(self._told)

    def _told(self, probe: asyncio.Task[bool]) -> None:
        if self._over or probe.cancelled():
            return
        if probe.result():
            self._arm()
        else:
            self._unreachable()
