"""`python -m server`: runs a controller until SIGTERM or Ctrl-C. `run(settings)` does the same for the command line."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import sys
from dataclasses import replace

import uvloop

from server.controller import Controller
from server.listen import ControllerServer, bind
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
    embedded: EmbeddedValkey | None = None
    listener: socket.socket | None = None
    try:
        settings, made_secret = with_secret(settings)
        listener = bind(settings.host, settings.port)
        if settings.redis_url is None:
            embedded = EmbeddedValkey()
            embedded.start()
            settings = replace(settings, redis_url=embedded.url)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, listener, made_secret))
    except (SettingsError, StateError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}")
    finally:
        if listener is not None:
            listener.close()
        if embedded is not None:
            embedded.stop()


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


async def _serve(settings: Settings, listener: socket.socket, made_secret: bool) -> int:
    server = ControllerServer(Controller(settings), listener)
    loop = asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, server.stop)
    await server.start()
    print(f"Tephra controller ready at {server.url}", flush=True)
    if made_secret and sys.stderr.isatty():
        # To the terminal of who started it, never to a log: nobody else can tell a worker how to join.
        print(f"Workers join with TEPHRA_WORKER_SECRET={settings.worker_secret}", file=sys.stderr, flush=True)
    await server.wait()
    return 0


def _complain(message: str) -> int:
    print(f"tephra controller: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
