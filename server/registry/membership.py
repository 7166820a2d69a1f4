"""Joining, staying and leaving, kept in step between Redis and the local table.

While Redis is lost nobody is forgotten and heartbeats count locally: the last table serves. When it comes back, perhaps
empty, members heard here are written again, and all others have one lease of time to be heard.
"""

from __future__ import annotations

import asyncio
import logging
import time

from server.logs import log
from server.metrics import Metrics
from server.protocol.errors import ApiError
from server.protocol.registration import Heartbeat, Registration
from server.registry.store import RegistryStore, StoreErrors
from server.registry.table import WorkerRecord, WorkerTable
from server.settings import Settings

_MAX_BACKOFF = 2.0  # seconds between attempts to reach Redis again


class Membership:
    def __init__(self, settings: Settings, table: WorkerTable, store: RegistryStore, metrics: Metrics) -> None:
        self._settings = settings
        self._table = table
        self._store = store
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.connected = False

    async def start(self) -> None:
        """Reads the table once, then follows it. Raises one of StoreErrors when Redis cannot be reached."""
        await self._refresh()
        self._set_connected(True)
        self._task = asyncio.create_task(self._follow(), name="registry")

    async def stop(self) -> None:
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._store.close()
        except StoreErrors as error:
            log(logging.WARNING, "registry not closed cleanly", reason=type(error).__name__)

    async def join(self, registration: Registration) -> None:
        record = WorkerRecord(registration, registration.load, True, time.time())
        self._hear(record)
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

    async def heartbeat(self, worker_id: str, heartbeat: Heartbeat) -> None:
        """Raises ApiError 404 when the worker has no lease any more."""
        worker = self._table.get(worker_id)
        known = worker.record if worker else await self._read(worker_id)
        if known is None:
            raise ApiError(404, "No such worker: its lease ran out; register again.", code="worker_not_found")
        record = WorkerRecord(known.registration, heartbeat.load, heartbeat.healthy, time.time())
        self._hear(record)
        if known.healthy != heartbeat.healthy:
            log(logging.WARNING, "worker changed health", worker=worker_id, healthy=heartbeat.healthy)
        await self._write(record, announce=known.healthy != heartbeat.healthy)

    async def leave(self, worker_id: str) -> None:
        if self._table.leave(worker_id) is not None:
            log(logging.INFO, "worker left", worker=worker_id)
        if self.connected:
            try:
                await self._store.remove(worker_id)
            except StoreErrors as error:
                self._lose(error)

    def _hear(self, record: WorkerRecord) -> None:
        self._table.put(record).heard_here_at = time.monotonic()

    async def _write(self, record: WorkerRecord, *, announce: bool) -> None:
        if not self.connected:
            return  # the follower writes it once Redis is back; a worker does not wait for that
        try:
            await self._store.write(record, announce=announce)
        except StoreErrors as error:
            self._lose(error)

    async def _read(self, worker_id: str) -> WorkerRecord | None:
        if not self.connected:
            return None
        try:
            return await self._store.read(worker_id)
        except StoreErrors as error:
            self._lose(error)
            return None

    async def _follow(self) -> None:
        backoff = 0.1
        # Asked beside the cancellation, which Python 3.11's wait_for (in the redis client) may swallow.
        while not self._stopping:
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

    async def _refresh(self) -> None:
        """Takes over what Redis holds; forgets whom neither Redis nor this controller has heard for a lease."""
        began = time.monotonic()
        records = await self._store.read_all()
        for record in records:
            known = self._table.get(record.id)
            if known is None or known.heard_here_at < began:  # else what was heard here meanwhile is newer
                self._table.put(record)
        present = {record.id for record in records}
        limit = time.monotonic() - self._settings.lease_seconds
        for worker in list(self._table):
            if worker.id not in present and worker.heard_here_at < limit:
                log(logging.WARNING, "worker forgotten: its lease ran out", worker=worker.id)
                self._table.forget(worker.id)

    def _lose(self, error: BaseException) -> None:
        if self.connected:
            self._set_connected(False)
            log(logging.ERROR, "registry lost: serving on the last known table", reason=type(error).__name__)

    def _set_connected(self, connected: bool) -> None:
        self.connected = connected
        self._metrics.registry_connected.set(int(connected))
