"""The worker's life once it has an address: load, serve, join the controller, drain, stop.

SIGTERM drains: new requests are turned away, the ones in hand are finished up to a deadline, then the worker leaves the
controller and ends. SIGINT, or a second SIGTERM, ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import uvicorn

from server.protocol.connections import Connections
from server.protocol.heads import KEEP_ALIVE, bounded
from server.protocol.registration import Heartbeat, HeartbeatAnswer, Registration, WorkerLoad
from worker.api.app import create_app
from worker.engine.protocol import EngineError
from worker.membership import Membership
from worker.service import Service
from worker.settings import StartError, WorkerSettings
from worker.start import start_service

log = logging.getLogger("tephra.worker")

_CLOSE_SECONDS = 1  # for connections that are still open when the server stops
_BACKLOG = 1024


class Worker:
    """One process's worth of worker."""

    def __init__(self, settings: WorkerSettings, sock: socket.socket) -> None:
        self._settings = settings
        self._sock = sock
        self._port = int(sock.getsockname()[1])
        self._started_at = time.time()
        host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:40]
        self._id = settings.worker_id or f"{host}-{secrets.token_hex(4)}"
        self._stop = asyncio.Event()
        self._drain_until_stop = asyncio.Event()

    async def live(self) -> None:
        """From loading to the end. Raises StartError."""
        service = await asyncio.to_thread(start_service, self._settings)
        try:
            await service.engine.start()
        except (EngineError, MemoryError, RuntimeError) as error:  # torch says "out of memory" by RuntimeError
            raise StartError(f"the engine does not start: {' '.join(str(error).split())}") from error
        gc.collect()
        gc.freeze()  # what is there now stays: no later collection, at which every answer halts, goes through it again
        server = _Server(self._uvicorn(service))
        membership = self._membership(service)
        serving = asyncio.create_task(server.serve(sockets=[self._sock]))
        listening = asyncio.create_task(server.listening.wait())
        try:
            self._watch_signals()
            await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
            if membership is not None:
                await membership.start()
            self._say_ready(service)
            await self._wait_for_end(serving, service, membership)
        finally:
            service.gate.drain()
            if membership is not None:
                await membership.leave()
            server.should_exit = True
            listening.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await service.engine.stop()
            service.close()

    async def _wait_for_end(self, serving: asyncio.Task[None], service: Service, membership: Membership | None) -> None:
        stop = asyncio.create_task(self._stop.wait())
        drain = asyncio.create_task(self._drain_until_stop.wait())
        await asyncio.wait((serving, stop, drain), return_when=asyncio.FIRST_COMPLETED)
        if drain.done() and not stop.done() and not serving.done():
            log.info("Draining: %d requests in hand", service.gate.requests)
            service.gate.drain()
            if membership is not None:
                membership.tell_now()
            empty = asyncio.create_task(service.gate.wait_empty())
            await asyncio.wait(
                (empty, stop, serving), timeout=self._settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not empty.done():
                log.warning("Stopping with %d requests unfinished", service.gate.requests)
            empty.cancel()
        stop.cancel()
        drain.cancel()

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGTERM, self._on_terminate)

    def _on_terminate(self) -> None:
        (self._stop if self._drain_until_stop.is_set() else self._drain_until_stop).set()

    def _uvicorn(self, service: Service) -> uvicorn.Config:
        return uvicorn.Config(
            create_app(service),
            loop="none",
            http=bounded(Connections()),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )

    def _membership(self, service: Service) -> Membership | None:
        settings = self._settings
        if not settings.controllers:
            return None
        url = settings.worker_url or self._url(_local_address_toward(settings.controllers[0]))
        return Membership(
            settings.controllers,
            settings.worker_secret,
            registration=lambda: Registration(
                worker_id=self._id,
                url=url,
                model=service.card,
                engine="native",
                device=service.device,
                max_running=settings.max_running,
                started_at=self._started_at,
                load=_load(service),
            ),
            # The controller need not learn from a refusal that this worker drains.
            heartbeat=lambda: Heartbeat(_load(service), service.engine.healthy, service.gate.draining),
            obey=lambda answer: _obey(service, answer),
        )

    def _say_ready(self, service: Service) -> None:
        card = service.card
        print(
            f"Tephra worker ready: {self._url('127.0.0.1')} model={card.name} version={card.version} "
            f"device={service.device} context={card.context_length}",
            flush=True,
        )

    def _url(self, instead_of_any: str) -> str:
        """`instead_of_any` is what others write where this process listens on every address."""
        host = instead_of_any if self._settings.host in ("0.0.0.0", "::", "") else self._settings.host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"


class _Server(uvicorn.Server):
    """Leaves signals to the worker, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _load(service: Service) -> WorkerLoad:
    load, costs = service.engine.load(), service.metrics.pace.costs
    return WorkerLoad(
        running=load.running,
        waiting=load.waiting,
        outstanding_tokens=load.outstanding_tokens,
        kv_usage=load.kv_usage,
        kv_tokens=load.kv_tokens,
        outstanding_prompt_tokens=load.outstanding_prompt_tokens,
        prompt_token_seconds=costs.prompt,
        answer_token_seconds=costs.answer,
        in_hand=service.gate.requests,
        totals=service.metrics.totals,
    )


def _obey(service: Service, answer: HeartbeatAnswer) -> bool:
    if not service.gate.hold(answer.drain):
        return False
    if answer.drain:
        log.info("Draining by the controller's word: %d requests in hand", service.gate.requests)
    else:
        log.info("Open again by the controller's word")
    return True


def _local_address_toward(url: str) -> str:
    """This machine's address as the controller sees it; nothing is sent (a datagram socket only picks a route)."""
    parts = urlsplit(url)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
