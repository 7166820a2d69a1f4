"""What the commands that measure share: the checkpoint, where results go, and how a command ends that cannot go on."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer


@contextmanager
def checkpoint_of(model: str) -> Iterator[Path]:
    """The demo's, put together where it is not yet; a tiny one for as long as it is needed; or the folder itself.
    Raises DemoError, OSError."""
    if model == "demo":
        from deploy.demo.assemble import demo_checkpoint

        yield demo_checkpoint()
    elif model == "tiny":
        from model.tiny import make_tiny_checkpoint

        with tempfile.TemporaryDirectory(prefix="tephra-tiny-") as folder:
            yield make_tiny_checkpoint(Path(folder, "tiny"))
    else:
        yield Path(model)


def result_files(name: str, file: Path | None, page: Path | None) -> tuple[Path, Path]:
    """Where results go: JSON and Markdown."""
    file = file or Path("benchmarks", "results", f"{time.strftime('%Y-%m-%d')}-{name}.json")
    return file, page or file.with_suffix(".md")


def needs_psutil() -> None:
    """Ends the command where it is missing."""
    if importlib.util.find_spec("psutil") is None:
        fail("psutil is not installed: 'make install EXTRAS=bench' brings what this command needs.")


def fail(message: str) -> NoReturn:
    """Ends the command with one line."""
    print(f"tephra: {message}", file=sys.stderr)
    raise typer.Exit(1)
