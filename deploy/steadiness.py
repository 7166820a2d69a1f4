"""`tephra bench soak | determinism`: what a worker keeps up whatever is asked of it at once.

Only the command line is here; the work is `benchmarks`, which is imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from deploy.measuring import checkpoint_of, fail, needs_psutil, result_files

Model = Annotated[str, typer.Option(metavar="demo|tiny|FOLDER", help="The checkpoint; tiny: random weights.")]
ResultName = Annotated[str, typer.Option(help="Of the results.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Default: benchmarks/results/DATE-NAME.json.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Default: the same, ending in .md.")]
StartSeconds = Annotated[float, typer.Option(min=1, help="Most time for a worker to become ready.")]


def determinism(
    model: Model = "demo",
    precision: Annotated[str, typer.Option(metavar="NAME,...", help="Of float32, bfloat16, int8.")] = (
        "float32,bfloat16,int8"
    ),
    requests: Annotated[int, typer.Option(min=1, help="How many, greedy and seeded.")] = 24,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the requests.")] = 0,
    start_timeout: StartSeconds = 300.0,
    name: ResultName = "determinism",
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Ask the same alone and among others, under other caches, blocks and steps; compare token by token. In float32
    a difference ends with code 1."""
    needs_psutil()
    from rich.console import Console

    from benchmarks.determinism import Determinism
    from benchmarks.determinism import determinism as run

    with _of_a_checkpoint(model, name, json_file, markdown_file) as (folder, file, page):
        asked = Determinism(
            model=folder,
            json=file,
            markdown=page,
            precisions=tuple(part.strip() for part in precision.split(",")),
            requests=requests,
            max_tokens=max_tokens,
            seed=seed,
            name=name,
            start_seconds=start_timeout,
        )
        code = run(asked, Console())
    raise typer.Exit(code)


def soak(
    model: Model = "demo",
    minutes: Annotated[float, typer.Option(min=0.05, help="How long requests begin.")] = 20.0,
    clients: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 32,
    url: Annotated[
        str | None, typer.Option(help="A worker that runs, serving --model as 'm'. Default: one is started.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the worker. In float32 same requests must have same answers.")] = (
        "float32"
    ),
    growth: Annotated[int, typer.Option(min=1, metavar="MIB", help="By how much its memory may grow.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the requests.")] = 0,
    start_timeout: StartSeconds = 300.0,
    request_timeout: Annotated[float, typer.Option(min=1, help="A request without an end by then is lost.")] = 300.0,
    name: ResultName = "soak",
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Ask everything at once for a long while, good and bad; account for every request and for all that the worker
    holds. Ends with code 1 where anything is lost or left."""
    needs_psutil()
    from rich.console import Console

    from benchmarks.soak import Soak
    from benchmarks.soak import soak as run

    with _of_a_checkpoint(model, name, json_file, markdown_file) as (folder, file, page):
        asked = Soak(
            model=folder,
            json=file,
            markdown=page,
            minutes=minutes,
            clients=clients,
            url=url,
            dtype=dtype,
            growth=growth * 2**20,
            seed=seed,
            name=name,
            start_seconds=start_timeout,
            request_seconds=request_timeout,
        )
        code = run(asked, Console())
    raise typer.Exit(code)


@contextmanager
def _of_a_checkpoint(
    model: str, name: str, json_file: Path | None, markdown_file: Path | None
) -> Iterator[tuple[Path, Path, Path]]:
    """The checkpoint's folder and the two files of results. What cannot be done ends the command with the reason."""
    from benchmarks.servers import ServerFailed
    from deploy.demo.errors import DemoError
    from model.errors import ModelError

    file, page = result_files(name, json_file, markdown_file)
    try:
        with checkpoint_of(model) as folder:
            yield folder, file, page
    except ServerFailed as error:
        fail("\n".join([str(error), *error.tail]))
    except (ValueError, ModelError, DemoError, OSError) as error:
        fail(str(error))
