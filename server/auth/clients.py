"""Clients' keys: those named on the command line, and those of a file that is read again when it changes.

A key is looked up by its digest: what a client can vary tells nothing of the digests that are known, so the time of
the lookup gives nothing away. A file that cannot be read any more leaves the last good keys in place.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from server.auth.api_key import ANYONE, ApiKey
from server.auth.bearer import Headers, bearer, digest
from server.auth.keys_file import KeysFileError, read_entries
from server.logs import log
from server.metrics import Metrics
from server.protocol.errors import unauthorized

RELOAD_SECONDS = 1.0  # how often the file is looked at

_Stamp = tuple[int, int, int]


class ClientAuth:
    """/v1/*: open unless keys are configured; an empty file of keys lets nobody in."""

    def __init__(self, keys: Sequence[str], file: Path | None, metrics: Metrics, *, share_caches: bool = False) -> None:
        """Raises KeysFileError."""
        self._share_caches = share_caches
        self._file = file
        self._metrics = metrics
        self._named = {digest(key.encode()): self._plain(number, key) for number, key in enumerate(keys, 1)}
        self._keys = dict(self._named)
        self._open = not keys and file is None
        self._stamp: _Stamp | None = None
        self._task: asyncio.Task[None] | None = None
        if file is not None:
            self._stamp = _stamp(file)
            self._load(file)

    def check(self, headers: Headers) -> ApiKey:
        """Whose request it is. Raises ApiError 401."""
        if self._open:
            return ANYONE
        key = self._keys.get(digest(bearer(headers)))
        if key is None:
            error = unauthorized()
            error.headers["WWW-Authenticate"] = "Bearer"
            raise error
        key.check()
        return key

    async def start(self) -> None:
        if self._file is not None:
            self._task = asyncio.create_task(self._follow(self._file), name="keys")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, file: Path) -> None:
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            stamp = _stamp(file)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                await asyncio.to_thread(self._load, file)
                log(logging.INFO, "keys read again", keys=len(self._keys))
            except KeysFileError as error:
                self._metrics.keys_valid.set(0)
                log(logging.ERROR, "keys file not readable: the last good keys stay", reason=str(error))

    def _load(self, file: Path) -> None:
        loaded = dict(self._named)
        for entry in read_entries(file):
            loaded[bytes.fromhex(entry.sha256)] = self._of_tenant(entry.key())
        self._keys = loaded
        self._metrics.keys_valid.set(1)

    def _plain(self, number: int, key: str) -> ApiKey:
        """A key without a name: its tenant is named by its digest, which no order of the keys changes."""
        return self._of_tenant(ApiKey(f"api-key-{number}", f"key:{digest(b'tenant:' + key.encode()).hex()[:32]}"))

    def _of_tenant(self, key: ApiKey) -> ApiKey:
        if not self._share_caches:
            return key
        return ApiKey(key.name, "", key.models, key.limits, key.expires_at, key.disabled)


def _stamp(file: Path) -> _Stamp | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
