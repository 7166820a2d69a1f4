"""A comparison as tables: for the terminal with rich, and for a page in Markdown. Both from the same rows."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from benchmarks.comparison import COLUMNS, FIRST_NEW, FIRST_SEEN, RATIOS, Comparison, Point, Spread
from benchmarks.results import Rows, page, print_rows


def print_comparison(found: Comparison, console: Console) -> None:
    for rows in tables(found):
        print_rows(rows, console)
    for failure in found.failures:
        console.print(Text(f"{failure.engine}, run {failure.run + 1}: {failure.message}", style="red"), soft_wrap=True)
        for line in failure.tail:
            console.print(Text(f"    {line}", style="dim"), soft_wrap=True)
    for warning in found.told():
        console.print(Text(warning, style="yellow"), soft_wrap=True)


def markdown(found: Comparison) -> str:
    """A page of its own."""
    told = [*found.told(), *(f"{one.engine}, run {one.run + 1}: {one.message}" for one in found.failures)]
    settings = {name: value for name, value in found.settings.items() if name != "name"}
    title = f"{found.settings['name']}, {found.date}"
    return page(title, found.machine, found.versions, settings, tables(found), told)


def tables(found: Comparison) -> Iterator[Rows]:
    runs = len({reading.run for reading in found.readings})
    for point in found.points:
        rows = tuple((engine, *_cells(found, engine, point)) for engine in found.engines if found.of(engine, point))
        title = f"Pictures {point}: median (range), {runs} run{'s' if runs != 1 else ''}"
        yield Rows(title, ("engine", *(column.name for column in COLUMNS)), rows)
    for first, second in found.pairs():
        ratios = tuple(
            (str(point), *(_ratio(found.ratio(first, second, point, figure)) for figure in RATIOS))
            for point in found.points
        )
        title = f"{first} against {second}: how many times better, median (range) over runs"
        yield Rows(title, ("pictures", *(figure.name for figure in RATIOS)), ratios)
    repeated = tuple(
        (str(point), engine, *_known(found, engine, point))
        for point in found.points
        if point.images == "repeated"
        for engine in found.engines
        if found.of(engine, point)
    )
    if repeated:
        header = ("pictures", "engine", FIRST_NEW.name, FIRST_SEEN.name, "known / new")
        yield Rows("A picture that was sent before", header, repeated)


def _cells(found: Comparison, engine: str, point: Point) -> Iterator[str]:
    readings = found.of(engine, point)
    for column in COLUMNS:
        spread = column.spread(readings)
        yield "-" if spread is None else spread.text(column.form)


def _known(found: Comparison, engine: str, point: Point) -> Iterator[str]:
    readings = found.of(engine, point)
    new, seen = FIRST_NEW.spread(readings), FIRST_SEEN.spread(readings)
    yield "-" if new is None else new.text(FIRST_NEW.form)
    yield "-" if seen is None else seen.text(FIRST_SEEN.form)
    pairs = [(FIRST_NEW.value(reading), FIRST_SEEN.value(reading)) for reading in readings]
    yield _ratio(Spread.of([later / first for first, later in pairs if first and later]))


def _ratio(spread: Spread | None) -> str:
    return "-" if spread is None else spread.text("{:.2f}".format)
