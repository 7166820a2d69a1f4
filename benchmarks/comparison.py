"""What a comparison found: every run as it was, and from it medians, ranges and ratios. Knows no server.

A ratio compares two engines within the same run, where both met the same machine, and is the median over runs. It is
always said so that more than 1 is good for the first of the two.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.statistics import Distribution, Summary
from benchmarks.workload import Images

IDLE = 0.1  # of all processors: what the machine may do besides


@dataclass(frozen=True)
class Point:
    """What all engines are asked."""

    images: Images
    concurrency: int

    def __str__(self) -> str:
        return f"{self.images}, {self.concurrency} at once"


@dataclass(frozen=True)
class Reading:
    """One engine at one point in one run."""

    run: int
    engine: str
    point: Point
    summary: Summary
    memory: int  # bytes: the most that the server's process tree held until then
    others: float  # share of the machine that other processes took meanwhile


@dataclass(frozen=True)
class Failure:
    """An engine that did not start or ended in a run."""

    run: int
    engine: str
    message: str
    tail: tuple[str, ...]


@dataclass
class Comparison:
    """All of it, as it grows."""

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, Mapping[str, str]]
    engines: tuple[str, ...]
    points: tuple[Point, ...]
    date: str
    readings: list[Reading] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def of(self, engine: str, point: Point) -> list[Reading]:
        """In the order of runs."""
        return [reading for reading in self.readings if reading.engine == engine and reading.point == point]

    def pairs(self) -> list[tuple[str, str]]:
        """Who is held against whom: each of ours against all others, and ours against our first."""
        ours = [engine for engine in self.engines if engine.split(":")[0] == "tephra"]
        others = [engine for engine in self.engines if engine not in ours]
        return [(one, other) for one in ours for other in others] + [(one, ours[0]) for one in ours[1:]]

    def ratio(self, first: str, second: str, point: Point, figure: Figure) -> Spread | None:
        """How many times better the first is; None without a run in which both have the figure."""
        others = {reading.run: figure.value(reading) for reading in self.of(second, point)}
        ratios = []
        for reading in self.of(first, point):
            mine, theirs = figure.value(reading), others.get(reading.run)
            if mine and theirs:
                ratios.append(mine / theirs if figure.more_is_better else theirs / mine)
        return Spread.of(ratios)

    def told(self) -> Iterator[str]:
        """What a reader must know before believing the figures."""
        yield from self.warnings
        for point in self.points:
            # By the number of answers: engines that are asked less have other questions.
            answers: dict[int, dict[str, set[float]]] = {}
            for reading in (reading for engine in self.engines for reading in self.of(engine, point)):
                summary = reading.summary
                prompts = answers.setdefault(summary.answered, {}).setdefault(reading.engine, set())
                prompts.add(summary.prompt_tokens_median)
            for prompts_of in answers.values():
                if len({length for lengths in prompts_of.values() for length in lengths if length}) > 1:
                    words = ", ".join(f"{engine} {sorted(lengths)}" for engine, lengths in prompts_of.items())
                    yield f"{point}: prompts are of different lengths in tokens: {words}."
        busy = [reading for reading in self.readings if reading.others > IDLE]
        if busy:
            most = max(reading.others for reading in busy)
            yield (
                f"OTHER PROCESSES took more than {IDLE:.0%} of the machine, up to {most:.0%}, in {len(busy)} of "
                f"{len(self.readings)} measurements: do not trust them."
            )
        for reading in self.readings:
            if reading.summary.failed or reading.summary.refused:
                found = {**reading.summary.refusals, **reading.summary.errors}
                kinds = ", ".join(f"{count} x {kind}" for kind, count in found.items())
                yield f"{reading.engine}, run {reading.run + 1}, {reading.point}: {kinds}."


@dataclass(frozen=True)
class Spread:
    """A median and its range over runs."""

    median: float
    least: float
    most: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        if not values:
            return None
        return Spread(statistics.median(values), min(values), max(values), len(values))

    def text(self, form: Callable[[float], str]) -> str:
        if form(self.least) == form(self.most):
            return form(self.median)
        return f"{form(self.median)} ({form(self.least)} - {form(self.most)})"


@dataclass(frozen=True)
class Figure:
    """One column of a table."""

    name: str
    read: Callable[[Reading], float | None]
    form: Callable[[float], str]
    more_is_better: bool = False

    def value(self, reading: Reading) -> float | None:
        """None where nothing was answered."""
        return self.read(reading) if reading.summary.answered else None

    def spread(self, readings: Sequence[Reading]) -> Spread | None:
        return Spread.of([value for value in map(self.value, readings) if value is not None])


def _p50(found: Distribution | None) -> float | None:
    return None if found is None else found.p50


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


REQUESTS = Figure("requests/s", lambda r: r.summary.requests_rate, "{:.3f}".format, more_is_better=True)
TOKENS = Figure("output tokens/s", lambda r: r.summary.output_rate, "{:.1f}".format, more_is_better=True)
FIRST = Figure("first token p50", lambda r: _p50(r.summary.ttft), _duration)
GAP = Figure("inter-token p50", lambda r: _p50(r.summary.itl), _duration)
WHOLE = Figure("end to end p50", lambda r: _p50(r.summary.e2e), _duration)
WHOLE_95 = Figure("end to end p95", lambda r: r.summary.e2e.p95 if r.summary.e2e else None, _duration)
MEMORY = Figure("peak memory", lambda r: float(r.memory), lambda v: f"{v / 2**30:.2f} GiB")
FIRST_NEW = Figure("first token, new picture", lambda r: _p50(r.summary.ttft_new), _duration)
FIRST_SEEN = Figure("first token, known picture", lambda r: _p50(r.summary.ttft_seen), _duration)

COLUMNS = (REQUESTS, TOKENS, FIRST, GAP, WHOLE, WHOLE_95, MEMORY)
RATIOS = (REQUESTS, FIRST, GAP, WHOLE)
