"""A run's figures for a person at the terminal: a live line while it goes on, tables at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from benchmarks.measurement import Measurement
from benchmarks.statistics import Distribution, Limits, Summary, percentile

_RECENT = 50  # requests over which the live line's latency is taken
_LATE = 0.01  # seconds: later than this at the 99th percentile is told
_MUCH = 0.5  # of a processor: a client that takes more may be what is measured


def seconds_text(value: float | None) -> str:
    """Such as 12.3 ms; from one second on, such as 1.23 s."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


@contextmanager
def live_line(console: Console, requests: int | None, seconds: float | None) -> Iterator[Callable[[Measurement], None]]:
    """Yields what is to be called after every request. Drawn on terminals only."""
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if requests is not None:
        columns.insert(2, MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=requests if requests is not None else seconds)
        began = time.monotonic()

        def show(measured: Measurement) -> None:
            done = len(measured.outcomes)
            recent = measured.outcomes[-_RECENT:]
            firsts = sorted(outcome.first for outcome in recent if outcome.first is not None)
            words = [f"{done} requests", f"{done / max(measured.seconds, 1e-9):.2f}/s"]
            if firsts:
                words.append(f"first token {seconds_text(percentile(firsts, 0.5))}")
            if errors := sum(measured.errors.values()):
                words.append(f"[red]{errors} errors[/]")
            if refused := sum(measured.refusals.values()):
                words.append(f"{refused} refused")
            completed = done if requests is not None else time.monotonic() - began
            bar.update(task, completed=completed, description=" · ".join(words))

        yield show


def print_summary(summary: Summary, limits: Limits, measured: Measurement, console: Console) -> None:
    latencies = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    latencies.add_column("latency")
    for column in ("mean", "p50", "p95", "p99", "max"):
        latencies.add_column(column, justify="right")
    rows = (
        ("time to first token", summary.ttft),
        ("  picture new", summary.ttft_new),
        ("  picture sent before", summary.ttft_seen),
        ("inter-token", summary.itl),
        ("time per output token", summary.tpot),
        ("end to end", summary.e2e),
    )
    for name, found in rows:
        if found is not None:
            latencies.add_row(name, *map(seconds_text, (found.mean, found.p50, found.p95, found.p99, found.most)))
    rates = Table.grid(padding=(0, 2))
    client = ("client", f"{measured.client_share:.1%} of a processor")
    for name, value in (*_rates(summary, limits), client):
        rates.add_row(Text(name, style="bold"), Text(value))
    console.print(latencies)
    console.print()
    console.print(rates)
    _print_errors(summary, measured, console)
    for note in _notes(summary, measured):
        console.print(Text(note, style="yellow"), soft_wrap=True)


def _rates(summary: Summary, limits: Limits) -> Iterator[tuple[str, str]]:
    yield "answered", f"{summary.answered} of {summary.asked} in {seconds_text(summary.seconds)}"
    yield "requests", f"{summary.requests_rate:.3f} /s"
    yield "input tokens", f"{summary.input_rate:.1f} /s ({summary.prompt_tokens_median:g} a request)"
    yield "output tokens", f"{summary.output_rate:.1f} /s"
    if summary.good is not None and summary.goodput is not None:
        told = ", ".join(f"{name} {seconds_text(limit)}" for name, limit in limits.stated.items())
        yield "goodput", f"{summary.goodput:.3f} /s: {summary.good} of {summary.asked} within {told}"
    yield "refused", str(summary.refused)
    yield "errors", str(summary.failed)


def _print_errors(summary: Summary, measured: Measurement, console: Console) -> None:
    for name, style, kinds in (("refused", "bold yellow", summary.refusals), ("error", "bold red", summary.errors)):
        if not kinds:
            continue
        table = Table(box=None, padding=(0, 2, 0, 0), header_style=style)
        table.add_column(name)
        table.add_column("requests", justify="right")
        table.add_column("the first one said", overflow="fold")
        for kind, count in kinds.items():
            table.add_row(Text(kind), str(count), Text(" ".join(measured.samples.get(kind, "").split())[:160]))
        console.print()
        console.print(table)


def _notes(summary: Summary, measured: Measurement) -> Iterator[str]:
    yield from measured.notes
    if failed := sum(measured.warm_up_errors.values()):
        kinds = ", ".join(f"{count} x {kind}" for kind, count in measured.warm_up_errors.items())
        yield f"{failed} warm-up requests failed: {kinds}."
    if summary.interrupted:
        yield f"Stopped early: {summary.interrupted} requests under way were dropped."
    if summary.not_asked:
        yield f"{summary.not_asked} later turns were not asked, since an answer before them failed."
    if measured.client_share > _MUCH:
        yield f"The client took {measured.client_share:.0%} of a processor: it may be the limit, and not the server."
    late: Distribution | None = summary.late
    if late is not None and late.p99 > _LATE:
        yield f"Requests were sent up to {seconds_text(late.most)} after they were due (p99 {seconds_text(late.p99)})."
