"""Holds each key to its limits: what a request may cost is taken at admission, what it did cost is settled after it.

Redis keeps the books. While it cannot be reached each controller holds the limits alone from its own memory, or refuses
(`limits_without_redis`). It knows keys and numbers; not what a request is.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from types import TracebackType
from typing import Literal, Self

from server.auth.api_key import ApiKey
from server.background import end
from server.limits.answers import Headers, limit_exceeded, limit_headers, limits_unavailable, too_many_at_once
from server.limits.local import LocalBooks
from server.limits.shared import SharedBooks, SharedErrors
from server.limits.verdict import Cost, Verdict
from server.logs import log
from server.metrics import Metrics
from server.settings import Settings

_FIRST_WAIT = 0.1  # seconds before Redis is asked whether it is back; doubled from there on
_LONGEST_WAIT = 2.0
_LAST_SECONDS = 1.0  # for what is still to be settled when the controller stops


class Limiter:
    """start() ... enter() ... stop()"""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """ValueError if `redis_url` is no URL."""
        self._refuse = settings.limits_without_redis == "refuse"
        self._metrics = metrics
        self._shared = SharedBooks(settings.redis_url or "", settings.lease_seconds)
        self._local = LocalBooks()
        self._running: Counter[str] = Counter()  # requests under way here, by key
        self._leases: dict[str, set[str]] = {}  # those of them that hold a place in Redis
        self.settling: set[asyncio.Task[None]] = set()  # accounts that are being closed
        self._tasks: list[asyncio.Task[None]] = []
        self._lost = asyncio.Event()
        self._connected = True
        metrics.limits_shared.set(1)

    @property
    def state(self) -> Literal["shared", "local", "refusing"]:
        """Where the limits are held now."""
        if self._connected:
            return "shared"
        return "refusing" if self._refuse else "local"

    async def start(self) -> None:
        work = {"limits reconnect": self._reconnect(), "limits renew": self._renew()}
        self._tasks = [asyncio.create_task(one, name=name) for name, one in work.items()]

    async def stop(self) -> None:
        if self.settling:
            await asyncio.wait(self.settling, timeout=_LAST_SECONDS)
        await end((*self._tasks, *self.settling))
        await self._shared.close()

    def enter(self, key: ApiKey) -> Grant:
        """To be used as a context. Raises ApiError 429 when this controller alone has as many requests of the key under
        way as it may have: that needs no question to Redis, so it is asked before anything is read."""
        most = key.limits.concurrent
        if most is not None and self._running[key.name] >= most:
            self._metrics.rate_limited.labels("concurrent").inc()
            raise too_many_at_once(key)
        return Grant(self, key)

    async def take(self, grant: Grant, cost: Cost) -> Verdict:
        """Raises ApiError 429, or 503 where limits are refused without Redis."""
        if self._connected:
            # Shielded: if the client leaves meanwhile, what was taken must still be given back.
            grant.asking = asyncio.create_task(self._shared.take(grant.key, cost, grant.new_lease()))
            try:
                verdict = await asyncio.shield(grant.asking)
            except SharedErrors as error:
                self._lose(error)
            else:
                self._local.adopt(grant.key, verdict)
                grant.shared = True
                return self._judge(grant, cost, verdict)
        if self._refuse:
            raise limits_unavailable()
        return self._judge(grant, cost, self._local.take(grant.key, cost))

    def _judge(self, grant: Grant, cost: Cost, verdict: Verdict) -> Verdict:
        grant.headers[:] = limit_headers(verdict)
        if verdict.refused is not None:
            self._metrics.rate_limited.labels(verdict.refused).inc()
            raise limit_exceeded(grant.key, verdict, cost)
        return verdict

    def entered(self, grant: Grant) -> None:
        self._running[grant.key.name] += 1

    def left(self, grant: Grant) -> None:
        name = grant.key.name
        self._running[name] -= 1
        if not self._running[name]:
            del self._running[name]
        if grant.asking is not None or grant.taken:
            task = asyncio.create_task(self._settle(grant))
            self.settling.add(task)
            task.add_done_callback(self.settling.discard)

    def hold(self, grant: Grant) -> None:
        self._leases.setdefault(grant.key.name, set()).add(grant.lease)

    async def _settle(self, grant: Grant) -> None:
        """Takes or gives back the difference between what was expected and what was used, and the place."""
        if grant.asking is not None:
            await asyncio.wait([grant.asking])
            grant.count_late_answer()
        self._release(grant)
        if not grant.taken:
            return
        self._local.settle(grant.key, Cost(tokens=grant.used_tokens - grant.reserved_tokens))
        cost = Cost(tokens=grant.used_tokens - (grant.reserved_tokens if grant.shared else 0))
        if self._connected and (grant.lease or cost.tokens):
            try:
                await self._shared.settle(grant.key, cost, grant.lease)
            except SharedErrors as error:
                self._lose(error)  # its lease ends by itself

    def _release(self, grant: Grant) -> None:
        leases = self._leases.get(grant.key.name)
        if leases is not None:
            leases.discard(grant.lease)
            if not leases:
                del self._leases[grant.key.name]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._shared.lease_seconds / 3)
            if self._connected:
                try:
                    await self._prolong(again=False)
                except SharedErrors as error:
                    self._lose(error)

    async def _prolong(self, *, again: bool) -> None:
        for name, leases in tuple(self._leases.items()):
            await self._shared.renew(name, tuple(leases), again=again)

    async def _reconnect(self) -> None:
        while True:
            await self._lost.wait()
            wait = _FIRST_WAIT
            while not self._connected:
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT)
                try:
                    await self._shared.ping()
                    await self._prolong(again=True)
                except SharedErrors:
                    continue  # told when it was lost
                self._lost.clear()
                self._connected = True
                self._metrics.limits_shared.set(1)
                log(logging.INFO, "limits are shared again")

    def _lose(self, error: BaseException) -> None:
        if self._connected:
            self._connected = False
            self._lost.set()
            self._metrics.limits_shared.set(0)
            log(logging.ERROR, "limits are not shared any more", held=self.state, reason=type(error).__name__)


class Grant:
    """One request's account with its key: enter it, take, and say what was used."""

    def __init__(self, limiter: Limiter, key: ApiKey) -> None:
        self._limiter = limiter
        self.key = key
        self.headers: Headers = []  # what the client is told, whatever the answer is
        self.lease = ""  # empty: no place is held
        self.taken = False
        self.shared = False  # taken from Redis's books
        self.reserved_tokens = 0
        self.used_tokens = 0
        self.asking: asyncio.Task[Verdict] | None = None
        self._expected = Cost()

    async def take(self, *, requests: int = 0, tokens: int = 0, images: int = 0) -> None:
        """All or nothing; may be called again for more. Raises ApiError 429 or 503."""
        if not self.key.limits.any:
            return
        self._expected = Cost(requests, tokens, images)
        await self._limiter.take(self, self._expected)
        self.asking = None
        self._count()

    def new_lease(self) -> str:
        """The name under which a place is asked for; empty where the key needs none or holds one already."""
        if self.key.limits.concurrent is None or self.lease:
            return ""
        self.lease = uuid.uuid4().hex
        self._limiter.hold(self)
        return self.lease

    def used(self, tokens: int) -> None:
        """What the request did cost."""
        self.used_tokens = tokens

    def count_late_answer(self) -> None:
        """The answer to a question that nobody waits for any more."""
        assert self.asking is not None
        asked, self.asking = self.asking, None
        if not asked.cancelled() and asked.exception() is None and asked.result().refused is None:
            self.shared = True
            self._count()

    def _count(self) -> None:
        self.taken = True
        self.reserved_tokens += self._expected.tokens

    def __enter__(self) -> Self:
        self._limiter.entered(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter.left(self)
