"""`tephra bench determinism`: whether a request is answered with the same tokens whatever else the worker does.

Each of a fixed set of requests (greedy and seeded, text and pictures, short and long) is first answered alone, on a
worker without a prefix cache. Then the same requests are sent at once, among random others, to workers whose caches,
blocks and steps are set so that the same tokens are computed in other ways; their answers are compared token by token.
In float32 none may differ; for other precisions the share that did is told.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from benchmarks.machine import Machine, our_versions
from benchmarks.own_worker import chat_body, context_length, gauges, kv_bytes, own_worker, picture_part, text_part
from benchmarks.pictures import PictureShelf, Size
from benchmarks.results import Rows, page, print_rows, save
from benchmarks.sameness import Reading, Told
from benchmarks.serve import check_writable
from benchmarks.servers import Server, ServerFailed
from benchmarks.workload import Workload

PRECISIONS = {"float32": ("float32", ()), "bfloat16": ("bfloat16", ()), "int8": ("auto", ("--quantization", "int8"))}
_SIZES = tuple(Size(*sides) for sides in ((336, 336), (40, 24), (500, 180), (90, 400)))
_BLOCK = 16  # tokens: the worker's own
_OTHERS = 6  # streams of other requests beside


@dataclass(frozen=True)
class Condition:
    """One way to be answered: flags of the worker (`BLOCKS` is replaced), and whether others are asked meanwhile."""

    name: str
    arguments: tuple[str, ...]
    crowded: bool = True


_BLOCKS = "BLOCKS"
_PLAIN = ("--no-prefix-cache",)
CONDITIONS = (
    Condition("one by one, prefix cache", (), crowded=False),
    Condition("crowd, prefix cache", ()),
    Condition("crowd, no caches", (*_PLAIN, "--feature-cache-bytes", "0", "--image-cache-bytes", "0")),
    Condition("crowd, few blocks", ("--kv-cache-bytes", _BLOCKS)),
    Condition("crowd, small steps", ("--max-step-tokens", "37", "--max-step-tiles", "1")),
)


@dataclass(frozen=True)
class Determinism:
    """What `tephra bench determinism` was told."""

    model: Path
    json: Path
    markdown: Path
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    conditions: tuple[Condition, ...] = CONDITIONS
    requests: int = 24
    max_tokens: int = 64
    seed: int = 0
    name: str = "determinism"
    start_seconds: float = 300.0
    request_seconds: float = 600.0

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if unknown := [name for name in self.precisions if name not in PRECISIONS]:
            raise ValueError(f"precision {unknown[0]!r}: expected some of {', '.join(PRECISIONS)}")


@dataclass
class _Found:
    readings: list[Reading] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def determinism(asked: Determinism, console: Console) -> int:
    """Returns the exit code: 1 where float32 differed, a request was not answered or a worker did not start. Raises
    OSError, ModelError."""
    for file in (asked.json, asked.markdown):
        file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(file)
    found = _Found()
    with tempfile.TemporaryDirectory(prefix="tephra-determinism-") as folder:
        for precision in asked.precisions:
            try:
                asyncio.run(_Trial(asked, precision, Path(folder), found, console).run())
            except ServerFailed as error:
                found.notes.append(f"{precision}: {error}: {' '.join(error.tail[-3:])}")
    for failed in (reading for reading in found.readings if reading.failures):
        found.notes.append(f"{failed.precision}, {failed.condition}: {failed.failures} requests were not answered.")
    tables = [_table(found.readings, asked.requests)]
    machine, versions = vars(Machine.this()), {"this environment": our_versions()}
    settings = {
        "checkpoint": str(asked.model),
        "requests": asked.requests,
        "tokens of an answer": asked.max_tokens,
        "seed": asked.seed,
        "workers": {one.name: [*one.arguments] for one in asked.conditions},
    }
    date = time.strftime("%Y-%m-%d %H:%M %Z")
    document = {
        "settings": settings,
        "machine": machine,
        "versions": versions,
        "date": date,
        "readings": [asdict(reading) for reading in found.readings],
        "notes": found.notes,
    }
    written = page(f"{asked.name}, {date}", machine, versions, settings, tables, found.notes)
    save(document, written, asked.json, asked.markdown)
    for rows in tables:
        print_rows(rows, console)
    for note in found.notes:
        console.print(note, style="yellow", soft_wrap=True, highlight=False)
    console.print(f"\nSaved as {asked.json} and {asked.markdown}", highlight=False, soft_wrap=True)
    broken = any(reading.precision == "float32" and reading.differed for reading in found.readings)
    return int(broken or bool(found.notes))


class _Trial:
    """One precision under every condition."""

    def __init__(self, asked: Determinism, precision: str, folder: Path, found: _Found, console: Console) -> None:
        self._asked = asked
        self._precision = precision
        self._folder = folder
        self._found = found
        self._console = console
        self._context = context_length(asked.model)
        self._shelf = PictureShelf(_SIZES, "png", asked.seed)

    async def run(self) -> None:
        try:
            bodies = [self._body(number) for number in range(self._asked.requests)]
            async with self._worker(_PLAIN) as (server, client):
                given = [await self._ask(client, server, body) for body in bodies]
            kept = [(body, told) for body, told in zip(bodies, given, strict=True) if told is not None]
            if len(kept) < len(bodies):
                self._found.notes.append(
                    f"{self._precision}: {len(bodies) - len(kept)} of {len(bodies)} requests were not answered alone."
                )
            for condition in self._asked.conditions:
                await self._under(condition, [body for body, _ in kept], [told for _, told in kept])
        finally:
            self._shelf.close()

    @asynccontextmanager
    async def _worker(self, arguments: Sequence[str]) -> AsyncIterator[tuple[Server, aiohttp.ClientSession]]:
        dtype, flags = PRECISIONS[self._precision]
        longest = min(self._context, self._longest() + self._asked.max_tokens + _BLOCK)
        few = str(kv_bytes(self._asked.model, longest // (1 if dtype == "float32" else 2)))
        told = [few if argument == _BLOCKS else argument for argument in arguments]
        log = self._folder / f"worker-{len(list(self._folder.iterdir()))}.log"
        timeout = aiohttp.ClientTimeout(total=self._asked.request_seconds)
        async with (
            own_worker(
                self._asked.model, (*flags, *told), log, dtype=dtype, start_seconds=self._asked.start_seconds
            ) as server,
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client,
        ):
            yield server, client

    async def _under(self, condition: Condition, bodies: Sequence[dict[str, Any]], alone: Sequence[Told]) -> None:
        async with self._worker(condition.arguments) as (server, client):
            before, others = await gauges(client, server.url), 0
            if condition.crowded:
                found, others = await self._crowded(client, server, bodies)
            else:
                for body in bodies:
                    await self._ask(client, server, body)
                before = await gauges(client, server.url)
                found = [await self._ask(client, server, body) for body in bodies]
            after = await gauges(client, server.url)
            await server.check()
        grown: Callable[[str], int] = lambda name: int(after.get(name, 0) - before.get(name, 0))  # noqa: E731
        reading = Reading.of(
            self._precision,
            condition.name,
            alone,
            found,
            others=others,
            preemptions=grown("num_preemptions_total"),
            cached_tokens=grown("prefix_cache_hits_total"),
            greedy=[body["temperature"] == 0 for body in bodies],
        )
        self._found.readings.append(reading)
        self._console.print(
            f"{self._precision}, {condition.name}: {reading.differed} of {reading.answers} differed",
            highlight=False,
            soft_wrap=True,
        )

    async def _crowded(
        self, client: aiohttp.ClientSession, server: Server, bodies: Sequence[dict[str, Any]]
    ) -> tuple[list[Told | None], int]:
        """All of them at once, and others all the while; how many others were answered."""
        answered = 0

        async def other(stream: int) -> None:
            nonlocal answered
            number = 0
            while True:
                number += 1
                told = await self._ask(client, server, self._body(-(1 + stream + _OTHERS * number)))
                answered += told is not None

        others = [asyncio.create_task(other(stream)) for stream in range(_OTHERS)]
        try:
            found = await asyncio.gather(*(self._ask(client, server, body) for body in bodies))
        finally:
            for task in others:
                task.cancel()
            with suppress(asyncio.CancelledError):  # as told above
                await asyncio.gather(*others)
        return list(found), answered

    def _longest(self) -> int:
        """Tokens that the longest prompt may have."""
        return self._context * 5 // 8

    def _body(self, number: int) -> dict[str, Any]:
        """The request of that number; those of the others are below 0. Text that begins alike, of many lengths."""
        draw = random.Random(f"{self._asked.seed} {number}")
        few_tokens = min(400, self._longest() // 8)  # a word has up to seven letters, and a tiny tokenizer's are tokens
        words = draw.choice((2, 3, 5, 8, 20, few_tokens // 4, few_tokens))
        question = Workload(prompt_words=words, seed=self._asked.seed).question(number % 5 if words > 8 else number, 0)
        pictures = [self._shelf.data_url(number % 7) for _ in range(number % 2)] if words < few_tokens else []
        drawn: dict[str, Any] = {"temperature": 0}
        if draw.random() < 0.5:
            drawn = {"temperature": 1.0, "top_p": draw.choice((1.0, 0.9)), "seed": draw.randrange(2**31)}
        return chat_body(
            [*map(picture_part, pictures), text_part(question)],
            max_tokens=self._asked.max_tokens if number >= 0 else draw.randint(1, self._asked.max_tokens),
            logprobs=True,
            **drawn,
        )

    async def _ask(self, client: aiohttp.ClientSession, server: Server, body: dict[str, Any]) -> Told | None:
        try:
            async with client.post(f"{server.url}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    return None
                choice = (await response.json())["choices"][0]
        except (aiohttp.ClientError, TimeoutError):
            return None
        scored = choice["logprobs"]["content"]
        return Told(
            tuple(bytes(one["bytes"] or one["token"].encode()) for one in scored),
            tuple(one["logprob"] for one in scored),
            choice["finish_reason"],
        )


def _table(readings: Sequence[Reading], requests: int) -> Rows:
    header = (
        "",
        "differed",
        "greedy",
        "seeded",
        "from token",
        "tokens",
        "same bits",
        "drift",
        "preempted",
        "cached",
        "others",
    )
    rows = tuple(
        (
            f"{reading.precision}: {reading.condition}",
            f"{reading.differed / max(reading.answers, 1):.1%}",
            f"{reading.greedy_differed} of {reading.greedy}",
            f"{reading.differed - reading.greedy_differed} of {reading.answers - reading.greedy}",
            "-" if reading.median_place is None else f"{reading.median_place:g}",
            str(reading.tokens),
            str(reading.exact),
            f"{reading.drift:.0e}",
            str(reading.preemptions),
            str(reading.cached_tokens),
            str(reading.others),
        )
        for reading in readings
    )
    return Rows(f"The same {requests} requests, against their answers alone", header, rows)
