"""Starts a server for a measurement, watches what its processes take, and sees that all of them are gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from deploy.supervisor import Part, PartFailed, Stage, Supervised, tail_of

TAIL = 30  # lines of a log that are shown
_PROBE_SECONDS = 5.0
_SAMPLE_SECONDS = 0.5
_STOP_SECONDS = 60.0
_GONE_SECONDS = 30.0
_DOUBT_SECONDS = 2.0


class ServerFailed(Exception):
    """It did not start, or it ended while it was measured. `tail` is the end of its log."""

    def __init__(self, message: str, tail: tuple[str, ...]) -> None:
        super().__init__(message)
        self.tail = tail


@dataclass
class Processes:
    """What a server's whole process tree takes, from its start on. Memory in bytes, times in seconds."""

    supervised: Supervised
    peak: int = 0
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def sample(self) -> None:
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between
                total += process.memory_info().rss
                self.seen[process.pid] = process
        self.peak = max(self.peak, total)

    def processor_seconds(self) -> float:
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between
                spent = process.cpu_times()
                total += spent.user + spent.system
        return total

    def _tree(self) -> list[psutil.Process]:
        lifeline = self.supervised.pid
        if lifeline is None:
            return []
        try:
            return list(psutil.Process(lifeline).children(recursive=True))
        except psutil.NoSuchProcess:
            return []


@dataclass(frozen=True)
class Server:
    """One that is ready."""

    url: str
    processes: Processes
    supervised: Supervised
    log: Path

    async def check(self, *, doubtful: bool = False) -> None:
        """Raises ServerFailed when it has ended. `doubtful`: requests failed, so its end may be about to be known."""
        if doubtful:
            try:
                await asyncio.wait_for(self.supervised.stopped(), _DOUBT_SECONDS)
            except TimeoutError:
                pass  # it runs on
        if self.supervised.pid is None:
            raise ServerFailed("the server ended while it was measured", tail_of(self.log, TAIL))


@asynccontextmanager
async def running(
    name: str, command: tuple[str, ...], environment: Mapping[str, str], url: str, log: Path, start_seconds: float
) -> AsyncIterator[Server]:
    """From ready to gone. Raises ServerFailed when it does not become ready in time."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PROBE_SECONDS)) as client:
        probe = _Probe(client, f"{url}/v1/models")
        supervised = Supervised(Part(name, command, environment, log, probe, start_seconds), _Silent())
        processes = Processes(supervised)
        sampling = asyncio.create_task(_sampling(processes))
        try:
            try:
                await supervised.start()
            except PartFailed as error:
                raise ServerFailed(str(error), tail_of(log, TAIL)) from error
            yield Server(url, processes, supervised, log)
        finally:
            sampling.cancel()
            processes.sample()
            await _stop(supervised, processes)


async def _sampling(processes: Processes) -> None:
    while True:
        processes.sample()
        await asyncio.sleep(_SAMPLE_SECONDS)


async def _stop(supervised: Supervised, processes: Processes) -> None:
    """Politely, then by force; returns when every process of the tree is gone."""
    supervised.ask_to_stop()
    try:
        await asyncio.wait_for(supervised.stopped(), _STOP_SECONDS)
    except TimeoutError:
        pass  # it is ended below
    supervised.kill()
    await supervised.stopped()
    _, left = await asyncio.to_thread(psutil.wait_procs, list(processes.seen.values()), _GONE_SECONDS)
    for process in left:  # it left its process group
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between
            process.kill()


class _Probe:
    """Ready once it lists its models."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client = client
        self._url = url

    async def __call__(self) -> Stage:
        try:
            async with self._client.get(self._url) as answer:
                return Stage.READY if answer.status == 200 else Stage.LOADING
        except aiohttp.ClientConnectorError:
            return Stage.STARTING
        except (aiohttp.ClientError, TimeoutError):
            return Stage.LOADING


class _Silent:
    """The comparison tells what happens itself."""

    def stage(self, part: str, stage: Stage) -> None:
        """Not shown."""

    def say(self, line: str) -> None:
        """Not shown."""


class OtherWork:
    """How much of the machine went to processes that are neither the server nor this one, since it was made."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._began = time.monotonic()
        self._busy, self._own = _busy_seconds(), self._known()

    def share(self) -> float:
        """0 to 1, of all processors."""
        elapsed = (time.monotonic() - self._began) * psutil.cpu_count()
        others = (_busy_seconds() - self._busy) - (self._known() - self._own)
        return min(1.0, max(0.0, others / max(elapsed, 1e-9)))

    def _known(self) -> float:
        mine = psutil.Process().cpu_times()
        return self._processes.processor_seconds() + mine.user + mine.system


def _busy_seconds() -> float:
    spent = psutil.cpu_times()
    return sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "guest", 0.0)


def free_port() -> int:
    """One of the loopback address that nobody listens on now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
