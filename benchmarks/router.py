"""`tephra bench router`: what it costs to have a router between client and worker, ours and others'.

One worker that answers at once (`mock_worker`), asked directly and through each router in turn, all started before and
idle while another is measured. Rounds are repeated and interleaved, so that what else the machine does falls on all;
ratios are taken within a round. On a machine with few cores client, router and worker share them: the ratios say how
much a router adds there, not what it can do on cores of its own. What a request costs the router in processor time says
that.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import secrets
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop
from PIL import Image
from rich.console import Console

from benchmarks.machine import Machine, our_versions, versions_of
from benchmarks.mock_worker import MODEL
from benchmarks.results import page, print_rows, save
from benchmarks.router_load import Load, LoadFailed, Sample, drive
from benchmarks.router_report import DIRECT, Reading, tables
from benchmarks.servers import Processes, ServerFailed, free_port, running

PEERS = ("vllm-router", "sglang-router", "smg")
INSTALL = "python3 -m venv {folder} && {folder}/bin/pip install " + " ".join(PEERS)
_START_SECONDS = 60.0
_PICTURE_BYTES = 1_000_000
_OUR_PACKAGES = ("uvicorn", "uvloop", "httptools", "msgspec", "orjson", "pybase64")


@dataclass(frozen=True)
class Shape:
    """A kind of request, and how many at once."""

    name: str
    body: bytes
    concurrency: int


@dataclass(frozen=True)
class RouterBench:
    """What `tephra bench router` was asked for."""

    processes: tuple[int, ...] = (1, 2)  # of our controller; each is a target of its own
    peers: Path | None = None  # a virtual environment that has some of PEERS
    runs: int = 5
    seconds: float = 1.5  # for each target, shape and run
    name: str = "router"
    json: Path | None = None  # both or neither
    markdown: Path | None = None


@dataclass(frozen=True)
class Target:
    name: str
    port: int
    processes: Processes


def router_bench(asked: RouterBench, console: Console) -> int:
    """Prints a table for each shape, and saves what was found. Raises ServerFailed for the worker or one of ours;
    OSError."""
    for file in (asked.json, asked.markdown):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    readings, notes = asyncio.run(_bench(asked, console))
    for rows in tables(readings):
        print_rows(rows, console)
    if asked.json is not None and asked.markdown is not None:
        _save(asked, asked.json, asked.markdown, readings, notes)
        console.print(f"\nSaved as {asked.json} and {asked.markdown}", highlight=False, soft_wrap=True)
    return int(bool(notes))


def _save(asked: RouterBench, file: Path, markdown: Path, readings: list[Reading], notes: list[str]) -> None:
    versions = {"this environment": our_versions() | versions_of(sys.executable, _OUR_PACKAGES)}
    if asked.peers is not None:
        versions["peers"] = versions_of(str(asked.peers / "bin" / "python"), PEERS)
    settings = {"rounds": asked.runs, "seconds": asked.seconds, "bytes of the picture's data URL": _PICTURE_BYTES}
    machine, date = vars(Machine.this()), time.strftime("%Y-%m-%d %H:%M %Z")
    document: dict[str, Any] = {"settings": settings, "machine": machine, "versions": versions, "date": date}
    document |= {"readings": [one.to_json() for one in readings], "notes": notes}
    written = page(f"{asked.name}, {date}", machine, versions, settings, tables(readings), notes)
    save(document, written, file, markdown)


async def _bench(asked: RouterBench, console: Console) -> tuple[list[Reading], list[str]]:
    """What was read, and what went wrong."""
    readings: list[Reading] = []
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tephra-router-")))
        targets = await _start(asked, stack, logs, console)
        shapes = _shapes()
        for run in range(asked.runs):
            for shape in shapes:
                # Each round begins with another target, so that none always follows the same neighbour.
                for target in [*targets[run % len(targets) :], *targets[: run % len(targets)]]:
                    load = Load(target.port, shape.body, shape.concurrency, asked.seconds)
                    before = target.processes.processor_seconds()
                    try:
                        sample = await _driven(load)
                    except LoadFailed as error:
                        notes.append(f"{target.name}, {shape.name}, run {run + 1}: {error}")
                        console.print(notes[-1], highlight=False)
                        continue
                    spent = target.processes.processor_seconds() - before
                    readings.append(Reading(run, shape.name, target.name, sample, spent / sample.requests))
            console.print(f"run {run + 1} of {asked.runs} done", highlight=False)
    return readings, notes


async def _driven(load: Load) -> Sample:
    """On uvloop, which is quicker but cannot start the servers as this loop does. Raises LoadFailed."""
    return await asyncio.to_thread(uvloop.run, drive(load))


async def _start(asked: RouterBench, stack: AsyncExitStack, logs: Path, console: Console) -> list[Target]:
    secret, worker = secrets.token_urlsafe(16), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}
    ours = [(f"tephra x{count}", count, free_port()) for count in asked.processes]
    joins = [argument for _, _, port in ours for argument in ("--controller", f"http://127.0.0.1:{port}")]
    commands = {
        DIRECT: (
            worker,
            (
                *(sys.executable, "-m", "benchmarks.mock_worker", "--port", str(worker), "--secret", secret),
                *joins,
            ),
        )
    }
    for name, count, port in ours:
        limits = ("--processes", str(count), "--log-level", "warning", "--worker-secret", secret)
        commands[name] = (port, (sys.executable, "-m", "server", "--port", str(port), *limits))
    for peer in PEERS:
        program = asked.peers / "bin" / peer if asked.peers is not None else None
        if program is None or not program.is_file():
            folder = asked.peers or Path("/tmp/router-peers")
            console.print(
                f"{peer} is left out: it is not installed. {INSTALL.format(folder=folder)}, then --peers {folder}",
                highlight=False,
                soft_wrap=True,
            )
            continue
        port = free_port()
        launch = () if peer == "vllm-router" else ("launch",)
        flags = ("--policy", "round_robin", "--prometheus-port", str(free_port()), "--log-level", "error")
        address = ("--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{worker}")
        commands[peer] = (port, (str(program), *launch, *address, *flags))
    targets = []
    for name, (port, command) in commands.items():
        url, log = f"http://127.0.0.1:{port}", logs / f"{name.replace(' ', '-')}.log"
        try:
            server = await stack.enter_async_context(running(name, command, environment, url, log, _START_SECONDS))
            await _until_it_answers(name, port, log)
        except ServerFailed as error:
            if name not in PEERS:
                raise
            console.print(f"{name} is left out: {error}", highlight=False, soft_wrap=True)
            continue
        targets.append(Target(name, port, server.processes))
    return targets


async def _until_it_answers(name: str, port: int, log: Path) -> None:
    """A router may listen before it knows its worker. Raises ServerFailed."""
    deadline = time.monotonic() + _START_SECONDS
    body = _chat("Hello", stream=False)
    while True:
        try:
            await _driven(Load(port, body, 8, 0.2))
            return
        except LoadFailed as error:
            if time.monotonic() > deadline:
                raise ServerFailed(f"{name} does not answer: {error}", ()) from error
        await asyncio.sleep(0.2)


def _shapes() -> list[Shape]:
    shapes: list[Shape] = []
    for stream, how in ((False, "whole"), (True, "streamed")):
        small, large = _chat("Hello", stream=stream), _chat(_picture_parts(), stream=stream)
        shapes += [
            Shape(f"small body, 1 at once, {how}", small, 1),
            Shape(f"small body, 32 at once, {how}", small, 32),
            Shape(f"1 MB picture, 16 at once, {how}", large, 16),
        ]
    return shapes


def _chat(content: Any, *, stream: bool) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 16, "stream": stream}
    return orjson.dumps(body)


def _picture_parts() -> list[dict[str, Any]]:
    """A picture whose data URL is about a megabyte long: noise, which no format makes smaller."""
    side = int((_PICTURE_BYTES * 3 / 4 / 3) ** 0.5)
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(0).randbytes(side * side * 3)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
