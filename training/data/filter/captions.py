"""Files of captions, read one by one: rows with a caption, rows of the conversation format, or CC3M's own TSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from training.data.errors import DataError
from training.data.rows import BadRow, RowFile

_MAX_LINE = 1 << 20  # bytes of a TSV line


class Caption(NamedTuple):
    """A row and its caption."""

    text: str
    row: dict[str, Any]


class CaptionFile:
    """Each iteration reads the file anew, in the same order."""

    def __init__(self, file: Path, field: str = "caption", advance: Callable[[int], None] | None = None) -> None:
        """`field` holds the caption of a row without conversations. Raises DataError."""
        self.file = file
        self._field = field
        self._advance = advance or (lambda _: None)
        self._rows = None if file.suffix == ".tsv" else RowFile(file, advance)
        try:
            self.bytes = file.stat().st_size
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error

    def __iter__(self) -> Iterator[Caption | BadRow]:
        """Raises DataError where the rest of the file cannot be read."""
        return self._lines() if self._rows is None else self._of_rows(self._rows)

    def _of_rows(self, rows: RowFile) -> Iterator[Caption | BadRow]:
        for row in rows:
            if isinstance(row, BadRow):
                yield row
            elif (text := self._caption(row.value)) is None:
                yield BadRow(rows.where(row), f"expected a caption in {self._field!r} or a turn of gpt", row.value)
            else:
                yield Caption(text, row.value)

    def _lines(self) -> Iterator[Caption | BadRow]:
        """CC3M: caption, tab, address."""
        number = 0
        with self.file.open("rb") as stream:
            while line := stream.readline(_MAX_LINE):
                number += 1
                self._advance(len(line))
                where = f"{self.file}: line {number}"
                try:
                    cells = line.decode("utf-8").rstrip("\r\n").split("\t")
                except UnicodeDecodeError as error:
                    yield BadRow(where, f"not UTF-8 text ({error.reason})", line.decode("utf-8", "backslashreplace"))
                    continue
                if len(cells) != 2 or not cells[0].strip():
                    yield BadRow(where, f"expected a caption, a tab and an address, found {len(cells)} columns", cells)
                else:
                    yield Caption(cells[0], {"caption": cells[0], "url": cells[1]})

    def _caption(self, row: Any) -> str | None:
        if not isinstance(row, dict):
            return None
        text = row.get(self._field)
        turns = row.get("conversations")
        if text is None and isinstance(turns, list):
            answers = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"]
            text = answers[-1] if answers else None
        return text if isinstance(text, str) and text.strip() else None
