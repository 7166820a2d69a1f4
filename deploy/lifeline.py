"""Runs one command and ends it, with all that it started, when whoever holds the other end of stdin is gone.

The launcher puts this small process between itself and each part: a launcher that is killed outright cannot tidy up,
but the kernel closes its pipes, and that is seen here. Started by file path under `python -I -S`, so only the standard
library is at hand. It stands at the head of a process group of its own, which the command and its children share.

    python -I -S lifeline.py COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 3.0  # from the polite signal to the last one
_POLL_SECONDS = 0.05


def main(command: list[str]) -> int:
    """Returns the command's exit code; 128 + the signal's number where a signal ended it, as a shell says it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave_it_to_the_command)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    ended = os.pidfd_open(child.pid) if hasattr(os, "pidfd_open") else None
    watched = [sys.stdin] if ended is None else [sys.stdin, ended]
    while child.poll() is None:
        readable, _, _ = select.select(watched, [], [], _POLL_SECONDS if ended is None else None)
        if sys.stdin in readable and not os.read(sys.stdin.fileno(), 1):
            _end_group(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _leave_it_to_the_command(number: int, frame: object) -> None:
    """The group's signals are for the command; this process goes when the command has gone."""


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends every process of the group, this one with it."""
    os.killpg(os.getpgrp(), signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        time.sleep(_POLL_SECONDS)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
