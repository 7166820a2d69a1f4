"""Reads a file of rows and says what the trainer, or its users, would stumble over."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console

from training.data.check.findings import KINDS, Checked, Finding
from training.data.check.images import Pictures
from training.data.check.twins import Twins
from training.data.errors import DataError
from training.data.rows import Row, RowFile, image_paths, row_bar, shape_fault

if TYPE_CHECKING:
    from training.data.check.tokens import Size, TokenCounter


def check(
    file: Path,
    *,
    image_folder: Path | None = None,
    decode: bool = False,
    counter: TokenCounter | None = None,
    max_tokens: int | None = None,
    allow: Collection[str] = ("duplicate-id",),
    console: Console | None = None,
) -> Checked:
    """Looks at every row. `decode`: images are decoded, not only their headers read.

    With a counter, rows longer than `max_tokens` (the counter's own limit by default) are found. Raises DataError where
    the file cannot be read.
    """
    if unknown := sorted(set(allow) - set(KINDS)):
        raise DataError(f"cannot allow {', '.join(unknown)}: expected {', '.join(KINDS)}")
    if counter is not None and image_folder is None:
        raise DataError("tokens can be counted only where the images are: name their folder")
    limit = None if counter is None else max_tokens or counter.max_tokens
    look = _Look(Checked(frozenset(allow), limit), image_folder, decode, counter)
    with row_bar(file.name, file.stat().st_size if file.is_file() else 0, console) as bar:
        source = RowFile(file, bar.read)
        for row in source:
            bar.row()
            look.checked.rows += 1
            if isinstance(row, Row):
                look.at(source.where(row), row)
            else:
                look.checked.add(Finding("row", row.where, row.reason))
    look.find_twins(source)
    return look.checked


class _Look:
    def __init__(self, checked: Checked, folder: Path | None, decode: bool, counter: TokenCounter | None) -> None:
        self.checked, self._counter = checked, counter
        self._pictures = None if folder is None else Pictures(folder, decode=decode)
        self._said, self._ids = Twins(), Twins()

    def at(self, where: str, row: Row) -> None:
        checked, value = self.checked, row.value
        if fault := shape_fault(value):
            checked.add(Finding("row", where, fault))
            return
        talk, images = value["conversations"], image_paths(value)
        checked.count_source(str(value.get("source", "not said")))
        checked.images += len(images)
        checked.answers += sum(turn["from"] == "gpt" for turn in talk)
        checked.questions.add(sum(turn["from"] == "human" for turn in talk))
        checked.characters.add(sum(len(turn["value"]) for turn in talk))
        self._said.add(row.number, orjson.dumps((images, talk), option=orjson.OPT_SORT_KEYS))
        if "id" in value:
            self._ids.add(row.number, str(value["id"]).encode())
        sizes = self._sizes(where, images)
        if self._counter is not None and sizes is not None:
            self._count_tokens(where, value, sizes)

    def find_twins(self, source: RowFile) -> None:
        both = (("duplicate", self._said, "says the same as"), ("duplicate-id", self._ids, "has the id of"))
        for kind, twins, what in both:
            for number, first in twins.pairs():
                self.checked.add(Finding(kind, source.where(Row(number, None)), f"{what} row {first}"))

    def _sizes(self, where: str, images: list[str]) -> list[Size] | None:
        """Of all images; None where one does not open, or where nobody knows."""
        if self._pictures is None:
            return None
        sizes: list[Size] = []
        for name in images:
            size = self._pictures.size(name)
            if isinstance(size, str):
                self.checked.add(Finding("image", where, f"image {name} {size}"))
                continue
            sizes.append(size)
            self.checked.widths.add(size[0])
            self.checked.heights.add(size[1])
        return sizes if len(sizes) == len(images) else None

    def _count_tokens(self, where: str, row: dict[str, Any], sizes: list[Size]) -> None:
        assert self._counter is not None and self.checked.max_tokens is not None
        try:
            tokens = self._counter.count(row, sizes)
        except DataError as error:
            self.checked.add(Finding("tokens", where, str(error)))
            return
        self.checked.tokens.add(tokens)
        if tokens > self.checked.max_tokens:
            reason = f"{tokens:,} tokens, more than {self.checked.max_tokens:,}"
            self.checked.add(Finding("tokens", where, reason))
