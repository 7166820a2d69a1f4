"""From the text of an answer to the calls of tools in it, as the text comes.

`ForcedCalls` knows the form that `worker.grammar.source.read_tools` leaves the model no choice about; `TaggedCalls` the
form that models of the Hermes and Qwen families write by themselves, where anything may stand around the calls and a
block may turn out to be no call at all.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

_BEGIN, _END = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\{"name": "([a-zA-Z0-9_-]{1,64})", "arguments": ')


@dataclass(frozen=True)
class Words:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call of `name`; the next arguments are its own."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


CallEvent = Words | CallBegins | CallArguments


class CallReader(Protocol):
    """Of one answer."""

    @property
    def calls(self) -> int:
        """How many have begun."""

    def feed(self, text: str, *, last: bool) -> list[CallEvent]:
        """Takes more text; `last` when there is no more."""


class ForcedCalls:
    """The grammar's own form: nothing but calls, arguments given out as they come."""

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""  # what stands between calls
        self._object: _ObjectScanner | None = None

    def feed(self, text: str, *, last: bool) -> list[CallEvent]:
        events: list[CallEvent] = []
        while text:
            if self._object is not None:
                size = self._object.inside(text)
                events.append(CallArguments(self.calls - 1, text[:size]))
                text = text[size:]
                if self._object.closed:
                    self._object = None
                continue
            self._held, text = self._held + text, ""
            if head := _HEAD.search(self._held):
                text, self._held = self._held[head.end() :], ""
                events.append(CallBegins(self.calls, new_call_id(), head[1]))
                self.calls += 1
                self._object = _ObjectScanner()
        return [event for event in events if not isinstance(event, CallArguments) or event.text]


class _ObjectScanner:
    """Finds the end of a JSON object in text that arrives in pieces."""

    def __init__(self) -> None:
        self.closed = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def inside(self, text: str) -> int:
        """How many of the characters belong to the object."""
        for place, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = letter == "\\"
                self._in_string = letter != '"'
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    self.closed = True
                    return place + 1
        return len(text)


class TaggedCalls:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; each block is given out once it is whole."""

    def __init__(self, names: Collection[str], *, several: bool) -> None:
        self.calls = 0
        self._names = names
        self._most = None if several else 1
        self._held = ""
        self._after_call = False  # white space between calls is nobody's words

    def feed(self, text: str, *, last: bool) -> list[CallEvent]:
        self._held += text
        events: list[CallEvent] = []
        while self._held:
            begin = self._held.find(_BEGIN)
            if begin != 0:
                size = begin if begin > 0 else len(self._held) - (0 if last else _overlap(self._held, _BEGIN))
                if not size:
                    break
                self._say(self._held[:size], events)
                self._held = self._held[size:]
                continue
            end = self._held.find(_END)
            if end < 0 and not last:
                break
            size = end + len(_END) if end >= 0 else len(self._held)
            block, self._held = self._held[:size], self._held[size:]
            self._read(block, events)
        return events

    def _read(self, block: str, events: list[CallEvent]) -> None:
        call = _parse(block.removeprefix(_BEGIN).removesuffix(_END), self._names)
        if call is None:
            self._say(block, events)
            return
        self._after_call = True
        if self._most is not None and self.calls >= self._most:
            return
        name, arguments = call
        events += [CallBegins(self.calls, new_call_id(), name), CallArguments(self.calls, arguments)]
        self.calls += 1

    def _say(self, text: str, events: list[CallEvent]) -> None:
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            events.append(Words(text))


def _parse(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """(name, arguments as JSON) of a block that is a call of a known function."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or call.get("name") not in names:
        return None
    arguments = call.get("arguments", {})
    return (call["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters could be the beginning of `mark`."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


def new_call_id() -> str:
    """In OpenAI's form."""
    return f"call_{uuid.uuid4().hex[:24]}"
