"""`python -m server`: runs a controller until SIGTERM or Ctrl-C. `run(settings)` does the same for the command line."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from server.controller import Controller
from server.listen import ControllerServer, bind, url_of
from server.memory import keep_freed_memory
from server.processes import Processes, Seat, SharedPort
from server.protocol.flags import SettingsError
from server.protocol.log_lines import configure_logging
from server.settings import Settings, read_settings
from server.state import EmbeddedValkey, StateError


def main() -> int:
    try:
        settings = read_settings(sys.argv[1:])
    except SettingsError as error:
        return _complain(str(error))
    return run(settings)


def run(settings: Settings) -> int:
    """Returns the exit code: 0 after a stop in good order, 1 with one line on stderr when it could not start."""
    configure_logging(settings.log_level, "tephra")
    keep_freed_memory()
    embedded: EmbeddedValkey | None = None
    try:
        settings, made_secret = with_secret(settings)
        with _port(settings) as port:
            if settings.redis_url is None:
                embedded = EmbeddedValkey()
                embedded.start()
                settings = replace(settings, redis_url=embedded.url)
            if isinstance(port, SharedPort):
                return _run_several(settings, port, made_secret)
            return _run_alone(settings, port, lambda: _say_ready(settings, url_of(port), made_secret))
    except (SettingsError, StateError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}")
    finally:
        if embedded is not None:
            embedded.stop()


@contextmanager
def _port(settings: Settings) -> Iterator[socket.socket | SharedPort]:
    several = settings.processes > 1
    port = SharedPort(settings.host, settings.port) if several else bind(settings.host, settings.port)
    with closing(port):
        yield port


def _run_alone(
    settings: Settings, listener: socket.socket, on_ready: Callable[[], None], seat: Seat | None = None
) -> int:
    """`seat`: of a process that is one of several."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, listener, on_ready, seat))


def _run_several(settings: Settings, port: SharedPort, made_secret: bool) -> int:
    share = _share(settings)

    def serve(seat: Seat) -> int:
        try:
            return _run_alone(share, seat.listener, seat.ready, seat)
        except (SettingsError, StateError) as error:
            return _complain(str(error))

    with TemporaryDirectory(prefix="tephra-controller-") as folder:
        processes = Processes(settings.processes, port, Path(folder), serve, settings.shutdown_seconds)
        return processes.run(lambda: _say_ready(settings, port.url, made_secret))


def _share(settings: Settings) -> Settings:
    """One process's part of what the controller as a whole may have under way."""

    def part(whole: int) -> int:
        return -(-whole // settings.processes)

    return replace(
        settings,
        max_inflight=part(settings.max_inflight),
        max_connections=part(settings.max_connections),
        max_inflight_bytes=part(settings.max_inflight_bytes),
        media_concurrency=part(settings.media_concurrency),
    )


def with_secret(settings: Settings) -> tuple[Settings, bool]:
    """Makes a worker secret where the controller keeps to itself; raises SettingsError where it must be given one."""
    if settings.worker_secret:
        return settings, False
    if not settings.loopback or settings.redis_url is not None:
        raise SettingsError(
            "--worker-secret (TEPHRA_WORKER_SECRET) is needed when others can reach the controller or its Redis: who "
            "does not know it must not be able to join as a worker and read prompts"
        )
    return replace(settings, worker_secret=secrets.token_urlsafe(24)), True


async def _serve(settings: Settings, listener: socket.socket, on_ready: Callable[[], None], seat: Seat | None) -> int:
    controller = Controller(settings, seating=seat.seating if seat is not None else None)
    server = ControllerServer(controller, listener)
    loop = asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, server.stop)
    if seat is not None:
        loop.add_reader(seat.parent, partial(_stop_orphan, loop, seat.parent, server))
    await server.start()
    # What was imported and made until here stays: collections while requests run need not go through it each time.
    gc.collect()
    gc.freeze()
    on_ready()
    await server.wait()
    return 0


def _stop_orphan(loop: asyncio.AbstractEventLoop, parent: int, server: ControllerServer) -> None:
    loop.remove_reader(parent)
    server.stop()


def _say_ready(settings: Settings, url: str, made_secret: bool) -> None:
    print(f"Tephra controller ready at {url}", flush=True)
    if made_secret and sys.stderr.isatty():
        # To the terminal of who started it, never to a log: nobody else can tell a worker how to join.
        print(f"Workers join with TEPHRA_WORKER_SECRET={settings.worker_secret}", file=sys.stderr, flush=True)


def _complain(message: str) -> int:
    print(f"tephra controller: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
