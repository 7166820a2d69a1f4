"""What is kept of workers in shared state. No time of day by any controller's clock stands in it, so that controllers
whose clocks differ, or jump, agree on who is there."""

from __future__ import annotations

import msgspec

from server.protocol.registration import Registration, WorkerLoad


class WorkerRecord(msgspec.Struct, frozen=True):
    """A worker as it last told of itself."""

    registration: Registration
    load: WorkerLoad
    healthy: bool
    draining: bool = False  # it takes no new requests: it was told so, or it is about to stop
    beats: int = 0  # heartbeats since it registered: tells one report from the next

    @property
    def id(self) -> str:
        return self.registration.worker_id


class Drain(msgspec.Struct, frozen=True):
    """An operator's word that a worker is to get no more requests."""

    since: float  # unix seconds, by Redis's clock
    request_id: str = ""  # of the request that said so, for the audit log


class Member(msgspec.Struct, frozen=True):
    record: WorkerRecord
    drain: Drain | None = None
