"""`tephra data mix` and `recipes`: rows of several files drawn into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.data_telling import Bad, DryRun, ImageFolder, Seed, say, told, where_rejected
from training.data.rows.bad import OnBad

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.mix import MixReport


def mix(
    recipe: Annotated[str, typer.Argument(help="A recipe of ours, or a YAML file; 'tephra data recipes' lists ours.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .json, .jsonl or .parquet.")],
    data: Annotated[Path, typer.Option(help="The folder to which the recipe's paths are relative.")] = Path("."),
    image_folder: ImageFolder = None,
    seed: Seed = 0,
    on_bad: Bad = OnBad.STOP,
    keep_duplicates: Annotated[
        bool,
        typer.Option("--keep-duplicates", help="Write rows that are alike as often as they are drawn."),
    ] = False,
    any_count: Annotated[
        bool, typer.Option("--any-count", help="Take files with other numbers of rows than the recipe's.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that holds something else.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Draw rows from several files by a recipe, into one file in random order, each once."""
    with told() as console:
        from training.data.mix import Duplicates, read_recipe
        from training.data.mix import mix as run

        report = run(
            read_recipe(recipe),
            data,
            out,
            seed=seed,
            on_bad=on_bad,
            duplicates=Duplicates.KEEP if keep_duplicates else Duplicates.DROP,
            image_folder=image_folder,
            any_count=any_count,
            overwrite=overwrite,
            dry_run=dry_run,
            console=console,
        )
        _show_mix(report, console)
        if report.already_there:
            say(console, f"{out}: these {report.written:,} rows are there already; nothing was read or written")
        else:
            say(console, f"{out}: {report.written:,} rows {'would be written' if dry_run else 'written'}")
        if report.rejected:
            say(console, f"{report.rejected:,} rows rejected{where_rejected(out, dry_run)}")
        if dry_run and (report.absent or any(drawn.missing_images for drawn in report.datasets)):
            raise typer.Exit(1)


def _show_mix(report: MixReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("source", "sampling")
    for title in ("rows", "drawn", "twice", "written", "images missing"):
        table.add_column(title, justify="right")
    for drawn in report.datasets:
        numbers = (drawn.rows, drawn.drawn, drawn.duplicates, drawn.written, drawn.missing_images)
        table.add_row(Text(drawn.name), drawn.sampling, *(f"{number:,}" for number in numbers))
    console.print(table)
    for drawn in report.datasets:
        if drawn.absent:
            say(console, f"{drawn.name}: {drawn.file} is not there")
        if drawn.missing_names:
            say(console, f"{drawn.name}: images that are not there, such as {', '.join(drawn.missing_names)}")


def recipes() -> None:
    """List the mixes that come with Tephra."""
    from rich.console import Console

    from training.data.mix import read_recipe, recipe_names

    for name in recipe_names():
        say(Console(), f"{name}: {read_recipe(name).about}")
