"""Several controller processes on one port, and the parent that keeps them running.

Each process is a controller like any other; they share Redis, and tell each other what operators ask for. The parent
serves nothing: it holds the port, starts every process by forking, starts a dead one anew after a growing delay, and
passes a stop on to all. On Linux each process has a listening socket of its own on the same port, among which the
kernel shares out connections, so that one that dies takes only its own connections along; elsewhere they accept from
one socket in turn.

The parent must have one thread and no event loop, since it forks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from server.listen import bind, url_of
from server.logs import log
from server.shared_metrics import forget_gauges, share_metrics
from server.siblings import Seating

_FIRST_DELAY = 0.1  # seconds before a dead process is started anew; doubled at each death that follows
_LONGEST_DELAY = 5.0
_STABLE_SECONDS = 10.0  # a process that lived this long starts its count of deaths anew
_MERCY_SECONDS = 2.0  # beyond the time to finish answers, before what is left is killed
_POLL_SECONDS = 0.5
_READY = b"r"
_STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Seat:
    """What a process gets from its parent."""

    listener: socket.socket
    ready: Callable[[], None]  # to be called once it serves
    parent: int  # file descriptor that comes to its end when the parent is gone
    seating: Seating


Serve = Callable[[Seat], int]


class SharedPort:
    """One address for several processes."""

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError when somebody else listens there: asked for alone first, since sharing would not tell."""
        with bind(host, port) as alone:
            port = alone.getsockname()[1]
            if sys.platform != "linux":
                self._held = alone.dup()
        if sys.platform == "linux":
            self._held = bind(host, port, shared=True)  # holds the port and, never listening, gets no connections
        self.host, self.port = host, port

    def listener(self) -> socket.socket:
        return bind(self.host, self.port, shared=True) if sys.platform == "linux" else self._held.dup()

    @property
    def url(self) -> str:
        return url_of(self._held)

    def close(self) -> None:
        self._held.close()


@dataclass
class _Process:
    """A place, and who sits there."""

    place: int
    pid: int | None = None
    status: int = -1  # read end of the pipe through which it says that it is ready
    ready: bool = False
    started_at: float = 0.0  # monotonic
    deaths: int = 0
    due_at: float = field(default=0.0)  # when it is to be started, monotonic


