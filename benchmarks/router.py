"""`tephra bench router`: what it costs to have a router between client and worker, ours and others'.

One worker that answers at once (`mock_worker`), asked directly and through each router in turn, all started before and
idle while another is measured. Rounds are repeated and interleaved, so that what else the machine does falls on all;
ratios are taken within a round. On a machine with few cores client, router and worker share them: the ratios say how
much a router adds there, not what it can do on cores of its own.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop
from PIL import Image
from rich.console import Console

from benchmarks.mock_worker import MODEL
from benchmarks.results import Rows, print_rows
from benchmarks.router_load import Load, LoadFailed, Sample, drive
from benchmarks.servers import ServerFailed, free_port, running

PEERS = ("vllm-router", "sglang-router", "smg")
INSTALL = "python3 -m venv {folder} && {folder}/bin/pip install " + " ".join(PEERS)
_START_SECONDS = 60.0
_PICTURE_BYTES = 1_000_000


Samples = dict[str, dict[str, list[Sample]]]  # by shape, then by target; one a run


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
    seconds: float = 3.0  # for each target, shape and run
    stream: bool = False


@dataclass(frozen=True)
class Target:
    name: str
    port: int


def router_bench(asked: RouterBench, console: Console, json: Path | None = None) -> int:
    """Prints a table for each shape. Raises ServerFailed for the worker or one of ours; OSError."""
    samples = asyncio.run(_bench(asked, console))
    if json is not None:
        found = {
            shape: {name: [asdict(sample) for sample in taken] for name, taken in by_target.items()}
            for shape, by_target in samples.items()
        }
        json.write_bytes(orjson.dumps({"cores": os.cpu_count(), "samples": found}, option=orjson.OPT_INDENT_2))
    return 0


async def _bench(asked: RouterBench, console: Console) -> Samples:
    async with AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tephra-router-")))
        targets = await _start(asked, stack, logs, console)
        shapes = _shapes(asked.stream)
        samples: Samples = {shape.name: {} for shape in shapes}
        for run in range(asked.runs):
            for shape in shapes:
                # Each round begins with another target, so that none always follows the same neighbour.
                for target in [*targets[run % len(targets) :], *targets[: run % len(targets)]]:
                    load = Load(target.port, shape.body, shape.concurrency, asked.seconds)
                    try:
                        sample = await _driven(load)
                    except LoadFailed as error:
                        console.print(f"{target.name}, {shape.name}: {error}", highlight=False)
                        continue
                    samples[shape.name].setdefault(target.name, []).append(sample)
            console.print(f"run {run + 1} of {asked.runs} done", highlight=False)
    for name, by_target in samples.items():
        print_rows(_rows(name, by_target, [target.name for target in targets]), console)
    return samples


async def _driven(load: Load) -> Sample:
    """On uvloop, which is quicker but cannot start the servers as this loop does. Raises LoadFailed."""
    return await asyncio.to_thread(uvloop.run, drive(load))


async def _start(asked: RouterBench, stack: AsyncExitStack, logs: Path, console: Console) -> list[Target]:
    secret, worker = secrets.token_urlsafe(16), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}
    ours = [(f"tephra x{count}", count, free_port()) for count in asked.processes]
    joins = [argument for _, _, port in ours for argument in ("--controller", f"http://127.0.0.1:{port}")]
    commands = {
        "direct": (
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
            await stack.enter_async_context(running(name, command, environment, url, log, _START_SECONDS))
            await _until_it_answers(name, port, log)
        except ServerFailed as error:
            if name not in PEERS:
                raise
            console.print(f"{name} is left out: {error}", highlight=False, soft_wrap=True)
            continue
        targets.append(Target(name, port))
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


def _shapes(stream: bool) -> list[Shape]:
    small = _chat("Hello", stream=stream)
    return [
        Shape("small body, 1 at once", small, 1),
        Shape("small body, 32 at once", small, 32),
        Shape("1 MB picture, 16 at once", _chat(_picture_parts(), stream=stream), 16),
    ]


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


def _rows(title: str, by_target: dict[str, list[Sample]], names: Sequence[str]) -> Rows:
    direct = by_target.get("direct", [])
    rows = []
    for name in names:
        taken = by_target.get(name, [])
        if not taken:
            rows.append((name, "failed", "", "", ""))
            continue
        pairs = list(zip(taken, direct, strict=False))
        rows.append(
            (
                name,
                f"{statistics.median(sample.p50 for sample in taken) * 1000:.2f} ms",
                f"{statistics.median(sample.rate for sample in taken):.0f}",
                f"{statistics.median(one.p50 / base.p50 for one, base in pairs):.2f}" if pairs else "",
                f"{statistics.median(one.rate / base.rate for one, base in pairs):.2f}" if pairs else "",
            )
        )
    return Rows(title, ("", "p50", "requests/s", "p50 to direct", "requests/s to direct"), tuple(rows))
