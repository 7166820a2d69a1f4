"""Rows into a file that appears whole, when all of them are written, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from training.data.errors import DataError
from training.data.rows.reading import SUFFIXES, pyarrow_parquet

_GROUP = 4096  # rows of a Parquet file written together


class RowWriter:
    """A context manager. The name says the kind: .json, .jsonl or .parquet."""

    def __init__(self, file: Path) -> None:
        """Raises DataError: a name of no known kind."""
        if file.suffix not in SUFFIXES:
            raise DataError(f"{file}: expected a name that ends with one of {', '.join(SUFFIXES)}")
        self.file = file
        self.rows = 0
        self._part = file.with_name(file.name + ".part")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._sink: _Text | _Parquet = _Parquet(self._part) if file.suffix == ".parquet" else _Text(self._part, file)

    def write(self, row: bytes) -> None:
        """`row` is one JSON object without line ends, as orjson writes it."""
        self._sink.write(row, first=self.rows == 0)
        self.rows += 1

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sink.close()
            if error is None:
                os.replace(self._part, self.file)
        finally:
            self._part.unlink(missing_ok=True)


class _Text:
    def __init__(self, part: Path, file: Path) -> None:
        self._stream = part.open("wb", buffering=1 << 20)
        self._list = file.suffix == ".json"
        if self._list:
            self._stream.write(b"[")

    def write(self, row: bytes, *, first: bool) -> None:
        if self._list:
            self._stream.write(b"\n" if first else b",\n")
            self._stream.write(row)
        else:
            self._stream.write(row)
            self._stream.write(b"\n")

    def close(self) -> None:
        if self._list:
            self._stream.write(b"\n]\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()


class _Parquet:
    """Columns are id, image (a list), conversations and source; a row's other members go as JSON into `more`."""

    def __init__(self, part: Path) -> None:
        parquet = pyarrow_parquet()
        import pyarrow

        turn = pyarrow.struct([("from", pyarrow.string()), ("value", pyarrow.string())])
        self._schema = pyarrow.schema(
            [
                ("id", pyarrow.string()),
                ("image", pyarrow.list_(pyarrow.string())),
                ("conversations", pyarrow.list_(turn)),
                ("source", pyarrow.string()),
                ("more", pyarrow.string()),
            ]
        )
        self._arrow = pyarrow
        self._writer = parquet.ParquetWriter(part, self._schema, compression="zstd")
        self._waiting: list[dict[str, Any]] = []

    def write(self, row: bytes, *, first: bool) -> None:
        value = orjson.loads(row)
        image = value.pop("image", None)
        columns = {
            "id": str(value.pop("id", "")),
            "image": [image] if isinstance(image, str) else image,
            "conversations": value.pop("conversations"),
            "source": value.pop("source", None),
        }
        self._waiting.append({**columns, "more": orjson.dumps(value).decode() if value else None})
        if len(self._waiting) == _GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(self._arrow.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting.clear()
