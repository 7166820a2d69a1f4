"""`tephra data filter`: captions picked by their noun phrases, as CC3M was for LLaVA 1.0.

Only the command line is here; the work is `training.data.filter`, which is imported when the command runs.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deploy.measuring import fail


class OnBadRow(StrEnum):
    STOP = "stop"
    REJECT = "reject"


def filter_captions(
    file: Annotated[Path, typer.Argument(help="Captions: .json, .jsonl, .parquet, or CC3M's .tsv.")],
    out: Annotated[Path, typer.Option(help="Rows that are taken: .json, .jsonl or .parquet.")],
    field: Annotated[str, typer.Option(help="What a row calls its caption, if it is no conversation.")] = "caption",
    least: Annotated[int, typer.Option(min=1, help="Noun phrases of fewer captions are skipped.")] = 3,
    most: Annotated[int, typer.Option(min=1, help="Captions taken for one noun phrase, at random.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of what is taken of frequent phrases.")] = 0,
    tagger: Annotated[str, typer.Option(metavar="brill|spacy:MODEL", help="Finds the noun phrases.")] = "brill",
    processes: Annotated[int, typer.Option(min=1, max=256, help="That tag captions.")] = 1,
    on_bad: Annotated[OnBadRow, typer.Option(help="A row without a caption ends the run, or goes to a file.")] = (
        OnBadRow.STOP
    ),
) -> None:
    """Keep captions of rare things and thin out the common ones, by the noun phrases that they hold."""
    from rich.console import Console

    from training.data.errors import DataError
    from training.data.filter.apply import filter_captions as apply
    from training.data.filter.selection import Rule
    from training.data.rows import OnBad

    console = Console()
    try:
        rule = Rule(least, most, seed)
        done = apply(
            file,
            out,
            rule,
            tagger_name=tagger,
            field=field,
            processes=processes,
            on_bad=OnBad(on_bad.value),
            console=console if console.is_terminal else None,
        )
    except (DataError, OSError) as error:
        fail(str(error))
    counts = done.counts
    text = (
        f"{counts.taken} of {counts.captions} captions in {out}: {counts.phrases} noun phrases, {counts.skipped} of "
        f"fewer than {least} captions skipped, {counts.capped} of more than {most} thinned out; "
        f"{done.rejected} rows rejected"
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
