"""What the commands on rows share: their options, their console, and how they say what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.data.rows.bad import OnBad

if TYPE_CHECKING:
    from rich.console import Console

ImageFolder = Annotated[Path | None, typer.Option("--image-folder", help="Where images lie; they are looked for.")]
Bad = Annotated[OnBad, typer.Option("--on-bad", help="Bad rows stop the run, or go to OUT.rejects.jsonl.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would be written.")]
Seed = Annotated[int, typer.Option(help="Whatever is drawn is drawn from it.")]


@contextmanager
def told() -> Iterator[Console]:
    """The console of a command; what is wrong with the data becomes one line and exit code 1."""
    from rich.console import Console

    from training.data.errors import DataError

    try:
        yield Console()
    except DataError as error:
        print(f"tephra: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def where_rejected(out: Path, dry_run: bool) -> str:
    return "" if dry_run else f": {out}.rejects.jsonl says why"
