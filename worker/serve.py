"""Starts a worker process; what can be refused at once is refused before torch and the model are loaded."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import uvloop

from server.protocol.log_lines import configure_logging
from worker.settings import StartError, WorkerSettings


def run(settings: WorkerSettings) -> int:
    """Serves until a signal. Returns the exit code: 1, with one line on standard error, when it cannot start."""
    configure_logging(settings.log_level, "tephra", "worker", "model")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the model loads there is nothing to finish
    try:
        _check_model(settings)
        with _listening_socket(settings.host, settings.port) as sock:
            from worker.life import Worker

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(Worker(settings, sock).live())
    except StartError as error:
        print(f"The worker cannot start: {error}", file=sys.stderr)
        return 1
    return 0


def _check_model(settings: WorkerSettings) -> None:
    """Raises StartError when there is plainly no checkpoint."""
    directory = Path(settings.model or "").expanduser()
    if not directory.is_dir():
        raise StartError(f"{directory}: no such checkpoint directory")
    if not (directory / "config.json").is_file():
        raise StartError(f"{directory}: no config.json; a checkpoint directory in Hugging Face layout is needed")


def _listening_socket(host: str, port: int) -> socket.socket:
    """Bound before the model is loaded, so that a port in use is told at once. Raises StartError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return sock
