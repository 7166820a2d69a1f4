"""Records put aside by bucket in temporary files and taken back bucket by bucket, so that memory stays flat."""

from __future__ import annotations

import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_LENGTH = struct.Struct("<I")
_HELD = 48 << 20  # bytes that wait in memory before they go to disk


class Spill:
    """A context manager; `folder` is on the disk that shall take the files, which go when it ends.

    Without a folder they lie where the system keeps temporary files.
    """

    def __init__(self, folder: Path | None) -> None:
        self._home = tempfile.TemporaryDirectory(prefix=".tephra-data-", dir=folder)
        self._waiting: defaultdict[int, list[bytes]] = defaultdict(list)
        self._held = 0
        self._written: set[int] = set()

    def add(self, bucket: int, record: bytes) -> None:
        self._waiting[bucket] += (_LENGTH.pack(len(record)), record)
        self._held += len(record) + 96  # what two small objects in a list cost besides
        if self._held > _HELD:
            self._flush()

    def buckets(self) -> Iterator[list[bytes]]:
        """Each bucket's records in the order in which they came, buckets by number."""
        self._flush()
        for bucket in sorted(self._written):
            file = self._file(bucket)
            data = file.read_bytes()
            file.unlink()
            records, at = [], 0
            while at < len(data):
                (length,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size
                records.append(data[at : at + length])
                at += length
            yield records

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._home.cleanup()

    def _flush(self) -> None:
        for bucket, pieces in self._waiting.items():
            with self._file(bucket).open("ab") as stream:
                stream.write(b"".join(pieces))
            self._written.add(bucket)
        self._waiting.clear()
        self._held = 0

    def _file(self, bucket: int) -> Path:
        return Path(self._home.name) / f"{bucket:08x}"
