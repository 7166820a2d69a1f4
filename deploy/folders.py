"""Where the launcher keeps what it writes: one folder of logs for each run, under the user's state folder."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

KEPT_RUNS = 10


def state_folder() -> Path:
    """`$XDG_STATE_HOME/tephra`, or `~/.local/state/tephra`."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "tephra"


def new_run_folder(state: Path) -> Path:
    """Makes the folder of this run and removes the oldest ones. Raises OSError when it cannot be written."""
    runs = state / "runs"
    folder = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True, mode=0o700)
    _proof_of_room(folder)
    finished = sorted((run for run in runs.iterdir() if run.is_dir() and not _is_alive(run)), key=lambda run: run.name)
    for old in finished[: max(0, len(finished) - KEPT_RUNS + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def bound_log(log: Path, most: int) -> None:
    """Lets a log of more than `most` bytes begin anew; what it held is kept as NAME.1 until the next time.

    Whoever writes to it goes on, having opened it for appending. Raises OSError; the log begins anew all the same.
    """
    if not log.exists() or log.stat().st_size <= most:
        return
    aside = log.with_name(f"{log.name}.1")
    try:
        aside.unlink(missing_ok=True)  # first, for its room
        shutil.copyfile(log, aside)
    finally:
        os.truncate(log, 0)


def _proof_of_room(folder: Path) -> None:
    """A full disk lets a folder be made, and often an empty file: so write some bytes and take them away again."""
    trial = folder / "room"
    with trial.open("wb") as file:
        file.write(bytes(64 * 1024))
        file.flush()
        os.fsync(file.fileno())
    trial.unlink()


def _is_alive(run: Path) -> bool:
    """Whether the launcher that made the folder still runs."""
    pid = run.name.rpartition("-")[2]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
