"""The socket and the server on it: start, serve, and a stop that lets answers end.

Signals are the caller's business, so that a controller can also run inside another process or a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Iterator

import uvicorn

from server.app import create_app
from server.controller import Controller
from server.logs import log
from server.protocol.connections import Connections
from server.protocol.heads import KEEP_ALIVE, bounded

_OTHER_FILES = 256  # open files besides: Redis, pictures, logs
_LAST_WORDS = 0.3  # seconds, of the time to stop, for error events to reach their clients


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Raises OSError when the address is taken or not ours.

    `shared`: others of this user may listen there too, and the socket does not listen yet: connections come to it only
    once it is served.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        if not shared:
            listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Under which this machine reaches it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _affordable(connections: int) -> int:
    """At most so many as there may be open files, of which a request may need two; raises that bound where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            fit = max(1, (soft - _OTHER_FILES) // 2)
            log(logging.WARNING, "fewer connections than set: too few open files are allowed", connections=fit)
            return fit
    return connections


class _Uvicorn(uvicorn.Server):
    """Leaves signals alone and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ControllerServer:
    """start(), then wait() until stop() was called and the last answers have ended."""

    def __init__(self, controller: Controller, listener: socket.socket) -> None:
        self._controller = controller
        self._listener = listener
        settings, metrics = controller.settings, controller.metrics
        connections = Connections(
            _affordable(settings.max_connections),
            settings.max_connections_per_address,
            metrics.connections.inc,
            lambda verdict: metrics.connections_dropped.labels(verdict).inc(),
        )
        self._deadline = controller.settings.shutdown_seconds
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                create_app(controller),
                http=bounded(connections),
                ws="none",
                lifespan="off",  # start() and wait() below do it, so that an error at start stays ours to word
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # whom a request comes from decides about /admin: no header may say it
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(self._deadline)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return url_of(self._listener)

    async def start(self) -> None:
        """Raises StateError when Redis cannot be reached."""
        await self._controller.start()
        self._serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._listener]))
        started = asyncio.create_task(self._uvicorn.ready.wait())
        await asyncio.wait((started, self._serving), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()

    def stop(self) -> None:
        """Accepts nothing new; what is under way has `shutdown_seconds` to end."""
        if not self._controller.stopping:
            self._controller.stopping = True
            self._uvicorn.should_exit = True
            loop = asyncio.get_running_loop()
            loop.call_later(max(0.0, self._deadline - _LAST_WORDS), self._controller.watches.stop_all)

    async def wait(self) -> None:
        assert self._serving is not None
        try:
            await self._serving
        finally:
            await self._controller.stop()
