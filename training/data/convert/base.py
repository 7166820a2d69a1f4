"""What a converter is: the files that it reads, and what their entries say of pictures.

A format's own file reads entries and nothing else. What becomes of them, conversations, files and reports, is the same
for all formats and lives beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from training.data.errors import DataError
from training.data.rows import BadRow, Row, RowFile, array_values, object_members

_T = TypeVar("_T")


class Exchange(NamedTuple):
    """A question and its answer. `format` is the response-format prompt, said behind the question."""

    question: str
    answer: str
    format: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """What one entry says. Items of one `id` become one conversation where the converter merges."""

    where: str
    id: str
    image: str | None  # below the converter's folder of images; None: text only
    exchanges: tuple[Exchange, ...]
    system: str = ""


class Passed(NamedTuple):
    """An entry that is left out on purpose, such as one of another split."""

    reason: str


Said = Item | BadRow | Passed


class Boxes(StrEnum):
    PADDED = "padded"  # coordinates after padding to a square, as LLaVA-1.5 sees the picture
    PLAIN = "plain"  # coordinates in the picture itself


class CocoYear(StrEnum):
    """Of the image files' names: COCO_train2014_000000000009.jpg or 000000000009.jpg."""

    Y2014 = "2014"
    Y2017 = "2017"


@dataclass(frozen=True)
class Settings:
    """What a user may choose. None: as the converter has it."""

    images: str | None = None  # the folder that is put before image names
    split: str = "train"  # where entries name their split
    seed: int = 0
    boxes: Boxes = Boxes.PADDED
    coco: CocoYear = CocoYear.Y2017
    draw: int | None = None
    turns: int | None = None
    every: bool | None = None

    def chance(self, *names: object) -> Random:
        """Random numbers that depend on the seed and the names alone."""
        return Random("/".join(map(str, (self.seed, *names))))

    def coco_name(self, image_id: int) -> str:
        return f"COCO_train2014_{image_id:012d}.jpg" if self.coco is CocoYear.Y2014 else f"{image_id:012d}.jpg"


class FieldError(ValueError):
    """An entry's field is missing or of another kind; the message names it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a published file, and its fields by kind. Reading one that is not there raises FieldError."""

    where: str
    value: Any

    def field(self, name: str) -> Any:
        if not isinstance(self.value, dict):
            raise FieldError(f"expected an object, found {type(self.value).__name__}")
        if name not in self.value:
            raise FieldError(f"no {name}")
        return self.value[name]

    def text(self, name: str) -> str:
        found = self.field(name)
        if not isinstance(found, str):
            raise FieldError(f"{name}: expected text, found {type(found).__name__}")
        return found.strip()

    def name(self, name: str) -> str:
        """Text or a whole number, as text: ids are written as either."""
        found = self.field(name)
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            raise FieldError(f"{name}: expected text or a whole number, found {found!r}")
        return str(found)

    def integer(self, name: str) -> int:
        found = self.field(name)
        if isinstance(found, bool) or not isinstance(found, int):
            raise FieldError(f"{name}: expected a whole number, found {type(found).__name__}")
        return found

    def numbers(self, name: str, count: int) -> list[float]:
        found = self.field(name)
        whole = isinstance(found, list) and len(found) == count
        if not whole or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in found):
            raise FieldError(f"{name}: expected {count} numbers, found {str(found)[:60]}")
        return [float(number) for number in found]

    def texts(self, name: str) -> list[str]:
        found = self.field(name)
        if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
            raise FieldError(f"{name}: expected a list of texts, found {str(found)[:60]}")
        return [text.strip() for text in found]

    def parts(self, name: str) -> list[Entry]:
        """The entries of a list."""
        found = self.field(name)
        if not isinstance(found, list):
            raise FieldError(f"{name}: expected a list, found {type(found).__name__}")
        return [Entry(f"{self.where}: {name} {number}", value) for number, value in enumerate(found, 1)]

    def need(self, reader: Callable[[Entry], _T]) -> _T:
        """What the reader makes of an entry without which others cannot be read. Raises DataError."""
        try:
            return reader(self)
        except FieldError as error:
            raise DataError(f"{self.where}: {error}") from error

    def read(self, reader: Callable[[Entry], Item | Passed]) -> Said:
        """What the reader makes of the entry, or why it cannot."""
        try:
            return reader(self)
        except FieldError as error:
            return BadRow(self.where, str(error), self.value)


@dataclass(frozen=True)
class Role:
    """A file that a converter reads: what it is called on the command line, and what it is called where published."""

    name: str
    published: str
    optional: bool = False


@dataclass(frozen=True)
class Sources:
    """The files that were given, by role. `advance` is told of bytes as they are read."""

    files: Mapping[str, Path]
    advance: Callable[[int], None] = field(default=lambda _: None)

    def __contains__(self, role: str) -> bool:
        return role in self.files

    def array(self, role: str, key: str | None = None) -> Iterator[Entry]:
        """The values of the file's array, or of the one under `key`."""
        file = self.files[role]
        prefix = f"{file}: {key or 'row'} "
        return (Entry(prefix + str(number), value) for number, value in array_values(file, key, self.advance))

    def members(self, role: str, key: str | None = None) -> Iterator[tuple[str, Entry]]:
        """(name, value) of the file's object, or of the one under `key`."""
        file = self.files[role]
        for _, name, value in object_members(file, key, self.advance):
            yield name, Entry(f"{file}: {name}", value)

    def rows(self, role: str) -> Iterator[Entry | BadRow]:
        """The rows of a .json, .jsonl or .parquet file."""
        rows = RowFile(self.files[role], self.advance)
        return (Entry(rows.where(row), row.value) if isinstance(row, Row) else row for row in rows)

    def folder(self, role: str, suffix: str) -> list[Path]:
        """The folder's files of that name's end, sorted. Raises DataError: none."""
        folder = self.files[role]
        found = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
        if not found:
            raise DataError(f"{folder}: expected a folder with files *{suffix}")
        return found


@dataclass(frozen=True)
class Converter:
    """One published format. `draw`: most exchanges of a picture, drawn by seed; `turns`: most in one conversation."""

    name: str
    about: str
    roles: tuple[Role, ...]
    images: str
    read: Callable[[Sources, Settings], Iterator[Said]]
    merges: bool = False  # items of one id become one conversation
    draw: int | None = None
    turns: int | None = None
    every: bool = False  # the response-format prompt stands behind every question, else behind the first
    text_only: bool = False
