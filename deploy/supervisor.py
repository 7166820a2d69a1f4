"""Keeps one process of the system running: starts it, sees it become ready, restarts it when it dies, stops it.

Knows processes, signals and log files; nothing of what the process does. Every process runs under `deploy.lifeline`
in a process group of its own, so that its children go with it, a Ctrl-C at the terminal reaches the launcher alone, and
nothing is left behind when the launcher itself is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy import lifeline

FIRST_DELAY = 0.5  # seconds before the first restart; doubled at each crash that follows
LONGEST_DELAY = 30.0
STABLE_SECONDS = 60.0  # a process that ran this long since it was ready starts its count of crashes anew
MOST_CRASHES = 5  # in a row; then the process is given up
_PROBE_SECONDS = 0.1
_TAIL_BYTES = 8192


class Stage(enum.Enum):
    """Where a process stands. STARTING, LOADING and READY are what probes tell; the rest follows from its exit."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    GIVEN_UP = "given up"


Probe = Callable[[], Awaitable[Stage]]


@dataclass(frozen=True)
class Part:
    """What to run, and how to see that it is ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    probe: Probe
    start_seconds: float  # most time from start to ready


class Observer(Protocol):
    """Who shows a person what happens."""

    def stage(self, part: str, stage: Stage) -> None: ...

    def say(self, line: str) -> None: ...


class PartFailed(Exception):
    """A process ended, or did not become ready, while others wait for it. One line; `tail` is the end of its log."""

    def __init__(self, message: str, tail: tuple[str, ...]) -> None:
        super().__init__(message)
        self.tail = tail


class Supervised:
    """One part and its process: `start`, then `keep` until `ask_to_stop`.

    Neither of the two is to be cancelled, or a process could be left without an owner: asked to stop, they end.
    """

    def __init__(self, part: Part, observer: Observer) -> None:
        self.part = part
        self._observer = observer
        self._process: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the lifeline, whose child the process is, while they run."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> None:
        """Starts the process and returns once it is ready. Raises PartFailed; OSError for an unwritable log."""
        self._observer.stage(self.part.name, Stage.STARTING)
        with self.part.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", lifeline.__file__, *self.part.command),
                stdin=asyncio.subprocess.PIPE,  # held open for as long as this process lives
                stdout=log,
                stderr=log,
                env=dict(self.part.environment),
                process_group=0,
            )
        if self._stop.is_set():
            self._signal(signal.SIGTERM)
        await self._until_ready(self._process)

    async def keep(self) -> None:
        """Restarts the process whenever it ends, after a growing delay. Returns when it is stopped or given up."""
        crashes, ready_at = 0, time.monotonic()
        trouble = await self._ended()
        while not self._stop.is_set():
            crashes = 1 if time.monotonic() - ready_at >= STABLE_SECONDS else crashes + 1
            if crashes > MOST_CRASHES:
                self._observer.stage(self.part.name, Stage.GIVEN_UP)
                self._observer.say(f"{trouble} That was {crashes} times in a row: given up.")
                return
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (crashes - 1))
            self._observer.stage(self.part.name, Stage.RESTARTING)
            self._observer.say(f"{trouble} It is started again in {delay:g} s.")
            with contextlib.suppress(TimeoutError):  # nobody asked to stop in the meantime
                await asyncio.wait_for(self._stop.wait(), delay)
                return
            try:
                await self.start()
            except PartFailed as error:
                self.kill()
                trouble = f"{error}{last_words(error.tail)}"
            except OSError as error:
                trouble = f"{self.part.name} cannot be started: {error.strerror or error}."
            else:
                ready_at = time.monotonic()
                trouble = await self._ended()

    def ask_to_stop(self) -> None:
        """Sends SIGTERM to the process and to its children; from here on it is not restarted."""
        self._stop.set()
        self._signal(signal.SIGTERM)

    async def stopped(self) -> None:
        """Waits for the process to end."""
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        """Ends what is left of the process group at once."""
        self._signal(signal.SIGKILL)

    async def _ended(self) -> str:
        """Waits for the process to end and clears its children away; what happened, as a sentence."""
        assert self._process is not None, "start comes first"
        code = await self._process.wait()
        self.kill()
        return f"{self.part.name} {_how(code)}.{last_words(tail_of(self.part.log))}"

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + self.part.start_seconds
        while process.returncode is None:
            stage = await self.part.probe()
            if process.returncode is not None:
                break  # something else answers at its address
            self._observer.stage(self.part.name, stage)
            if stage is Stage.READY:
                return
            if time.monotonic() > deadline:
                raise PartFailed(
                    f"{self.part.name} was not ready within {self.part.start_seconds:g} s.", tail_of(self.part.log)
                )
            await asyncio.sleep(_PROBE_SECONDS)
        raise PartFailed(f"{self.part.name} {_how(process.returncode)} while it started.", tail_of(self.part.log))

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # the whole group is gone, which is what was wanted
                os.killpg(self._process.pid, number)


def last_words(tail: tuple[str, ...]) -> str:
    """The end of a log, to be put after a sentence."""
    return f" Its log ends: {' | '.join(tail[-3:])}" if tail else ""


def tail_of(log: Path, lines: int = 8) -> tuple[str, ...]:
    """The last lines of a log that say something; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(line.strip() for line in text.splitlines() if line.strip())[-lines:]


def _how(code: int) -> str:
    """A lifeline's exit code in words."""
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"was ended by {signal.Signals(number).name}"
    return f"exited with code {code}"
