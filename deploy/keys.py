"""`tephra keys new | list | revoke`: the file of API keys that a controller reads (`--keys-file`).

Only the command line is here; the file itself is `server.auth.keys_file`'s.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from server.auth.keys_file import KeyEntry

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

File = Annotated[Path, typer.Option("--keys-file", envvar="TEPHRA_KEYS_FILE", help="The file that holds them.")]
Name = Annotated[str, typer.Argument(help="Names the key in logs and errors: letters, digits and ._-")]
Positive = typer.Option(min=1)


@app.command()
def new(
    name: Name,
    keys_file: File,
    model: Annotated[list[str] | None, typer.Option(help="A model it may use, or a pattern; default: all.")] = None,
    requests_per_minute: Annotated[int | None, Positive] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Of prompts, pictures and answers.")] = None,
    images_per_minute: Annotated[int | None, Positive] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Most requests under way at once.")] = None,
    expires_days: Annotated[float | None, typer.Option(min=0.0, help="Days until it expires; default: never.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Keys of one tenant share caches; default: the name.")] = None,
) -> None:
    """Make a key and print it, this once: the file holds only its digest."""
    from server.auth.keys_file import KeysFileError, new_key

    try:
        key = new_key(
            keys_file.expanduser(),
            name,
            models=tuple(model or ("*",)),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            images_per_minute=images_per_minute,
            concurrent=concurrent,
            expires=_in_days(expires_days),
            tenant=tenant,
        )
    except KeysFileError as error:
        _fail(str(error))
    print(key)
    print("Keep it: it is shown this once and stored nowhere.", file=sys.stderr)


@app.command("list")
def list_(keys_file: File) -> None:
    """Print the keys: what each may do, never the key itself."""
    from rich.console import Console
    from rich.table import Table

    from server.auth.keys_file import KeysFileError, read_entries

    try:
        entries = read_entries(keys_file.expanduser())
    except KeysFileError as error:
        _fail(str(error))
    table = Table("name", "state", "tenant", "models", "limits", "made")
    for entry in entries:
        table.add_row(
            entry.name,
            _state(entry),
            entry.tenant or entry.name,
            " ".join(entry.models),
            _limits(entry),
            f"{entry.created:%Y-%m-%d}" if entry.created else "",
        )
    Console().print(table)


@app.command()
def revoke(name: Name, keys_file: File) -> None:
    """Disable a key; running controllers refuse it within seconds."""
    from server.auth.keys_file import KeysFileError, revoke_key

    try:
        revoke_key(keys_file.expanduser(), name)
    except KeysFileError as error:
        _fail(str(error))
    print(f"{name} is revoked.")


def _in_days(days: float | None) -> datetime | None:
    if days is None:
        return None
    try:
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    except OverflowError:
        _fail(f"--expires-days: {days:g} is too far away")


def _state(entry: KeyEntry) -> str:
    if entry.disabled:
        return "revoked"
    if entry.expires is None:
        return "valid"
    return f"{'expired' if entry.expires <= datetime.now(UTC) else 'until'} {entry.expires:%Y-%m-%d}"


def _limits(entry: KeyEntry) -> str:
    limits = (
        (entry.requests_per_minute, "requests/min"),
        (entry.tokens_per_minute, "tokens/min"),
        (entry.images_per_minute, "images/min"),
        (entry.concurrent, "at once"),
    )
    return "\n".join(f"{limit:,} {what}" for limit, what in limits if limit is not None) or "none"


def _fail(message: str) -> NoReturn:
    print(f"tephra: {message}", file=sys.stderr)
    raise typer.Exit(1)
