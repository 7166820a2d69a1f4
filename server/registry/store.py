"""The table of workers in Redis: one key a worker, living as long as its lease, and a channel that tells of changes.

tephra:worker:{id}   WorkerRecord as JSON, expires with the lease
tephra:drain:{id}    Drain as JSON, where an operator drains the worker; outlives its leases by a day
tephra:workers       set of ids, cleaned of those whose keys are gone
tephra:era           a name for what is stored: another one, or none, says that Redis forgot what it held
tephra:members       channel: "+id" joined or changed, "-id" left
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from redis.exceptions import RedisError

from server.redis_client import RedisErrors, close, connect
from server.registry.records import Drain, Member, WorkerRecord

_INDEX = "tephra:workers"
_CHANNEL = "tephra:members"
_ERA = "tephra:era"
_PATIENCE = 2.0  # seconds for one answer of Redis
_CONNECTIONS = 16
_DRAIN_SECONDS = 24 * 3600  # that a drain outlives the worker's last heartbeat
MAX_WORKERS = 10_000

_encode = msgspec.json.Encoder().encode
_record_decoder = msgspec.json.Decoder(WorkerRecord)
_drain_decoder = msgspec.json.Decoder(Drain)

StoreErrors = RedisErrors
_Stored = TypeVar("_Stored")


def _key(worker_id: str) -> str:
    return f"tephra:worker:{worker_id}"


def _drain_key(worker_id: str) -> str:
    return f"tephra:drain:{worker_id}"


@dataclass(frozen=True)
class Snapshot:
    """What Redis holds; `era` is empty when it forgot everything."""

    era: str
    members: list[Member]
    expired: int  # workers whose lease was over and whom this question, and no other, took from the index


class RegistryStore:
    """Every method raises one of StoreErrors when Redis cannot be reached."""

    def __init__(self, redis_url: str, lease_seconds: float) -> None:
        self._redis = connect(redis_url, patience=_PATIENCE, connections=_CONNECTIONS)
        self._lease_ms = int(lease_seconds * 1000)
        self._changes = self._redis.pubsub(ignore_subscribe_messages=True)

    async def ping(self) -> None:
        await self._redis.ping()

    async def era(self) -> str:
        """The name of what is stored, given now if it has none."""
        await self._redis.set(_ERA, secrets.token_hex(8), nx=True)
        return _text(await self._redis.get(_ERA) or b"")

    async def write(self, record: WorkerRecord, *, announce: bool) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(_key(record.id), _encode(record), px=self._lease_ms)
            pipe.expire(_drain_key(record.id), _DRAIN_SECONDS)
            pipe.sadd(_INDEX, record.id)
            if announce:
                pipe.publish(_CHANNEL, f"+{record.id}")
            await pipe.execute()

    async def remove(self, worker_id: str) -> None:
        """A worker that left in good order; a drain was for that process and ends with it."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.srem(_INDEX, worker_id)  # first, so that nobody takes its lease to have run out
            pipe.delete(_key(worker_id), _drain_key(worker_id))
            pipe.publish(_CHANNEL, f"-{worker_id}")
            await pipe.execute()

    async def drain(self, worker_id: str, request_id: str) -> Drain:
        """The drain that holds from now on: an earlier one if there is one."""
        seconds, microseconds = await self._redis.time()
        await self.restore_drain(worker_id, Drain(seconds + microseconds / 1e6, request_id))
        held = _decode(_drain_decoder, await self._redis.get(_drain_key(worker_id)))
        if held is None:
            raise RedisError("a drain was not kept")
        return held

    async def restore_drain(self, worker_id: str, drain: Drain) -> None:
        """Writes it unless another is there."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(_drain_key(worker_id), _encode(drain), nx=True, ex=_DRAIN_SECONDS)
            pipe.publish(_CHANNEL, f"+{worker_id}")
            await pipe.execute()

    async def undrain(self, worker_id: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(_drain_key(worker_id))
            pipe.publish(_CHANNEL, f"+{worker_id}")
            await pipe.execute()

    async def read(self, worker_id: str) -> Member | None:
        record, drain = await self._redis.mget([_key(worker_id), _drain_key(worker_id)])
        return _member(record, drain)

    async def read_drain(self, worker_id: str) -> Drain | None:
        return _decode(_drain_decoder, await self._redis.get(_drain_key(worker_id)))

    async def read_all(self) -> Snapshot:
        ids = [_text(name) for name in await self._redis.smembers(_INDEX)][:MAX_WORKERS]
        keys = [key(worker_id) for key in (_key, _drain_key) for worker_id in ids]
        era, *values = await self._redis.mget([_ERA, *keys])
        records, drains = values[: len(ids)], values[len(ids) :]
        gone = [worker_id for worker_id, value in zip(ids, records, strict=True) if value is None]
        expired = await self._redis.srem(_INDEX, *gone) if gone else 0
        members = (_member(record, drain) for record, drain in zip(records, drains, strict=True))
        return Snapshot(_text(era or b""), [member for member in members if member is not None], expired)

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
        try:
            await self._changes.aclose()
        except RedisErrors:
            pass  # a subscription that is lost is closed, too
        await close(self._redis, "registry")


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _member(record: bytes | str | None, drain: bytes | str | None) -> Member | None:
    known = _decode(_record_decoder, record)
    return None if known is None else Member(known, _decode(_drain_decoder, drain))


def _decode(decoder: msgspec.json.Decoder[_Stored], value: bytes | str | None) -> _Stored | None:
    """What another release wrote and cannot be read counts as absent: the worker is told to register again."""
    if value is None:
        return None
    try:
        return decoder.decode(value)
    except msgspec.MsgspecError:
        return None
