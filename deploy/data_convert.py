"""`tephra data convert` and `formats`: published annotations into LLaVA conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.data_telling import Bad, DryRun, ImageFolder, Seed, say, told, where_rejected
from training.data.convert.base import Boxes, CocoYear
from training.data.rows.bad import OnBad

if TYPE_CHECKING:
    from training.data.convert import Converter


def formats() -> None:
    """List the published formats that 'tephra data convert' reads, and their files."""
    from rich.console import Console
    from rich.table import Table

    from training.data.convert import CONVERTERS

    table = Table("format", "data set", "files (optional ones in brackets)", "images below")
    for converter in CONVERTERS.values():
        files = (f"{role.name}={role.published}" for role in converter.roles if not role.optional)
        more = (f"[{role.name}={role.published}]" for role in converter.roles if role.optional)
        table.add_row(converter.name, converter.about, "\n".join([*files, *more]).replace("[", "\\["), converter.images)
    Console().print(table)


def convert(
    format: Annotated[str, typer.Argument(help="A published format; 'tephra data formats' lists them.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .json, .jsonl or .parquet.")],
    source: Annotated[
        list[str], typer.Option("--from", help="ROLE=FILE, once for each file; FILE alone where there is one role.")
    ],
    images: Annotated[str | None, typer.Option(help="The folder put before image names; '' for none.")] = None,
    image_folder: ImageFolder = None,
    split: Annotated[str, typer.Option(help="Of formats whose entries name their split.")] = "train",
    coco: Annotated[CocoYear, typer.Option(help="How COCO's image files are named.")] = CocoYear.Y2017,
    boxes: Annotated[Boxes, typer.Option(help="Coordinates after padding to a square, or as they are.")] = Boxes.PADDED,
    draw: Annotated[int | None, typer.Option(min=1, help="Most questions of one picture.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Most questions in one conversation.")] = None,
    every: Annotated[
        bool | None, typer.Option("--format-every/--format-first", help="Where the response-format prompt stands.")
    ] = None,
    seed: Seed = 0,
    on_bad: Bad = OnBad.STOP,
    dry_run: DryRun = False,
) -> None:
    """Turn published annotations into LLaVA conversations."""
    with told() as console:
        from training.data.convert import CONVERTERS, Settings
        from training.data.convert import convert as run
        from training.data.errors import DataError

        if format not in CONVERTERS:
            raise DataError(f"{format}: expected one of {', '.join(CONVERTERS)}")
        chosen = Settings(images, split, seed, boxes, coco, draw, turns, every)
        report = run(
            CONVERTERS[format],
            _files(CONVERTERS[format], source),
            out,
            chosen,
            on_bad=on_bad,
            image_folder=image_folder,
            dry_run=dry_run,
            console=console,
        )
        verb = "would be written" if dry_run else "written"
        say(console, f"{out}: {report.rows:,} rows {verb}, {report.exchanges:,} questions with answers")
        for reason, count in report.left_out.items():
            say(console, f"{count:,} left out: {reason}")
        if report.rejected:
            say(console, f"{report.rejected:,} entries rejected{where_rejected(out, dry_run)}")
        if report.missing:
            say(console, f"{report.missing:,} rows' images are not there, such as {', '.join(report.missing_names)}")
        if dry_run:
            console.print_json(data=report.samples)


def _files(converter: Converter, given: Sequence[str]) -> dict[str, Path]:
    from training.data.errors import DataError

    roles = [role.name for role in converter.roles]
    files: dict[str, Path] = {}
    for text in given:
        role, named, name = text.partition("=")
        if not named or role not in roles:
            role, name = roles[0], text
            if len(given) > 1:
                raise DataError(f"--from {text}: expected ROLE=FILE with a role of {', '.join(roles)}")
        if role in files:
            raise DataError(f"--from {text}: {role} is given twice")
        files[role] = Path(name)
    return files
