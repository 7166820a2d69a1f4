"""A comparison as tables: for the terminal with rich, and for a page in Markdown. Both from the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.comparison import COLUMNS, FIRST_NEW, FIRST_SEEN, RATIOS, Comparison, Point, Spread


@dataclass(frozen=True)
class Rows:
    """One table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def print_comparison(found: Comparison, console: Console) -> None:
    for rows in tables(found):
        table = Table(title=rows.title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for number, name in enumerate(rows.header):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows.rows:
            table.add_row(*map(Text, row))
        console.print()
        console.print(table)
    for failure in found.failures:
        console.print(Text(f"{failure.engine}, run {failure.run + 1}: {failure.message}", style="red"), soft_wrap=True)
        for line in failure.tail:
            console.print(Text(f"    {line}", style="dim"), soft_wrap=True)
    for warning in found.told():
        console.print(Text(warning, style="yellow"), soft_wrap=True)


def markdown(found: Comparison) -> str:
    """A page of its own."""
    return "\n".join([*_head(found), *_body(found)]) + "\n"


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


def _head(found: Comparison) -> Iterator[str]:
    yield f"# {found.settings['name']}, {found.date}"
    yield ""
    machine = found.machine
    memory = f"{machine['memory'] / 2**30:.0f} GiB"
    yield f"- machine: {machine['cpu']}, {machine['cores']} cores, {memory}, {machine['system']}"
    yield f"- instruction sets: {_plain(machine['flags']) or 'not told'}; GPUs: {_plain(machine['gpus']) or 'none'}"
    for name, packages in found.versions.items():
        yield f"- {name}: " + ", ".join(f"{package} {version}" for package, version in packages.items())
    for name, value in found.settings.items():
        if name != "name":
            yield f"- {name}: {_plain(value)}"


def _body(found: Comparison) -> Iterator[str]:
    for rows in tables(found):
        yield f"\n## {rows.title}\n"
        yield _line(rows.header)
        yield _line(["---", *["---:"] * (len(rows.header) - 1)])
        yield from map(_line, rows.rows)
    told = [*found.told(), *(f"{one.engine}, run {one.run + 1}: {one.message}" for one in found.failures)]
    if told:
        yield "\n## To know\n"
        yield from (f"- {line}" for line in told)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} = {_plain(one) or 'default'}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
