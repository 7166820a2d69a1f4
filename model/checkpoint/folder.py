"""A directory that appears whole or not at all.

It is written aside under a hidden name, every file is forced to disk, and one rename puts it in place. Whoever writes
holds a lock on the hidden directory; what a killed writer left behind is known by its free lock and is removed by the
next one that writes beside it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import CheckpointError

_ATTEMPTS = 8
_RESERVE = 16 << 20  # bytes that the small files around the weights may take


@contextmanager
def written_aside(target: Path, weights_bytes: int = 0) -> Iterator[Path]:
    """An empty directory to fill; renamed to `target` when the block ends well, removed when it does not.

    Raises CheckpointError if `target` exists, if `weights_bytes` have no room, or if writing fails.
    """
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target}: already exists; choose another name")
    made = [folder for folder in target.absolute().parents if not folder.exists()]  # the innermost first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        _check_room(target, weights_bytes)
        aside, lock = _locked_directory(target)
    except CheckpointError:
        _remove_empty(made)
        raise
    except OSError as error:
        _remove_empty(made)
        raise _cannot_write(target, error) from error
    try:
        yield aside
        _force_to_disk(aside)
        if target.exists():
            raise CheckpointError(f"{target}: was written by another process meanwhile")
        aside.rename(target)
        _sync(target.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        _remove_empty(made)
        if isinstance(error, OSError):
            raise _cannot_write(target, error) from error
        raise
    finally:
        os.close(lock)


def _remove_empty(folders: list[Path]) -> None:
    """Those that were made for a target that did not come to be."""
    for folder in folders:
        with suppress(OSError):  # never made, or no longer empty: then somebody else uses it
            folder.rmdir()


def _cannot_write(target: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(f"{target}: the disk is full; nothing was kept")
    return CheckpointError(f"{target}: cannot be written ({error.strerror or error}); nothing was kept")


def _check_room(target: Path, weights_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if weights_bytes and free < weights_bytes + _RESERVE:
        needed, there = (f"{size / 1e9:.2f} GB" for size in (weights_bytes + _RESERVE, free))
        raise CheckpointError(f"{target}: the disk has {there} free, {needed} are needed; nothing was written")


def _locked_directory(target: Path) -> tuple[Path, int]:
    for _ in range(_ATTEMPTS):
        aside = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
        aside.mkdir()
        try:
            lock = os.open(aside, os.O_RDONLY)
        except FileNotFoundError:  # swept away by another writer in the moment before it was locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if aside.exists():
            return aside, lock
        os.close(lock)
    raise CheckpointError(f"{target}: other processes keep removing what is written there")


def _remove_abandoned(target: Path) -> None:
    for left in target.parent.glob(f".{target.name}.partial-*"):
        try:
            lock = os.open(left, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        except BlockingIOError:
            continue  # still being written
        finally:
            os.close(lock)


def _force_to_disk(folder: Path) -> None:
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
