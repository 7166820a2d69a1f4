"""`tephra bench soak`: mixed traffic at saturation for a long while, every request accounted for, nothing left behind.

The worker is warmed up with every kind of request and left to become idle: that is the beginning that the end is held
against. Then clients ask one random case after the other until the time is up, and the worker becomes idle again.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.engines import MODEL
from benchmarks.machine import Machine, our_versions
from benchmarks.own_worker import chat_body, context_length, kv_bytes, own_worker
from benchmarks.results import Rows, page, print_rows, save
from benchmarks.serve import check_writable
from benchmarks.servers import Server, ServerFailed
from benchmarks.soak_cases import CHAT, Traffic
from benchmarks.soak_client import Outcome, SoakClient
from benchmarks.soak_watch import BUSY, IN_HAND, PRESSURES, Bounds, Finding, Sample, Watch, judge, process_at
from benchmarks.workload import Workload

RESULTS = ("answered", "refused", "turned away", "left", "wrong")
_MIB = 2**20
_CACHE_BYTES = {"feature_cache_bytes": 4 * _MIB, "image_cache_bytes": 16 * _MIB}  # small, so that they overflow
_RUNNING, _WAITING = 12, 16
_CONTEXTS = 1.1  # that the KV cache holds, so that blocks run out
_SAMPLE_SECONDS = 2.0
_SETTLE_SECONDS = 90.0
_LONGEST_WAIT = 1.0  # seconds that a client turned away waits at most, so that the worker stays saturated
_WARM_UP_ROUNDS = 3
_KEPT_WRONGS = 50


@dataclass(frozen=True)
class Soak:
    """What `tephra bench soak` was told. Without `url` a worker is started on `model`."""

    model: Path
    json: Path
    markdown: Path
    minutes: float = 20.0
    clients: int = 32
    url: str | None = None
    dtype: str = "float32"
    growth: int = 64 * _MIB
    seed: int = 0
    name: str = "soak"
    start_seconds: float = 300.0
    request_seconds: float = 300.0


@dataclass
class Found:
    """What came of it, as it grows."""

    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrongs: list[Outcome] = field(default_factory=list)
    begun: int = 0
    findings: list[Finding] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.kind][outcome.result] += 1
        if outcome.result == "wrong" and len(self.wrongs) < _KEPT_WRONGS:
            self.wrongs.append(outcome)

    @property
    def totals(self) -> Counter[str]:
        return sum(self.counts.values(), Counter())

    def account(self) -> None:
        """No request lost, none answered wrongly."""
        ended, wrong = self.totals.total(), self.totals["wrong"]
        self.findings.insert(0, Finding("requests with no end", str(self.begun - ended), "0", self.begun == ended))
        self.findings.insert(0, Finding("requests answered wrongly", str(wrong), "0", not wrong))


def soak(asked: Soak, console: Console) -> int:
    """Returns the exit code: 1 where anything did not hold. Raises ServerFailed, OSError, ModelError."""
    for file in (asked.json, asked.markdown):
        file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(file)
    found = Found()
    date = time.strftime("%Y-%m-%d %H:%M %Z")
    asyncio.run(_run(asked, found, console))
    machine, versions = vars(Machine.this()), {"this environment": our_versions()}
    settings = {
        "worker": asked.url or f"started on {asked.model}",
        "worker's flags": [] if asked.url else _arguments(asked.model),
        "dtype": asked.dtype,
        "minutes": asked.minutes,
        "clients": asked.clients,
        "seed": asked.seed,
    }
    tables = [_kinds(found), _meanwhile(found.samples), _holds(found.findings)]
    notes = [*found.notes, *(f"{one.kind}: {one.detail}" for one in found.wrongs)]
    document = {
        "settings": settings,
        "machine": machine,
        "versions": versions,
        "date": date,
        "requests": found.counts,
        "wrong": [asdict(one) for one in found.wrongs],
        "notes": found.notes,
        "findings": [asdict(one) for one in found.findings],
        "samples": [asdict(one) for one in found.samples],
    }
    save(
        document, page(f"{asked.name}, {date}", machine, versions, settings, tables, notes), asked.json, asked.markdown
    )
    for rows in tables:
        print_rows(rows, console)
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True, highlight=False, markup=False)
    console.print(f"\nSaved as {asked.json} and {asked.markdown}", highlight=False, soft_wrap=True)
    return int(not all(one.holds for one in found.findings))


def _arguments(model: Path) -> list[str]:
    """Few blocks, small caches and a short queue: what a soak is to overflow."""
    told: dict[str, Any] = {
        "kv-cache-bytes": kv_bytes(model, int(_CONTEXTS * context_length(model))),
        "max-running": _RUNNING,
        "max-waiting": _WAITING,
        "body-seconds": 20,
        "log-level": "warning",
    } | {name.replace("_", "-"): size for name, size in _CACHE_BYTES.items()}
    return ["--check-blocks", *(word for name, value in told.items() for word in (f"--{name}", str(value)))]


@asynccontextmanager
async def _worker(asked: Soak) -> AsyncIterator[tuple[str, Server | None]]:
    if asked.url is not None:
        yield asked.url.rstrip("/"), None
        return
    with tempfile.TemporaryDirectory(prefix="tephra-soak-") as folder:
        log = Path(folder, "worker.log")
        async with own_worker(
            asked.model, _arguments(asked.model), log, dtype=asked.dtype, start_seconds=asked.start_seconds
        ) as server:
            yield server.url, server


async def _run(asked: Soak, found: Found, console: Console) -> None:
    async with (
        _worker(asked) as (url, server),
        aiohttp.ClientSession() as session,
        SoakClient(url, asked.request_seconds, steady=asked.dtype == "float32") as client,
    ):
        process = process_at(url)
        if process is None:
            found.notes.append("The worker's process cannot be seen: nothing is told of memory, threads and files.")
        watch = Watch(session, url, process)
        traffic = Traffic(asked.seed, await _fitting_words(session, url, context_length(asked.model)))
        for _ in range(_WARM_UP_ROUNDS):
            for outcome in await asyncio.gather(*map(client.ask, traffic.every())):
                if outcome.result == "wrong":
                    found.notes.append(f"Warming up, {outcome.kind}: {outcome.detail}")
        await client.hang_up()
        begin = await _idle(watch)
        watch.samples.clear()
        watch.missed.clear()
        await _saturate(asked, traffic, client, watch, found, console)
        during = list(watch.samples)
        await client.hang_up()
        end = await _idle(watch)
        found.samples = [begin, *during, end]
        bounds = Bounds(asked.growth, {} if server is None else _CACHE_BYTES)
        found.findings = list(judge(begin, during, end, watch.missed, bounds))
        found.account()
        for name, told in PRESSURES.items():
            if end.gauges.get(name, 0.0) <= begin.gauges.get(name, 0.0):
                found.notes.append(f"It was no whole soak: {told} never happened.")
        if not end.gauges.get("block_checks"):
            found.notes.append("The worker was not started with --check-blocks: nothing is told of its books.")
        if server is not None:
            await server.check()


async def _saturate(
    asked: Soak, traffic: Traffic, client: SoakClient, watch: Watch, found: Found, console: Console
) -> None:
    """Until the time is up and every request has ended."""
    deadline = time.monotonic() + asked.minutes * 60

    async def one_after_the_other() -> None:
        while time.monotonic() < deadline:
            case = traffic.next()
            found.begun += 1
            outcome = await client.ask(case)
            found.add(outcome)
            if outcome.wait:
                await asyncio.sleep(min(outcome.wait, _LONGEST_WAIT))

    async def watching() -> None:
        while True:
            await watch.sample()
            await asyncio.sleep(_SAMPLE_SECONDS)

    looking = asyncio.create_task(watching())
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=asked.minutes * 60)
        clients = [asyncio.create_task(one_after_the_other()) for _ in range(asked.clients)]
        try:
            while pending := [client for client in clients if not client.done()]:
                await asyncio.wait(pending, timeout=1.0)
                told = ", ".join(f"{found.totals[name]} {name}" for name in RESULTS)
                left = max(0.0, deadline - time.monotonic())
                bar.update(task, completed=asked.minutes * 60 - left, description=told)
            await asyncio.gather(*clients)
        finally:
            for running in (looking, *clients):
                running.cancel()
            await asyncio.gather(looking, *clients, return_exceptions=True)


async def _idle(watch: Watch) -> Sample:
    """Waits until the worker has nothing in hand, or for a good while. Raises ServerFailed when it tells nothing."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        await asyncio.sleep(1.0)  # connections that are hung up are closed by now
        sample = await watch.sample()
        busy = sample is None or any(sample.gauges.get(name) for name in IN_HAND)
        if not busy or time.monotonic() > deadline:
            break
    if sample is None:
        raise ServerFailed("the worker no longer tells its metrics", tuple(watch.missed[-3:]))
    return sample


