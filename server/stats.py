"""What came of requests lately, in this process: rates, durations, errors, the last requests and the slowest.

Bounded: a ring of short slices with counts and fixed histograms, and two short lists of records. No prompt text.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

import msgspec

from server.latency import Histogram, add_up, bucket_of

Ended = Literal["complete", "error", "client_left", "broken"]

RECENT = 200  # requests listed
WINDOW = 60  # seconds that rates are averaged over
WINDOWS = (60, 300, 900)  # seconds that counts and percentiles can be asked for
SLOWEST = 20  # requests listed as the slowest of a window
_SLICE = 5  # seconds of one slice
_SLOWEST_IN_SLICE = 3
_MOST_CODES = 32  # kinds of errors told apart in a slice: codes may come from a worker of any make


@dataclass
class RequestRecord:
    """One request's story; filled in while it lasts."""

    id: str
    route: str
    started_at: float = field(default_factory=time.time)  # unix seconds
    key: str = ""  # name of the client's key
    model: str = ""
    stream: bool = False
    images: int = 0
    asked_version: str = ""  # that the answer had to be computed on; empty: any
    session: str = ""  # a digest of the session that it asked to stay in
    status: int = 0
    worker: str = ""
    version: str = ""  # of the model, at that worker
    retries: int = 0
    carried_over: int = 0  # times that another worker took up the stream
    prompt_tokens: int = 0  # as the worker reported; 0: it did not
    completion_tokens: int = 0
    prepare_seconds: float = 0.0  # body, auth, pictures, admission
    lost_seconds: float = 0.0  # attempts that failed before the answer began
    queue_seconds: float = 0.0  # as the worker reported: until its engine began; 0: it did not
    prefill_seconds: float = 0.0  # likewise, from there to the first token
    decode_seconds: float = 0.0  # likewise, of an answer that is not streamed, from there to the last token
    send_seconds: float = 0.0  # waiting for the client to take what it was sent
    first_byte_seconds: float = 0.0  # from arrival; 0: no answer began
    seconds: float = 0.0
    ended: Ended = "error"
    error: str = ""  # an error's code
    _clock: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._clock

    @property
    def failed(self) -> bool:
        """By anybody's fault but the client's leaving."""
        return self.ended == "broken" or (self.status >= 400 and self.ended != "client_left")

    def phases(self) -> dict[str, float]:
        """Where the time went, in seconds that add up to all of it. `worker` is what the worker does not tell apart:
        its queue and its work, or the way there and back beside them."""
        left = self.seconds

        def part(seconds: float) -> float:
            nonlocal left
            taken = min(max(0.0, seconds), left)
            left -= taken
            return taken

        sending = part(self.send_seconds)
        prepare = part(self.prepare_seconds or (self.seconds if not self.worker else 0.0))
        lost = part(self.lost_seconds)
        streaming = self.stream and self.first_byte_seconds > 0
        decode = part(self.seconds - self.first_byte_seconds - sending if streaming else self.decode_seconds)
        queue, prefill = part(self.queue_seconds), part(self.prefill_seconds)
        return {
            "prepare": prepare,
            "lost": lost,
            "queue": queue,
            "prefill": prefill,
            "worker": left,
            "decode": decode,
            "sending": sending,
        }

    def public(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in _PUBLIC} | {"phases": self.phases()}


_PUBLIC = tuple(one.name for one in fields(RequestRecord) if not one.name.startswith("_"))


class ErrorCount(msgspec.Struct):
    count: int = 0
    last: float = 0.0  # unix seconds
    request_id: str = ""  # the last one's


