"""`tephra data check`: every row looked at before anyone trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.data_telling import ImageFolder, say, told


def check(
    file: Annotated[Path, typer.Argument(help="The rows: .json, .jsonl or .parquet.")],
    image_folder: ImageFolder = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode images, not only their headers.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint whose tokenizer and template count tokens, exactly.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Images, template and limit of a stage, such as llava-1.5 or llava-next-2024-05.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Another limit.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A kind of finding that does no harm; duplicate-id by default.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the histograms as a page.")] = None,
) -> None:
    """Look at every row: shape, images, tokens, duplicates. Exit code 1 if anything is wrong."""
    with told() as console:
        from training.data.check import check as run
        from training.data.check import page
        from training.data.errors import DataError

        if preset is not None and model is None:
            raise DataError("--preset needs --model: tokens are counted with a checkpoint's tokenizer")
        counter = None
        if model is not None:
            from training.data.check.tokens import TokenCounter

            counter = TokenCounter(model, preset)
        checked = run(
            file,
            image_folder=image_folder,
            decode=decode,
            counter=counter,
            max_tokens=max_tokens,
            allow=allow or ("duplicate-id",),
            console=console,
        )
        if html is not None:
            html.write_text(page(file.name, checked), "utf-8")
        for found in checked.first[:20]:
            say(console, f"{found.where}: {found.reason}")
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in checked.kinds.most_common())
        say(console, f"{file}: {checked.rows:,} rows, {checked.bad:,} findings" + (f" ({kinds})" if kinds else ""))
        if checked.bad:
            raise typer.Exit(1)
