"""Requests that kill their workers: one at which two died, with no token between, is not tried a third time.

What is remembered of a request is a digest of its path and body, never the body. It is shared through Redis, so that
every controller refuses it; while Redis is away each controller goes by what it knows itself.

tephra:poison            sorted set: digest -> unix seconds, by Redis's clock, until which it is remembered
tephra:poison:{digest}   set: the worker processes that died at it

Between controllers goes time by Redis's clock, here the monotonic one counts: no jump of any clock makes a request
refused for longer than it should be.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

from server.background import end
from server.logs import log
from server.metrics import Metrics
from server.protocol.errors import ApiError
from server.redis_client import RedisErrors, close, connect
from server.registry.table import Worker

DEATHS = 2  # that make a request poisonous
MOST = 1000  # requests remembered; the oldest go first
_INDEX = "tephra:poison"
_PATIENCE = 2.0  # seconds for one answer of Redis
_CONNECTIONS = 4
_LARGE = 1024 * 1024  # bytes: a body whose digest is not for the event loop


@dataclass
class _Suspect:
    deaths: set[str] = field(default_factory=set)
    until: float = 0.0  # monotonic


class Quarantine:
    """start() ... open() ... stop(). Raises ValueError for a `redis_url` that is none."""

    def __init__(self, redis_url: str, seconds: float, poll_seconds: float, metrics: Metrics) -> None:
        self._redis = connect(redis_url, patience=_PATIENCE, connections=_CONNECTIONS)
        self._seconds = seconds
        self._poll_seconds = poll_seconds
        self._metrics = metrics
        self._suspects: dict[str, _Suspect] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow(), name="quarantine")]

    async def stop(self) -> None:
        await end(self._tasks)
        await close(self._redis, "quarantine")

    async def open(self, path: str, body: bytes, request_id: str) -> Case:
        """A new request's case. Raises ApiError 422 when it is quarantined."""
        case = Case(self, path, body, request_id)
        if self._suspects:  # else there is nothing to compare its digest with
            suspect = self._suspects.get(await case.digest())
            if suspect is not None and suspect.until > time.monotonic():
                case.suspected = True
                case.deaths |= suspect.deaths
                if len(suspect.deaths) >= DEATHS:
                    self._metrics.quarantine_refusals.inc()
                    log(logging.WARNING, "quarantined request refused", request_id=request_id)
                    raise refusal(suspect.until - time.monotonic())
        return case

    async def remember(self, digest: str, deaths: set[str]) -> float:
        """Returns for how long, in seconds."""
        suspect = self._suspects.pop(digest, None) or _Suspect()
        suspect.deaths |= deaths
        suspect.until = time.monotonic() + self._seconds
        self._suspects[digest] = suspect
        while len(self._suspects) > MOST:
            del self._suspects[next(iter(self._suspects))]
        try:
            until = await self._now() + self._seconds
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zadd(_INDEX, {digest: until})
                pipe.zremrangebyrank(_INDEX, 0, -MOST - 1)
                pipe.expire(_INDEX, math.ceil(self._seconds))
                pipe.sadd(f"{_INDEX}:{digest}", *suspect.deaths)
                pipe.expire(f"{_INDEX}:{digest}", math.ceil(self._seconds))
                await pipe.execute()
        except RedisErrors as error:
            log(logging.WARNING, "quarantine kept by this controller alone", reason=type(error).__name__)
        return self._seconds

    async def forget(self, digest: str) -> None:
        """It was answered: what died at it died of something else."""
        self._suspects.pop(digest, None)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zrem(_INDEX, digest)
                pipe.delete(f"{_INDEX}:{digest}")
                await pipe.execute()
        except RedisErrors as error:
            log(logging.WARNING, "quarantine not told of an answer", reason=type(error).__name__)

    def count(self) -> None:
        self._metrics.requests_quarantined.inc()

    async def _follow(self) -> None:
        while True:
            try:
                await self._read()
            except RedisErrors:
                self._drop_old()  # the registry tells of a lost Redis; what is known here holds meanwhile
            await asyncio.sleep(self._poll_seconds)

    async def _read(self) -> None:
        now = await self._now()
        latest = now + self._seconds
        rows: Any = await self._redis.zrangebyscore(_INDEX, now, "+inf", 0, MOST, withscores=True)
        known = [(name.decode(), float(until)) for name, until in rows]
        async with self._redis.pipeline(transaction=False) as pipe:
            for digest, until in known:
                pipe.smembers(f"{_INDEX}:{digest}")
                if until > latest:  # Redis's clock went back since it was written
                    pipe.zadd(_INDEX, {digest: latest}, xx=True, lt=True)
            answers = await pipe.execute() if known else []
        deaths = [answer for answer in answers if isinstance(answer, set)]
        for (digest, until), processes in zip(known, deaths, strict=True):
            suspect = self._suspects.setdefault(digest, _Suspect())
            suspect.deaths |= {process.decode() for process in processes}
            suspect.until = time.monotonic() + min(until, latest) - now
        self._drop_old()

    async def _now(self) -> float:
        """By Redis's clock."""
        seconds, microseconds = await self._redis.time()
        return float(seconds) + float(microseconds) / 1e6

    def _drop_old(self) -> None:
        now = time.monotonic()
        self._suspects = {digest: one for digest, one in self._suspects.items() if one.until > now}


class Case:
    """What one request did to its workers."""

    def __init__(self, quarantine: Quarantine, path: str, body: bytes, request_id: str) -> None:
        self._quarantine = quarantine
        self._path = path
        self._body = body
        self._request_id = request_id
        self._digest = ""
        self.suspected = False  # a worker died at it when it was sent before
        self.deaths: set[str] = set()

    async def digest(self) -> str:
        if not self._digest:
            large = len(self._body) > _LARGE
            self._digest = await asyncio.to_thread(self._compute) if large else self._compute()
        return self._digest

    def progressed(self) -> None:
        """A token came: the workers that were lost before did not die of what it takes to get this far."""
        self.deaths.clear()

    async def answered(self) -> None:
        """To its end."""
        if self.suspected:
            await self._quarantine.forget(await self.digest())

    async def died(self, worker: Worker) -> None:
        """The worker was lost while it had the request. Raises ApiError 422 when it was not the first."""
        self.deaths.add(f"{worker.id}@{worker.record.registration.started_at}")
        if len(self.deaths) < DEATHS:
            return
        seconds = await self._quarantine.remember(await self.digest(), self.deaths)
        self._quarantine.count()
        log(logging.ERROR, "request quarantined", request_id=self._request_id, workers=sorted(self.deaths))
        raise refusal(seconds)

    async def failed(self) -> None:
        """It is given up. If a worker died at it, that counts when it is sent again."""
        if 0 < len(self.deaths) < DEATHS:
            await self._quarantine.remember(await self.digest(), self.deaths)

    def _compute(self) -> str:
        digest = hashlib.sha256(self._path.encode() + b"\0")
        digest.update(self._body)
        return digest.hexdigest()


def refusal(seconds: float) -> ApiError:
    left = math.ceil(max(1.0, seconds))
    return ApiError(
        422,
        f"Two workers were lost while they answered this request, so it is not tried again for {left} s. "
        "Change the request, or ask the operator what happened to them.",
        code="request_quarantined",
        headers={"Retry-After": str(left)},
    )
