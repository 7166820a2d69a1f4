"""Joining, staying, draining and leaving, kept in step between Redis and the local table.

While Redis is lost nobody is forgotten and heartbeats count locally: the last table serves, and drains hold. When it
comes back, perhaps empty, members heard here and all drains are written again, and all others have one lease of time to
be heard. Time is measured by each controller's monotonic clock and by Redis alone, never by the time of day.
"""

from __future__ import annotations

import asyncio
import logging
import time

from server.background import end
from server.logs import log
from server.metrics import Metrics
from server.protocol.errors import ApiError, unavailable
from server.protocol.registration import Heartbeat, HeartbeatAnswer, Registration
from server.registry.records import Drain, Member, WorkerRecord
from server.registry.store import RegistryStore, Snapshot, StoreErrors
from server.registry.table import WorkerTable
from server.registry.watch import StateWatch
from server.registry.worker import Worker
from server.settings import Settings

_MAX_BACKOFF = 2.0  # seconds between attempts to reach Redis again


class Membership:
    def __init__(self, settings: Settings, table: WorkerTable, store: RegistryStore, metrics: Metrics) -> None:
        self._settings = settings
        self._table = table
        self._store = store
        self._metrics = metrics
        self._watch = StateWatch(table, metrics)
        self._era = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.connected = False

    async def start(self) -> None:
        """Reads the table once, then follows it. Raises one of StoreErrors when Redis cannot be reached."""
        await self._refresh(established=True)
        self._set_connected(True)
        self._tasks = [asyncio.create_task(self._follow(), name="registry")]

    async def stop(self) -> None:
        await end(self._tasks)
        await self._store.close()

    async def join(self, registration: Registration) -> None:
        record = WorkerRecord(registration, registration.load, True)
        if self._table.get(record.id) is None:
            self._metrics.registrations.labels("joined").inc()
        self._hear(record, self._known_drain(record.id))
        log(
            logging.INFO,
            "worker joined",
            worker=record.id,
            url=registration.url,
            model=registration.model.name,
            version=registration.model.version,
            engine=registration.engine,
            device=registration.device,
        )
        await self._write(record, announce=True)
        await self._read_drain(record.id)

    async def heartbeat(self, worker_id: str, heartbeat: Heartbeat) -> HeartbeatAnswer:
        """Raises ApiError 404 when the worker has no lease any more."""
        worker = self._table.get(worker_id)
        known = Member(worker.record, worker.drain) if worker else await self._read(worker_id)
        if known is None:
            raise ApiError(404, "No such worker: its lease ran out; register again.", code="worker_not_found")
        before = known.record
        record = WorkerRecord(
            before.registration, heartbeat.load, heartbeat.healthy, heartbeat.draining, before.beats + 1
        )
        self._hear(record, known.drain)
        await self._write(record, announce=(before.healthy, before.draining) != (heartbeat.healthy, heartbeat.draining))
        return HeartbeatAnswer(drain=self._known_drain(worker_id) is not None)

    async def leave(self, worker_id: str) -> None:
        if self._table.leave(worker_id) is not None:
            self._metrics.registrations.labels("left").inc()
            log(logging.INFO, "worker left", worker=worker_id)
        if self.connected:
            try:
                await self._store.remove(worker_id)
            except StoreErrors as error:
                self._lose(error)

    async def drain(self, worker_id: str, request_id: str) -> Worker:
        """From now on no controller sends it requests. Raises ApiError: 404, or 503 while Redis cannot be reached."""
        worker = self._member(worker_id)
        try:
            drain = await self._store.drain(worker_id, request_id)
        except StoreErrors as error:
            raise self._not_kept(error) from error
        worker.set_drain(drain)
        return worker

    async def undrain(self, worker_id: str) -> Worker:
        """Takes `drain` back. Raises like it."""
        worker = self._member(worker_id)
        try:
            await self._store.undrain(worker_id)
        except StoreErrors as error:
            raise self._not_kept(error) from error
        worker.set_drain(None)
        return worker

    def _member(self, worker_id: str) -> Worker:
        worker = self._table.get(worker_id)
        if worker is None:
            raise ApiError(
                404, f"No such worker: {worker_id[:128]!r}; GET /admin/workers lists them.", code="worker_not_found"
            )
        return worker

    def _not_kept(self, error: BaseException) -> ApiError:
        self._lose(error)
        return unavailable("Drains are kept in Redis, which cannot be reached; nothing was changed. Try again shortly.")

    def _known_drain(self, worker_id: str) -> Drain | None:
        worker = self._table.get(worker_id)
        return worker.drain if worker is not None else None

    def _hear(self, record: WorkerRecord, drain: Drain | None) -> None:
        self._table.put(Member(record, drain)).heard_here_at = time.monotonic()

    async def _write(self, record: WorkerRecord, *, announce: bool) -> None:
        if not self.connected:
            return  # the follower writes it once Redis is back; a worker does not wait for that
        try:
            await self._store.write(record, announce=announce)
        except StoreErrors as error:
            self._lose(error)

    async def _read(self, worker_id: str) -> Member | None:
        if not self.connected:
            return None
        try:
            return await self._store.read(worker_id)
        except StoreErrors as error:
            self._lose(error)
            return None

    async def _read_drain(self, worker_id: str) -> None:
        """A drain holds for a worker that was lost and comes back."""
        if not self.connected:
            return
        try:
            drain = await self._store.read_drain(worker_id)
        except StoreErrors as error:
            self._lose(error)
            return
        worker = self._table.get(worker_id)
        if worker is not None and drain is not None:
            worker.set_drain(drain)

    async def _follow(self) -> None:
        backoff = 0.1
        while True:
            try:
                if not self.connected:
                    await self._store.reconnect()
                    await self._recover()
                    backoff = 0.1
                change = await self._store.next_change(self._settings.poll_seconds)
                if change is not None and change.startswith("-"):
                    self._table.leave(change[1:])
                await self._refresh()
            except StoreErrors as error:
                self._lose(error)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _MAX_BACKOFF)
            self._watch.look()

    async def _recover(self) -> None:
        """Redis answers again: put back what it may have lost, and give everyone a lease of time."""
        await self._store.ping()
        now = time.monotonic()
        for worker in self._table:
            if now - worker.heard_here_at < self._settings.lease_seconds:
                await self._store.write(worker.record, announce=False)
            worker.heard_here_at = now
        self._set_connected(True)
        log(logging.INFO, "registry is back", workers=len(self._table))

    async def _refresh(self, *, established: bool = False) -> None:
        """Takes over what Redis holds; forgets whom neither Redis nor this controller has heard for a lease.

        Whether Redis still has a worker's record does not decide: it keeps leases by its time of day, which may jump.
        A record that stays but is not renewed says nothing; a report that came a moment ago holds without its record.
        """
        began = time.monotonic()
        snapshot = await self._read_all()
        if not snapshot.era or snapshot.era != self._era:
            await self._remind()
            snapshot = await self._read_all()
        for member in snapshot.members:
            if not self._table.gave_up(member.record):
                self._table.put(self._newest(member, began), established=established)
        present = {member.record.id for member in snapshot.members}
        lease = self._settings.lease_seconds
        for worker in list(self._table):
            # By way of Redis a report may be late by as much as it takes to read it.
            if worker.unheard_seconds > (2 * lease if worker.id in present else lease):
                log(logging.WARNING, "worker forgotten: its lease ran out", worker=worker.id)
                self._table.forget(worker.id)

    async def _read_all(self) -> Snapshot:
        snapshot = await self._store.read_all()
        self._metrics.registrations.labels("forgotten").inc(snapshot.expired)
        return snapshot

    def _newest(self, member: Member, began: float) -> Member:
        """What Redis said, but for what was heard here since it was asked."""
        known = self._table.get(member.record.id)
        if known is None:
            return member
        return Member(
            known.record if known.heard_here_at >= began else member.record,
            known.drain if known.drain_set_at >= began else member.drain,
        )

    async def _remind(self) -> None:
        """Redis has forgotten what it held, or is another one than before: the drains known here are written again."""
        era = await self._store.era()
        for worker in self._table:
            if worker.drain is not None:
                await self._store.restore_drain(worker.id, worker.drain)
        if self._era:
            log(logging.WARNING, "shared state was lost and written again", workers=len(self._table))
        self._era = era

    def _lose(self, error: BaseException) -> None:
        if self.connected:
            self._set_connected(False)
            log(logging.ERROR, "registry lost: serving on the last known table", reason=type(error).__name__)

    def _set_connected(self, connected: bool) -> None:
        self.connected = connected
        self._metrics.registry_connected.set(int(connected))