async def _fitting_words(session: aiohttp.ClientSession, url: str, context: int) -> int:
    """How many words of a question just fit, by the tokens of two lengths. Raises ServerFailed."""
    lengths = []
    for words in (10, 60):
        body = chat_body(Workload(prompt_words=words).question(0, 0), max_tokens=1)
        try:
            async with session.post(url + CHAT, json=body) as response:
                lengths.append((await response.json())["usage"]["prompt_tokens"])
        except (aiohttp.ClientError, KeyError, TypeError, ValueError) as error:
            raise ServerFailed(f"{url} does not answer for model {MODEL!r}: {error}", ()) from error
    each = (lengths[1] - lengths[0]) / 50
    return int((context - 200 - lengths[0]) / each * 0.9)


def _kinds(found: Found) -> Rows:
    rows = [(kind, *(str(counts[name]) for name in RESULTS)) for kind, counts in sorted(found.counts.items())]
    rows.append(("all", *(str(found.totals[name]) for name in RESULTS)))
    return Rows("What came of the requests", ("kind", *RESULTS), tuple(rows))


def _meanwhile(samples: Sequence[Sample]) -> Rows:
    """What the traffic made the worker do; nothing for a worker that tells no such numbers."""
    begin, end = samples[0].gauges, samples[-1].gauges
    counted = [(told, f"{end[name] - begin[name]:g}") for name, told in PRESSURES.items() if name in begin]
    most = [
        (f"{name}, at most", f"{max(sample.gauges[name] for sample in samples):g}") for name in BUSY if name in begin
    ]
    return Rows("What happened meanwhile", ("", "found"), (*counted, *most))


def _holds(findings: Sequence[Finding]) -> Rows:
    rows = tuple((one.name, one.found, one.expected, "yes" if one.holds else "NO") for one in findings)
    return Rows("What had to hold", ("", "found", "expected", "holds"), rows)
