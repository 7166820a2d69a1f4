"""What a worker holds while it is soaked: memory, threads, files, gauges; and whether any of it grows or stays behind.

Knows no requests. A worker that is not on this machine shows its gauges alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import psutil

from benchmarks.own_worker import gauges

# Gauges, by our names: what must be nothing at the end, and what is only shown.
IN_HAND = (
    "num_requests_running",
    "num_requests_waiting",
    "requests_in_hand",
    "images_in_hand",
    "images_in_preparation",
    "features_held",
    "kv_cache_usage_perc",
)
CACHES = ("feature_cache_bytes", "image_cache_bytes")
# What a soak is to bring about, and what tells how hard it was.
PRESSURES = {
    "num_preemptions_total": "preemptions for want of KV blocks",
    "prefix_cache_hits_total": "prompt tokens from the prefix cache",
    "mm_cache_hits_total": "image features from their cache",
    "grammar_cache_hits_total": "compiled forms from their cache",
}
BUSY = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
SHOWN = (*IN_HAND, *CACHES, *PRESSURES, "block_checks", "block_faults")
_MIB = 2**20


@dataclass(frozen=True)
class Bounds:
    """Growth of memory between the middles of the first and the last third, in bytes; budgets of caches, in bytes."""

    growth: int
    caches: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """`seconds` since the watch began; None where the process cannot be seen."""

    seconds: float
    resident: int | None
    threads: int | None
    files: int | None
    children: int | None
    gauges: Mapping[str, float]


@dataclass(frozen=True)
class Finding:
    """One thing that had to hold."""

    name: str
    found: str
    expected: str
    holds: bool


class Watch:
    """Samples of one worker. `process` is its own, not that of who started it."""

    def __init__(self, client: aiohttp.ClientSession, url: str, process: psutil.Process | None) -> None:
        self._client = client
        self._url = url
        self._process = process
        self._began = time.monotonic()
        self.samples: list[Sample] = []
        self.missed: list[str] = []  # what was wrong whenever the metrics could not be had

    async def sample(self) -> Sample | None:
        """None, and a line more in `missed`, when the metrics do not come."""
        try:
            told = await gauges(self._client, self._url)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.missed.append(f"after {time.monotonic() - self._began:.0f} s: {type(error).__name__}: {error}")
            return None
        sample = Sample(
            time.monotonic() - self._began, *self._look(), {name: told[name] for name in SHOWN if name in told}
        )
        self.samples.append(sample)
        return sample

    def _look(self) -> tuple[int | None, int | None, int | None, int | None]:
        if self._process is None:
            return None, None, None, None
        with contextlib.suppress(psutil.Error), self._process.oneshot():  # gone, or not ours to see: told as unknown
            process = self._process
            return process.memory_info().rss, process.num_threads(), process.num_fds(), len(process.children())
        return None, None, None, None


def process_at(url: str) -> psutil.Process | None:
    """Who listens there, if that is on this machine and may be seen."""
    port = urlsplit(url).port
    with contextlib.suppress(psutil.Error):  # some systems show connections to root alone
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return psutil.Process(connection.pid)
    return None


def growth(samples: Sequence[Sample]) -> float | None:
    """Bytes from the middle of the first third to the middle of the last, by a line through all samples."""
    points = [(sample.seconds, sample.resident) for sample in samples if sample.resident is not None]
    if len(points) < 3:
        return None
    seconds, resident = np.array(points, np.float64).T
    slope = np.polyfit(seconds - seconds[0], resident, 1)[0]
    return float(slope * (seconds[-1] - seconds[0]) * 2 / 3)


def judge(
    begin: Sample, during: Sequence[Sample], end: Sample, missed: Sequence[str], bounds: Bounds
) -> Iterator[Finding]:
    """`begin` and `end` are of the idle worker, before and after."""
    for name in IN_HAND:
        left = end.gauges.get(name)
        if left is not None:
            yield Finding(f"{name} when idle", f"{left:g}", "0", left == 0)
    for name, most in bounds.caches.items():
        held = max(sample.gauges[name] for sample in (*during, end) if name in sample.gauges)
        yield Finding(f"{name}, at most", f"{held / _MIB:.1f} MiB", f"{most / _MIB:.1f} MiB", held <= most)
    checks, faults = end.gauges.get("block_checks"), end.gauges.get("block_faults")
    if checks and faults is not None:
        grown = checks - begin.gauges["block_checks"]
        yield Finding("steps whose books did not agree", f"{faults:g} of {grown:g}", "0", faults == 0 and grown > 0)
    found = growth(during)
    if found is not None:
        told = f"{found / _MIB:+.1f} MiB"
        yield Finding("growth of memory", told, f"at most {bounds.growth / _MIB:.0f} MiB", found <= bounds.growth)
    for name, before, after in (
        ("threads", begin.threads, end.threads),
        ("open files", begin.files, end.files),
        ("child processes", begin.children, end.children),
    ):
        if before is not None and after is not None:
            yield Finding(name, f"{after}", f"{before}, as at the beginning", after <= before)
    yield Finding("metrics that did not come", str(len(missed)), "0", not missed)
