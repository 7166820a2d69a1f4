"""The folder in which the demo is kept, and the lock under which it is written.

A finished checkpoint appears by one rename and never changes, so readers need no lock. Writers take turns: the second
finds what the first has made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from deploy.demo.errors import DemoError

MANIFEST = "manifest.json"
KEPT = 4  # finished checkpoints; older ones are removed
_PARTIAL = "partial-"
_PATIENCE = 3600.0  # seconds that one process waits for another


def default_cache() -> Path:
    """`$TEPHRA_CACHE`, or `$XDG_CACHE_HOME/tephra`, or `~/.cache/tephra`."""
    if chosen := os.environ.get("TEPHRA_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tephra"


@contextmanager
def only_writer(cache: Path, console: Console) -> Iterator[None]:
    """Holds the cache's lock. It goes with the process, so one that was killed leaves nobody waiting."""
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / "demo.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print("Another process is assembling the demo checkpoint; waiting for it.")
            lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise DemoError(f"{cache}: another process has held demo.lock for {_PATIENCE / 60:.0f} minutes") from None
    try:
        yield
    finally:
        lock.release()


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds every file that its manifest lists, in full length."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """A folder to write into: renamed to `target` when all went well, else removed. The caller holds the lock."""
    for left_over in target.parent.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left_over)
    partial = target.parent / f"{_PARTIAL}{target.name}"
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if target.exists():  # incomplete: a finished one would have been used
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_old(cache: Path, pattern: str) -> None:
    """Keeps the checkpoints that were made last. The caller holds the lock."""
    finished = sorted(cache.glob(pattern), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for old in finished[KEPT:]:
        shutil.rmtree(old)


def roll_up(digests: Mapping[str, str]) -> str:
    """One digest for many named ones."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()