class Tally(msgspec.Struct):
    """What came of the requests of some time. They can be added up, over slices and over processes."""

    requests: int = 0
    tokens: int = 0
    failed: int = 0
    refused_429: int = 0
    limits_hit: int = 0  # of those, by a limit of a key
    quarantined: int = 0
    retries: int = 0
    carried_over: int = 0
    broken: int = 0
    client_left: int = 0
    errors: dict[str, ErrorCount] = msgspec.field(default_factory=dict)  # "status code" -> how often
    ttft: Histogram = msgspec.field(default_factory=dict)  # of streams
    inter_token: Histogram = msgspec.field(default_factory=dict)
    latency: Histogram = msgspec.field(default_factory=dict)  # whole answers

    def add(self, record: RequestRecord) -> None:
        self.requests += 1
        self.failed += record.failed
        self.refused_429 += record.status == 429
        self.limits_hit += record.error == "rate_limit_exceeded"
        self.quarantined += record.error == "request_quarantined"
        self.retries += record.retries
        self.carried_over += record.carried_over
        self.broken += record.ended == "broken"
        self.client_left += record.ended == "client_left"
        if record.failed:
            self._count_error(f"{record.status} {record.error or 'error'}", ErrorCount(1, time.time(), record.id))
        if record.status == 200 and record.ended == "complete":
            add_up(self.latency, {bucket_of(record.seconds): 1})
            if record.stream:
                add_up(self.ttft, {bucket_of(record.first_byte_seconds): 1})

    def merge(self, other: Tally) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, error in other.errors.items():
            self._count_error(kind, error)
        for name in _HISTOGRAMS:
            add_up(getattr(self, name), getattr(other, name))

    def _count_error(self, kind: str, more: ErrorCount) -> None:
        if kind not in self.errors and len(self.errors) >= _MOST_CODES:
            kind = f"{kind.partition(' ')[0]} other"
        error = self.errors.setdefault(kind, ErrorCount())
        error.count += more.count
        if more.last >= error.last:
            error.last, error.request_id = more.last, more.request_id


_HISTOGRAMS = ("ttft", "inter_token", "latency")
_COUNTS = tuple(name for name in Tally.__struct_fields__ if name not in (*_HISTOGRAMS, "errors"))


@dataclass
class _Slice:
    number: int = -1  # of _SLICE seconds since the clock began
    tally: Tally = field(default_factory=Tally)
    slowest: list[RequestRecord] = field(default_factory=list)


class Stats:
    """Filled by the hot route and the relay; read by /admin/stats."""

    def __init__(self) -> None:
        self.recent: deque[RequestRecord] = deque(maxlen=RECENT)
        self.requests = Rate(WINDOW)
        self.tokens = Rate(WINDOW)
        self.errors = Rate(WINDOW)
        self.total_requests = 0
        self.total_tokens = 0
        self._ring = [_Slice() for _ in range(max(WINDOWS) // _SLICE + 1)]

    def add_tokens(self, count: int, gap: float | None = None) -> None:
        """`gap`: seconds since the stream's last text came; None where none had come."""
        if not count:
            return
        self.tokens.add(count)
        self.total_tokens += count
        tally = self._now().tally
        tally.tokens += count
        if gap is not None:
            bucket = bucket_of(gap / count)
            tally.inter_token[bucket] = tally.inter_token.get(bucket, 0) + count

    def add(self, record: RequestRecord) -> None:
        """A request that has ended."""
        self.recent.append(record)
        self.requests.add(1)
        self.total_requests += 1
        if record.status >= 500 or record.ended == "broken":
            self.errors.add(1)
        now = self._now()
        now.tally.add(record)
        now.slowest.append(record)
        if len(now.slowest) > _SLOWEST_IN_SLICE:
            now.slowest.remove(min(now.slowest, key=lambda one: one.seconds))

    def tally(self, window: int) -> Tally:
        """Of the last `window` seconds, to a slice."""
        total = Tally()
        for one in self._last(window):
            total.merge(one.tally)
        return total

    def slowest(self, window: int) -> list[RequestRecord]:
        """The slowest first."""
        every = [record for one in self._last(window) for record in one.slowest]
        return sorted(every, key=lambda record: -record.seconds)[:SLOWEST]

    def _now(self) -> _Slice:
        number = int(time.monotonic()) // _SLICE
        one = self._ring[number % len(self._ring)]
        if one.number != number:
            self._ring[number % len(self._ring)] = one = _Slice(number)
        return one

    def _last(self, window: int) -> Iterator[_Slice]:
        oldest = int(time.monotonic() - window) // _SLICE
        return (one for one in self._ring if one.number >= oldest)


class Rate:
    """Counts a second, over the last `window` whole seconds."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._counts = [0] * (window + 1)
        self._now = int(time.monotonic())

    def add(self, count: int) -> None:
        self._advance()
        self._counts[self._now % len(self._counts)] += count

    def per_second(self) -> float:
        return sum(self.history()) / self._window

    def history(self) -> list[int]:
        """Oldest second first; the running second is left out."""
        self._advance()
        size = len(self._counts)
        return [self._counts[(self._now + 1 + step) % size] for step in range(self._window)]

    def _advance(self) -> None:
        now = int(time.monotonic())
        size = len(self._counts)
        for second in range(self._now + 1, min(now, self._now + size) + 1):  # one turn clears the whole ring
            self._counts[second % size] = 0
        self._now = now
