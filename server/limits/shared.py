"""The books in Redis, the same for every controller."""

from __future__ import annotations

from collections.abc import Sequence

from server.auth.api_key import ApiKey
from server.limits.scripts import RENEW, WEIGH
from server.limits.verdict import BUCKETS, Bucket, Cost, Limit, Verdict, capacities
from server.redis_client import RedisErrors, close, connect

PATIENCE = 1.0  # seconds for one answer of Redis: a request waits for it
_LEASE = 5.0  # times a worker's lease, that the places of a controller that died stay taken
_CONNECTIONS = 16
_AT_ONCE = 500  # leases renewed in one call
_REFUSERS: tuple[Limit | None, ...] = (None, *BUCKETS, "concurrent")

SharedErrors = RedisErrors


class SharedBooks:
    """Every method raises one of SharedErrors when Redis cannot be reached."""

    def __init__(self, redis_url: str, lease_seconds: float) -> None:
        """`lease_seconds`: a worker's."""
        self.lease_seconds = _LEASE * lease_seconds
        self._redis = connect(redis_url, patience=PATIENCE, connections=_CONNECTIONS)
        self._weigh = self._redis.register_script(WEIGH)
        self._renew = self._redis.register_script(RENEW)

    async def take(self, key: ApiKey, cost: Cost, lease: str) -> Verdict:
        """Takes everything or nothing. `lease`: holds one of the key's places under that name; empty: none."""
        return await self._call("take", key, cost, lease)

    async def settle(self, key: ApiKey, cost: Cost, lease: str) -> None:
        """Takes `cost`, whatever the level, and gives the place back."""
        await self._call("settle", key, cost, lease)

    async def renew(self, name: str, leases: Sequence[str], *, again: bool) -> None:
        """Prolongs leases; `again` brings back those that Redis has lost."""
        for start in range(0, len(leases), _AT_ONCE):
            some = leases[start : start + _AT_ONCE]
            arguments = [int(self.lease_seconds * 1000), "ALL" if again else "XX", *some]
            await self._renew(keys=[_leases(name)], args=arguments)

    async def ping(self) -> None:
        await self._redis.ping()

    async def close(self) -> None:
        await close(self._redis, "limits")

    async def _call(self, verb: str, key: ApiKey, cost: Cost, lease: str) -> Verdict:
        limits = capacities(key.limits)
        paired = [value for pair in zip(limits, cost.amounts, strict=True) for value in pair]
        result = await self._weigh(
            keys=[f"tephra:limits:{{{key.name}}}", _leases(key.name)],
            args=[verb, lease, int(self.lease_seconds * 1000), key.limits.concurrent or 0, *paired],
        )
        refused, wait, *rest = (int(value) for value in result)
        buckets = {
            name: Bucket(limit, rest[2 * place], rest[2 * place + 1] / 1000)
            for place, (name, limit) in enumerate(zip(BUCKETS, limits, strict=True))
            if limit
        }
        return Verdict(buckets, _REFUSERS[refused], wait / 1000)


def _leases(name: str) -> str:
    return f"tephra:leases:{{{name}}}"
