"""JSON files larger than memory: the values of one array, or the members of one object, one by one.

Only a window of the text is held. It grows to the largest single value, which is bounded.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from training.data.errors import DataError

MAX_VALUE = 256 << 20  # characters of one value
_WINDOW = 1 << 20  # bytes read at a time
_SPACE = " \t\n\r"
_DELIMITERS = tuple(_SPACE + ",:]}")
_CUT_SHORT = 16  # a word or number that the window's end cuts is shorter than this


class Member(NamedTuple):
    """One member of an object."""

    number: int  # from 1
    key: str
    value: Any


def array_values(
    file: Path, key: str | None = None, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of the file's array, or of the one that its object holds under `key`.

    `advance` is told of bytes as they are read. Raises DataError: no such array, or not valid JSON.
    """
    with _open(file) as stream:
        text = _Text(file, stream, advance)
        if key is not None:
            text.enter(key)
        yield from enumerate(text.elements(), 1)
        if key is None:
            text.end()


def object_members(
    file: Path, key: str | None = None, advance: Callable[[int], None] | None = None
) -> Iterator[Member]:
    """The members of the file's object, or of the object that it holds under `key`. Raises DataError."""
    with _open(file) as stream:
        text = _Text(file, stream, advance)
        if key is not None:
            text.enter(key)
        for number, name in enumerate(text.names(), 1):
            yield Member(number, name, text.value())
        if key is None:
            text.end()


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


class _Text:
    """A file's text from a place onward."""

    def __init__(self, file: Path, stream: BinaryIO, advance: Callable[[int], None] | None) -> None:
        self._file, self._stream, self._advance = file, stream, advance
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_constant=_no_number)
        self._window, self._at, self._passed = "", 0, 0
        self._ended = False

    def enter(self, key: str) -> None:
        """Goes to the value of the top-level object's member `key`."""
        found = []
        for name in self.names():
            if name == key:
                return
            found.append(name)
            self._skip()
        raise DataError(f"{self._file}: expected a member {key!r}, found {', '.join(found[:20]) or 'none'}")

    def elements(self) -> Iterator[Any]:
        self._take("[", "an array")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._take(",]", "a comma or the array's end") == "]":
                return

    def names(self) -> Iterator[str]:
        """The names of an object's members; the caller takes each value before the next name."""
        self._take("{", "an object")
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            name = self.value()
            if not isinstance(name, str):
                raise self._broken("a member's name must be text")
            self._take(":", "a colon")
            yield name
            if self._take(",}", "a comma or the object's end") == "}":
                return

    def value(self) -> Any:
        """The next value, whole."""
        self._peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not (
                    error.msg.startswith("Unterminated") or error.pos >= len(self._window) - _CUT_SHORT
                ):
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error)) from error
            else:
                if self._ended or self._is_whole(end):
                    self._at = end
                    return value
            if len(self._window) - self._at > MAX_VALUE:
                raise self._broken(f"a value of more than {MAX_VALUE >> 20} MiB, or one that never ends")
            self._more()

    def _is_whole(self, end: int) -> bool:
        """Whether the value cannot go on behind the window: "0." is no number yet."""
        behind = self._window[end : end + _CUT_SHORT]
        return len(behind) == _CUT_SHORT or behind[:1] in _DELIMITERS

    def end(self) -> None:
        """Nothing may follow the value."""
        if self._peek():
            raise self._broken("text behind the value's end")

    def _skip(self) -> None:
        """Passes over a value without holding more than one of its parts."""
        match self._peek():
            case "[":
                for _ in self.elements():
                    pass
            case "{":
                for _ in self.names():
                    self.value()
            case _:
                self.value()

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if self._ended:
                return ""
            self._more()

    def _take(self, one_of: str, expected: str) -> str:
        found = self._peek()
        if not found or found not in one_of:
            raise self._broken(
                f"expected {expected}, found {found!r}" if found else f"expected {expected}, found the end"
            )
        self._at += 1
        return found

    def _more(self) -> None:
        """Reads on; at least as much again as is held, so that a long value is tried only a few times."""
        data = self._stream.read(max(_WINDOW, len(self._window) - self._at))
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise DataError(f"{self._file}: not UTF-8 text ({error.reason})") from error
        self._window = self._window[self._at :] + text
        self._passed += self._at
        self._at = 0
        if self._advance is not None:
            self._advance(len(data))

    def _broken(self, reason: str, at: int | None = None) -> DataError:
        place = self._passed + (self._at if at is None else at)
        return DataError(f"{self._file}: not valid JSON at character {place} ({reason})")
