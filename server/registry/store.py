"""The table of workers in Redis: one key a worker, living as long as its lease, and a channel that tells of changes.

tephra:worker:{id}   WorkerRecord as JSON, expires with the lease
tephra:workers       set of ids, cleaned of those whose key is gone
tephra:members       channel: "+id" joined or changed, "-id" left
"""

from __future__ import annotations

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from server.registry.table import WorkerRecord

_INDEX = "tephra:workers"
_CHANNEL = "tephra:members"
_PATIENCE = 2.0  # seconds for one answer of Redis
MAX_WORKERS = 10_000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(WorkerRecord).decode

StoreErrors = (RedisError, OSError)  # the latter with TimeoutError


def _key(worker_id: str) -> str:
    return f"tephra:worker:{worker_id}"


class RegistryStore:
    """Every method raises one of StoreErrors when Redis cannot be reached."""

    def __init__(self, redis_url: str, lease_seconds: float) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            redis_url,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            max_connections=16,
            retry=Retry(NoBackoff(), 1),  # once, for a pooled connection that went stale
        )
        self._lease_ms = int(lease_seconds * 1000)
        self._changes = self._redis.pubsub(ignore_subscribe_messages=True)

    async def ping(self) -> None:
        await self._redis.ping()

    async def write(self, record: WorkerRecord, *, announce: bool) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(_key(record.id), _encode(record), px=self._lease_ms)
            pipe.sadd(_INDEX, record.id)
            if announce:
                pipe.publish(_CHANNEL, f"+{record.id}")
            await pipe.execute()

    async def remove(self, worker_id: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(_key(worker_id))
            pipe.srem(_INDEX, worker_id)
            pipe.publish(_CHANNEL, f"-{worker_id}")
            await pipe.execute()

    async def read(self, worker_id: str) -> WorkerRecord | None:
        value = await self._redis.get(_key(worker_id))
        return _record(value)

    async def read_all(self) -> list[WorkerRecord]:
        ids = [_text(name) for name in await self._redis.smembers(_INDEX)][:MAX_WORKERS]
        if not ids:
            return []
        values = await self._redis.mget([_key(worker_id) for worker_id in ids])
        gone = [worker_id for worker_id, value in zip(ids, values, strict=True) if value is None]
        if gone:
            await self._redis.srem(_INDEX, *gone)
        return [record for value in values if (record := _record(value)) is not None]

    async def next_change(self, wait: float) -> str | None:
        """The next announcement ("+id" or "-id"), or None after `wait` seconds."""
        if not self._changes.subscribed:
            await self._changes.subscribe(_CHANNEL)
        message = await self._changes.get_message(timeout=wait)
        return message["data"].decode() if message and isinstance(message.get("data"), bytes) else None

    async def reconnect(self) -> None:
        """Drops the subscription of a broken connection; the next call of `next_change` makes a new one."""
        old, self._changes = self._changes, self._redis.pubsub(ignore_subscribe_messages=True)
        await old.aclose()

    async def close(self) -> None:
        await self._changes.aclose()
        await self._redis.aclose()


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _record(value: bytes | str | None) -> WorkerRecord | None:
    """Records of another release that cannot be read count as absent: their worker is told to register again."""
    if value is None:
        return None
    try:
        return _decode(value)
    except msgspec.MsgspecError:
        return None