class Processes:
    """run() once, from the main thread; returns the exit code."""

    def __init__(self, count: int, port: SharedPort, folder: Path, serve: Serve, stop_seconds: float) -> None:
        """`folder`: an empty one, mode 0700, for the processes' metrics and sockets. `serve` runs in each process
        until its end."""
        self._port = port
        self._folder = folder
        self._serve = serve
        self._stop_seconds = stop_seconds
        self._processes = [_Process(place) for place in range(count)]
        self._stopping = False
        self._wake, self._wake_end = os.pipe()
        self._lifeline, self._lifeline_end = os.pipe()  # never written to: ends when this process does

    def run(self, on_ready: Callable[[], None]) -> int:
        """`on_ready` is called when all serve for the first time. A first start that fails ends everything."""
        os.set_blocking(self._wake_end, False)
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        before = {one: signal.signal(one, lambda *_: None) for one in (*_STOPS, signal.SIGCHLD)}
        try:
            if (failed := self._start_first()) is not None:
                return failed
            for process in self._processes[1:]:
                self._fork(process)
            self._keep(on_ready)
            return 0
        finally:
            self._stop_all()
            signal.set_wakeup_fd(-1)
            for one, handler in before.items():
                signal.signal(one, handler)
            for end in (self._wake, self._wake_end, self._lifeline, self._lifeline_end):
                os.close(end)

    def _start_first(self) -> int | None:
        """One alone, so that what cannot be is told once. Its exit code where it could not start."""
        first = self._processes[0]
        self._fork(first)
        while not first.ready and not self._stopping:
            self._wait(_POLL_SECONDS)
            if (code := self._ended(first)) is not None:
                return 0 if self._stopping else code or 1
        return None

    def _keep(self, on_ready: Callable[[], None]) -> None:
        told = False
        while not self._stopping:
            now = time.monotonic()
            due = min((one.due_at for one in self._processes if one.pid is None), default=now + _POLL_SECONDS)
            self._wait(min(_POLL_SECONDS, max(0.0, due - now)))
            for process in self._processes:
                if process.pid is not None and (code := self._ended(process)) is not None:
                    self._mourn(process, code)
                elif process.pid is None and not self._stopping and time.monotonic() >= process.due_at:
                    self._fork(process)
            if not told and all(process.ready for process in self._processes):
                told = True
                on_ready()

    def _mourn(self, process: _Process, code: int) -> None:
        now = time.monotonic()
        process.deaths = 1 if now - process.started_at >= _STABLE_SECONDS else process.deaths + 1
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(process.deaths - 1, 16))
        process.due_at = now + delay
        if not self._stopping:
            log(logging.ERROR, "a process ended", place=process.place, code=code, started_again_in=round(delay, 2))

    def _fork(self, process: _Process) -> None:
        status, status_end = os.pipe()
        listener = self._port.listener()
        process.started_at, process.ready = time.monotonic(), False
        pid = os.fork()
        if pid == 0:
            self._be(process.place, listener, status_end)
        os.close(status_end)
        listener.close()
        process.pid, process.status = pid, status

    def _be(self, place: int, listener: socket.socket, status_end: int) -> None:
        """The child: never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for one in (*_STOPS, signal.SIGCHLD):
                signal.signal(one, signal.SIG_DFL)
            for end in (self._wake, self._wake_end, self._lifeline_end, *self._statuses()):
                os.close(end)
            self._port.close()
            share_metrics(self._folder, place)
            code = self._serve(self._seat(place, listener, status_end))
        except KeyboardInterrupt:
            code = 130
        finally:
            # Not sys.exit: what the parent has on its stack is the parent's to clear away.
            logging.shutdown()
            with contextlib.suppress(OSError, ValueError):  # nobody reads what is left to say
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _seat(self, place: int, listener: socket.socket, status_end: int) -> Seat:
        seating = Seating(place, len(self._processes), self._folder)
        return Seat(listener, lambda: _say_ready(status_end), self._lifeline, seating)

    def _statuses(self) -> list[int]:
        return [process.status for process in self._processes if process.status >= 0]

    def _wait(self, seconds: float) -> None:
        """Until a signal, a process that is ready or has ended, or the time is over."""
        unready = [process for process in self._processes if process.pid is not None and not process.ready]
        readable, _, _ = select.select([self._wake, *(one.status for one in unready)], [], [], seconds)
        if self._wake in readable and set(os.read(self._wake, 4096)) & set(_STOPS):
            self._stopping = True
        for process in unready:
            if process.status in readable:
                if os.read(process.status, 1) == _READY:
                    process.ready = True
                else:
                    time.sleep(0.01)  # it is ending: seen by `_ended` in a moment

    def _ended(self, process: _Process) -> int | None:
        """The exit code of a process that has ended, whose place is free again then."""
        if process.pid is None:
            return None
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid == 0:
            return None
        os.close(process.status)
        process.pid, process.status, process.ready = None, -1, False
        forget_gauges(self._folder, process.place)
        return os.waitstatus_to_exitcode(status)

    def _stop_all(self) -> None:
        """Lets all finish; kills what is left when the time is over, or when asked to stop a second time."""
        self._stopping = False
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_seconds + _MERCY_SECONDS
        while any(process.pid is not None for process in self._processes):
            self._wait(0.1)
            if self._stopping or time.monotonic() > deadline:
                self._signal_all(signal.SIGKILL)
            for process in self._processes:
                self._ended(process)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.pid is not None:
                os.kill(process.pid, number)  # our own child, not waited for yet: it exists


def _say_ready(status_end: int) -> None:
    os.write(status_end, _READY)
