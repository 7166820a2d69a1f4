"""`tephra bench serve`: one workload on one server, shown, saved and drawn. Ctrl-C shows what was measured so far."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import track

from benchmarks.drive import Drive, Load, Progress
from benchmarks.machine import Machine
from benchmarks.measurement import Measurement
from benchmarks.pictures import PictureShelf
from benchmarks.plot import plot
from benchmarks.report import live_line, print_summary
from benchmarks.statistics import Limits, Summary, summarise
from benchmarks.target import Target
from benchmarks.workload import WARM_UP, Workload

AHEAD = 256  # pictures made before a run whose number of requests is not known


@dataclass(frozen=True)
class Serve:
    """What `tephra bench serve` was told. `request_seconds` bound each request."""

    url: str
    workload: Workload
    load: Load
    limits: Limits
    model: str | None = None
    api_key: str | None = None
    request_seconds: float = 600.0
    json: Path | None = None
    plot: Path | None = None


def serve(asked: Serve, console: Console) -> int:
    """Returns the exit code: 1 where no request was answered. Raises TargetError, and OSError for unwritable files."""
    for file in filter(None, (asked.json, asked.plot)):
        check_writable(file)
    shelf = PictureShelf(asked.workload.sizes, asked.workload.picture_format, asked.workload.seed)
    with contextlib.closing(shelf), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        model, measured = runner.run(_run(asked, shelf, console))
    summary = summarise(measured, asked.limits, streamed=asked.workload.stream)
    print_summary(summary, asked.limits, measured, console)
    if asked.json is not None:
        asked.json.write_text(json.dumps(_document(asked, model, measured, summary), indent=1) + "\n", "utf-8")
    if asked.plot is not None:
        title = f"{model}: {_load_text(asked.load)}, pictures {asked.workload.images}"
        asked.plot.write_text(plot(measured, title, streamed=asked.workload.stream), "utf-8")
    return 0 if summary.answered else 1


def check_writable(file: Path) -> None:
    """Before a run, not after it. Raises OSError."""
    if not os.access(file.parent, os.W_OK) or file.is_dir():
        raise OSError(f"{file}: it cannot be written")


async def _run(asked: Serve, shelf: PictureShelf, console: Console) -> tuple[str, Measurement]:
    async with Target(asked.url, asked.model, asked.api_key, asked.request_seconds) as target:
        await target.prepare(asked.workload)
        prepare_pictures(shelf, asked.workload, asked.load, console)
        with live_line(console, asked.load.requests, asked.load.seconds) as progress:
            measured = await driven(target, asked.workload, asked.load, shelf, progress)
        measured.notes += target.notes
        return target.model, measured


def prepare_pictures(shelf: PictureShelf, workload: Workload, load: Load, console: Console) -> None:
    """Makes the files that a run will send, as far as their number is known."""
    known = load.conversations(workload.turns)
    if known is None:
        known = AHEAD if load.rate is None else int(load.rate * (load.seconds or 0) * 1.2) + 1
    numbers = [*workload.pictures(known)]
    if workload.images != "none":
        numbers += range(WARM_UP, WARM_UP + load.warm_up)
    shown = track(numbers, "making pictures", console=console, transient=True, disable=not console.is_terminal)
    shelf.prepare(shown)


async def driven(
    target: Target, workload: Workload, load: Load, shelf: PictureShelf, progress: Progress
) -> Measurement:
    """One run, which Ctrl-C ends in good order."""
    drive = Drive(target, workload, load, shelf, progress)
    with _interrupts(drive):
        return await drive.run()


@contextlib.contextmanager
def _interrupts(drive: Drive) -> Iterator[None]:
    """Ctrl-C stops the run; a second one ends the process."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        drive.stop()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _load_text(load: Load) -> str:
    much = f"{load.requests} requests" if load.requests is not None else f"{load.seconds:g} s"
    how = f"{load.rate:g} arrivals a second" if load.rate is not None else f"{load.concurrency} at once"
    return f"{much}, {how}"


def _document(asked: Serve, model: str, measured: Measurement, summary: Summary) -> dict[str, Any]:
    """Settings, machine, figures, and a row a request. Seconds throughout; no key is written down."""
    fields = ("began", "first", "e2e", "input_tokens", "output_tokens", "seen", "turn", "error", "refused")
    rows = [[_rounded(getattr(outcome, name)) for name in fields] for outcome in measured.outcomes]
    workload = {**asdict(asked.workload), "sizes": [str(size) for size in asked.workload.sizes]}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "url": asked.url,
        "model": model,
        "workload": workload,
        "load": asdict(asked.load),
        "limits": asked.limits.stated,
        "client": asdict(Machine.this()),
        "client_share": measured.client_share,
        "summary": summary.to_json(),
        "first_errors": measured.samples,
        "notes": measured.notes,
        "warm_up_errors": dict(measured.warm_up_errors),
        "requests": {"fields": fields, "rows": rows},
    }


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
