"""The processes of one controller ask each other for what they know, so that whichever is asked answers for all.

Each listens on a socket of its own in a folder that only their user may enter. The question is one line (seconds of the
window), the answer a Snapshot as JSON, and the connection ends. A process that does not answer in time, because it
hangs, starts or is gone, is left out and named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from server.logs import log
from server.snapshot import Snapshot
from server.stats import WINDOWS

PATIENCE = 0.5  # seconds for the answers of all
_MOST_BYTES = 16 * 1024 * 1024  # of one answer
_MOST_QUESTION = 16
_READ_SIZE = 256 * 1024

_decoder = msgspec.json.Decoder(Snapshot)


@dataclass(frozen=True)
class Seating:
    """Which of a controller's processes one is."""

    place: int
    count: int
    folder: Path | None = None  # mode 0700: the sockets lie there; None: it is the only one


class Siblings:
    """start() ... ask() ... stop()"""

    def __init__(self, seating: Seating, answer: Callable[[int], Snapshot]) -> None:
        assert seating.folder is not None
        self._folder = seating.folder
        self._seating = seating
        self._answer = answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        path = self._path(self._seating.place)
        path.unlink(missing_ok=True)  # of the one that sat here before
        self._server = await asyncio.start_unix_server(self._tell, str(path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path(self._seating.place).unlink(missing_ok=True)

    async def ask(self, window: int) -> tuple[list[Snapshot], list[int]]:
        """What the others know, and the places of those that did not say it in time."""
        places = [place for place in range(self._seating.count) if place != self._seating.place]
        answers = await asyncio.gather(*(self._ask(place, window) for place in places))
        told = [answer for answer in answers if answer is not None]
        return told, [place for place, answer in zip(places, answers, strict=True) if answer is None]

    async def _ask(self, place: int, window: int) -> Snapshot | None:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_unix_connection(str(self._path(place)))
                try:
                    writer.write(b"%d\n" % window)
                    return _decoder.decode(await _read_all(reader))
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            log(logging.DEBUG, "a process of this controller did not answer", place=place, reason=type(error).__name__)
            return None

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                question = (await reader.read(_MOST_QUESTION)).strip()
                if question.isdigit() and int(question) in WINDOWS:
                    writer.write(msgspec.json.encode(self._answer(int(question))))
                    await writer.drain()
                    writer.write_eof()
                    await reader.read(1)  # until the other has all of it and hangs up
        except (OSError, TimeoutError):
            pass  # who asked has left, or hangs: it counts us as missing
        finally:
            writer.transport.abort()

    def _path(self, place: int) -> Path:
        return self._folder / f"{place}.sock"


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    """Raises OSError for an answer without end."""
    data = bytearray()
    while chunk := await reader.read(_READ_SIZE):
        data += chunk
        if len(data) > _MOST_BYTES:
            raise OSError("an answer without end")
    return bytes(data)
