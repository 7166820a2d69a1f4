"""Results on paper: tables for the terminal and for a page in Markdown, and where and when they were found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Rows:
    """One table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def print_rows(rows: Rows, console: Console) -> None:
    table = Table(title=rows.title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(rows.header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows.rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)


def page(
    title: str,
    machine: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, str]],
    settings: Mapping[str, Any],
    tables: Iterable[Rows],
    notes: Sequence[str],
) -> str:
    """In Markdown. `notes` are what a reader must know before believing the figures."""
    return "\n".join([*_head(title, machine, versions, settings), *_body(tables, notes)]) + "\n"


def save(document: Mapping[str, Any], written: str, file: Path, markdown: Path) -> None:
    """Each whole or not at all, since a run may be stopped at any time. Raises OSError."""
    for place, text in ((file, json.dumps(document, indent=1) + "\n"), (markdown, written)):
        aside = place.with_name(f".{place.name}.part")
        aside.write_text(text, "utf-8")
        aside.replace(place)


def _head(
    title: str, machine: Mapping[str, Any], versions: Mapping[str, Mapping[str, str]], settings: Mapping[str, Any]
) -> Iterator[str]:
    yield f"# {title}"
    yield ""
    memory = f"{machine['memory'] / 2**30:.0f} GiB"
    yield f"- machine: {machine['cpu']}, {machine['cores']} cores, {memory}, {machine['system']}"
    yield f"- instruction sets: {_plain(machine['flags']) or 'not told'}; GPUs: {_plain(machine['gpus']) or 'none'}"
    for name, packages in versions.items():
        yield f"- {name}: " + ", ".join(f"{package} {version}" for package, version in packages.items())
    for name, value in settings.items():
        yield f"- {name}: {_plain(value)}"


def _body(tables: Iterable[Rows], notes: Sequence[str]) -> Iterator[str]:
    for rows in tables:
        yield f"\n## {rows.title}\n"
        yield _line(rows.header)
        yield _line(["---", *["---:"] * (len(rows.header) - 1)])
        yield from map(_line, rows.rows)
    if notes:
        yield "\n## To know\n"
        yield from (f"- {line}" for line in notes)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} = {_plain(one) or 'default'}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
