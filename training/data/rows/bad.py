"""Rows that cannot be used: the first stops the run, or all go to a file that says why. None is dropped in silence."""

from __future__ import annotations

import os
from collections import Counter
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import orjson

from training.data.errors import DataError


class OnBad(StrEnum):
    STOP = "stop"
    REJECT = "reject"


class BadRow(NamedTuple):
    """A row, or an entry of a published file, that cannot be used."""

    where: str  # file and row
    reason: str
    row: Any  # as it was read


class Rejects:
    """What becomes of bad rows. A context manager: the file stands when the run ends well, and only if it holds any."""

    def __init__(self, on_bad: OnBad, file: Path, *, keep: bool = True) -> None:
        """`file` takes bad rows as `{where, reason, row}`, one a line, under OnBad.REJECT; without `keep` they are
        counted only."""
        self.file = file
        self.reasons: Counter[str] = Counter()
        self._on_bad, self._keep = on_bad, keep
        self._part = file.with_name(file.name + ".part")
        self._stream: BinaryIO | None = None

    @property
    def count(self) -> int:
        return self.reasons.total()

    def add(self, bad: BadRow) -> None:
        """Raises DataError under OnBad.STOP."""
        if self._on_bad is OnBad.STOP:
            raise DataError(f"{bad.where}: {bad.reason}")
        self.reasons[bad.reason] += 1
        if not self._keep:
            return
        if self._stream is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._part.open("wb")
        entry = {"where": bad.where, "reason": bad.reason, "row": bad.row}
        self._stream.write(orjson.dumps(entry, default=repr, option=orjson.OPT_NON_STR_KEYS) + b"\n")

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None:
            if error is None and self._keep:
                self.file.unlink(missing_ok=True)  # of an earlier run, whose rows were replaced too
            return
        self._stream.close()
        if error is None:
            os.replace(self._part, self.file)
        else:
            self._part.unlink()
