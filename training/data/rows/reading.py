"""Files of rows, read one by one: a JSON list, one object a line, or Parquet."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from training.data.errors import DataError
from training.data.rows.bad import BadRow
from training.data.rows.json_values import array_values

SUFFIXES = (".json", ".jsonl", ".parquet")

_MAX_LINE = 64 << 20  # bytes
_BATCH = 256  # rows of a Parquet file held at a time


class Row(NamedTuple):
    """One row as it was read. `number` counts from 1; in a .jsonl file it is the line."""

    number: int
    value: Any


class RowFile:
    """A file of rows; each iteration reads it anew."""

    def __init__(self, file: Path, advance: Callable[[int], None] | None = None) -> None:
        """`advance` is told of bytes as they are read. Raises DataError: no such file, or of no known kind."""
        if file.suffix not in SUFFIXES:
            raise DataError(f"{file}: expected a name that ends with one of {', '.join(SUFFIXES)}")
        try:
            self.bytes = file.stat().st_size
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error
        self.file = file
        self._advance = advance or (lambda _: None)

    def where(self, row: Row) -> str:
        """Names the row in messages."""
        return f"{self.file}: {'line' if self.file.suffix == '.jsonl' else 'row'} {row.number}"

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Raises DataError where the rest of the file cannot be read."""
        match self.file.suffix:
            case ".json":
                return (Row(number, value) for number, value in array_values(self.file, advance=self._advance))
            case ".jsonl":
                return self._lines()
            case _:
                return self._parquet()

    def _lines(self) -> Iterator[Row | BadRow]:
        number = 0
        with self.file.open("rb") as stream:
            while line := stream.readline(_MAX_LINE):
                number += 1
                self._advance(len(line))
                if len(line) == _MAX_LINE and not line.endswith(b"\n"):
                    raise DataError(f"{self.file}: line {number}: longer than {_MAX_LINE >> 20} MiB")
                if line.isspace():
                    continue
                try:
                    value = orjson.loads(line)
                except ValueError as error:
                    text = line.decode("utf-8", "backslashreplace").rstrip("\n")
                    yield BadRow(f"{self.file}: line {number}", f"not valid JSON ({error})", text)
                else:
                    yield Row(number, value)

    def _parquet(self) -> Iterator[Row | BadRow]:
        parquet = pyarrow_parquet()
        import pyarrow

        number = 0
        try:
            with parquet.ParquetFile(self.file) as table:
                rows = max(1, table.metadata.num_rows)
                for batch in table.iter_batches(batch_size=_BATCH):
                    for value in batch.to_pylist():
                        number += 1
                        yield self._table_row(number, value)
                    self._advance(self.bytes * batch.num_rows // rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.file}: not a readable Parquet file ({error})") from error

    def _table_row(self, number: int, columns: dict[str, Any]) -> Row | BadRow:
        """A lone image is a list of one in a column of lists; absent members are nulls; `more` is JSON (ours)."""
        value = {key: member for key, member in columns.items() if member is not None}
        image = value.get("image")
        if isinstance(image, list) and len(image) == 1:
            value["image"] = image[0]
        elif isinstance(image, dict):
            where = f"{self.file}: row {number}"
            return BadRow(where, "the image is embedded: expected a path", {**value, "image": image.get("path")})
        more = value.pop("more", None)
        return Row(number, {**value, **orjson.loads(more)} if isinstance(more, str) else value)


def pyarrow_parquet() -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError("Parquet files need pyarrow: 'make install EXTRAS=data' brings it")
    import pyarrow.parquet

    return pyarrow.parquet
