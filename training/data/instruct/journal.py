"""The record of what was asked and answered: append-only, on disk before anything else happens with an answer.

One JSON object a line. `sent` is written before a request leaves, `answer` or `failed` when it has ended, each flushed
to the disk (fsync; lines that wait at the same time share one). So after a kill at any moment every answer that had
been recorded is there, and a `sent` that nothing follows names a request of which nobody knows whether it was paid.
A last line that was cut off is dropped when the journal is opened again; damage anywhere else is an error.

Answers stay on disk; memory holds where each begins. Knows nothing of prompts or of what an answer must be.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from uuid import uuid4

import msgspec

from training.data.errors import DataError
from training.data.instruct.budget import Tokens


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What all answers of one journal have in common."""

    model: str
    temperature: float
    max_tokens: int
    prompts: str  # their digest


class _Header(msgspec.Struct, tag="journal", tag_field="record"):
    settings: Settings
    run: str  # a name that no other journal has


class Sent(msgspec.Struct, tag="sent", tag_field="record"):
    """A request is about to leave; `prompt` and `completion` bound the tokens that it can cost."""

    key: str
    turn: int
    prompt: int
    completion: int


class Answered(msgspec.Struct, tag="answer", tag_field="record"):
    key: str
    turn: int
    text: str
    finish: str
    prompt: int  # tokens
    completion: int
    estimated: bool = False  # the endpoint gave no usage: the tokens are bounds


class Failed(msgspec.Struct, tag="failed", tag_field="record"):
    """No answer came; `unsure`: it may have been written, and charged, all the same."""

    key: str
    turn: int
    why: str
    unsure: bool


Record = Sent | Answered | Failed
_decode = msgspec.json.Decoder(_Header | Sent | Answered | Failed).decode


@dataclass
class Spent:
    """Everything that the journal's requests cost, over all runs."""

    answers: int = 0
    used: Tokens = field(default_factory=Tokens)  # of answers that came
    estimated: int = 0  # answers among them without usage
    failed: int = 0  # requests
    unsure: int = 0  # requests of which it is not known whether they were charged
    unsure_tokens: Tokens = field(default_factory=Tokens)  # at most

    @property
    def most(self) -> Tokens:
        return self.used + self.unsure_tokens


class Journal:
    """One file; one process at a time. A context manager."""

    def __init__(self, file: Path, settings: Settings) -> None:
        """Opens it, or begins it. Raises DataError: made with other settings, damaged, or in use."""
        self.file = file
        self.spent = Spent()
        self.notes: list[str] = []
        self._places: dict[tuple[str, int], tuple[int, int]] = {}  # of answers: offset and length
        self._open: dict[tuple[str, int], Sent] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream: BinaryIO = file.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise DataError(f"{file}: another run is writing it") from error
        try:
            self._read(settings)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def answers(self) -> int:
        return len(self._places)

    def answer(self, key: str, turn: int) -> Answered | None:
        """From the disk; None: there is none yet."""
        if (place := self._places.get((key, turn))) is None:
            return None
        offset, length = place
        record = _decode(os.pread(self._stream.fileno(), length, offset))
        assert isinstance(record, Answered)
        return record

    async def append(self, record: Record) -> None:
        """Returns when the record is on the disk. Raises OSError: the disk takes no more."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = msgspec.json.encode(record) + b"\n"
        self._take(record, self._end, len(line))
        self._end += len(line)
        self._waiting.append((line, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await asyncio.shield(done)

    async def drain(self) -> None:
        """Until nothing waits to be written."""
        while self._writer is not None and not self._writer.done():
            await self._writer

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._store, b"".join(line for line, _ in batch))
            except OSError as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(OSError(error.errno, f"{self.file}: {error.strerror}"))
            else:
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)

    def _store(self, lines: bytes) -> None:
        self._stream.write(lines)
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self, settings: Settings) -> None:
        size = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(0)
        offset, header = 0, None
        for number, line in enumerate(self._stream, 1):
            if not line.endswith(b"\n"):
                self._stream.truncate(offset)
                self.notes.append(f"{self.file}: line {number} had been cut off and is dropped ({size - offset} bytes)")
                break
            try:
                record = _decode(line)
            except msgspec.MsgspecError as error:
                raise DataError(f"{self.file}: line {number}: not a record of the journal ({error})") from error
            if isinstance(record, _Header) == (header is not None):
                raise DataError(f"{self.file}: line {number}: expected one header, on the first line")
            if isinstance(record, _Header):
                header = record
            else:
                self._take(record, offset, len(line))
            offset += len(line)
        if header is None:
            header = _Header(settings, uuid4().hex)
            line = msgspec.json.encode(header) + b"\n"
            self._store(line)
            _flush_folder(self.file.parent)
            offset = len(line)
        self._same(header.settings, settings)
        self.run = header.run
        self._end = offset
        for sent in self._open.values():
            self._unsure(sent)
        if self._open:
            self.notes.append(
                f"{len(self._open)} requests were under way when the last run was cut off: "
                "whether they were charged is not known, and they are asked again"
            )
        self._open.clear()

    def _take(self, record: Record, offset: int, length: int) -> None:
        place = (record.key, record.turn)
        sent = self._open.pop(place, None)
        if isinstance(record, Sent):
            if sent is not None:  # of a run that was cut off
                self._unsure(sent)
            self._open[place] = record
        elif isinstance(record, Answered):
            self._places[place] = (offset, length)
            self.spent.answers += 1
            self.spent.used += Tokens(record.prompt, record.completion)
            self.spent.estimated += record.estimated
        else:
            self.spent.failed += 1
            if record.unsure and sent is not None:
                self._unsure(sent)

    def _unsure(self, sent: Sent) -> None:
        self.spent.unsure += 1
        self.spent.unsure_tokens += Tokens(sent.prompt, sent.completion)

    def _same(self, found: Settings, asked: Settings) -> None:
        for name in Settings.__struct_fields__:
            if (before := getattr(found, name)) != (now := getattr(asked, name)):
                raise DataError(
                    f"{self.file}: its answers were made with {name} {before!r}, now it is {now!r}; "
                    "go on as before, or begin another folder"
                )


def _flush_folder(folder: Path) -> None:
    """A new file's name is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
