"""How large a form may be. Everything here is counted without compiling anything, in time linear in the text.

llguidance builds its automata while it runs, under limits of its own; what it does not bound is how long a text a form
can force (`a{1000000}`), nor how deep its own recursion goes. So repeats, nesting and lengths are counted here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.grammar.errors import GrammarError

MAX_EXPANDED = 20_000  # characters of an expression once its counted repeats are written out
MAX_GROUPS = 64  # nested groups of an expression
MAX_NESTING = 64  # objects and lists within each other in a schema
MAX_PROPERTIES = 400  # of one object: in which order they come is the parser's work at every step
MAX_COUNT = 1_000_000  # for minLength, maxItems and their kind
MAX_LITERAL = 4096  # characters of one constant of a schema, or of one choice

_COUNTS = frozenset(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"))
_LITERALS = frozenset(("const", "enum", "default", "examples"))  # what stands in them is data, not schema
# What stands in them is schemas by names of the author's own, which mean nothing even where a keyword has the same.
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_Place = Literal["schema", "names", "data"]
_REPEAT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_BRACED_ESCAPE = re.compile(r"\\[pPxuUN]\{[^}]*\}")


@dataclass(frozen=True)
class Bounds:
    """What an operator may set."""

    max_bytes: int = 65_536  # of a schema, expression, grammar, list of choices or all tools

    def check_size(self, text: str) -> None:
        size = len(text.encode("utf-8", "replace"))
        if size > self.max_bytes:
            raise GrammarError(f"it has {size} bytes; at most {self.max_bytes} are accepted")


def check_choices(choices: Sequence[str]) -> None:
    """Raises GrammarError."""
    for choice in choices:
        if not choice:
            raise GrammarError("a choice must not be empty")
        if len(choice) > MAX_LITERAL:
            raise GrammarError(f"a choice has {len(choice)} characters; at most {MAX_LITERAL} are accepted")


def check_expression(expression: str) -> None:
    """Counts what a regular expression can force. Raises GrammarError; whether it can be read is not asked here."""
    sizes, last = [0], 0  # of the groups that are open; of what a repeat would repeat
    at = 0
    while at < len(expression):
        letter = expression[at]
        if letter == "\\":
            braced = _BRACED_ESCAPE.match(expression, at)
            at = braced.end() if braced else at + 2
            last = 1
        elif letter == "[":
            at, last = _after_class(expression, at), 1
        elif letter == "(":
            if len(sizes) > MAX_GROUPS:
                raise GrammarError(f"its groups are nested more than {MAX_GROUPS} deep")
            sizes.append(0)
            at, last = at + 1, 0
            continue
        elif letter == ")":
            last = sizes.pop() if len(sizes) > 1 else 0
            at += 1
        elif letter == "{" and (repeat := _REPEAT.match(expression, at)):
            last *= _times(*repeat.groups())
            at = repeat.end()
        else:
            at += 1
            if letter in "*+?|":
                continue
            last = 1
        # A repeat stands behind what it repeats: that is counted once all its repeats are read.
        if not expression.startswith("{", at) or not _REPEAT.match(expression, at):
            sizes[-1] += last
        if max(last, sizes[-1]) > MAX_EXPANDED:
            raise GrammarError(
                f"with its repeats written out it is longer than the {MAX_EXPANDED} characters that are accepted"
            )


def _times(least: str, comma: str, most: str) -> int:
    return max(int((least or "0")[:12]) + bool(comma), int((most or "0")[:12]), 1)


def _after_class(expression: str, at: int) -> int:
    """Behind the bracket that closes the class at `at`, or the end of the text."""
    depth, first = 0, True
    while at < len(expression):
        letter = expression[at]
        at += 1
        if letter == "\\":
            at += 1
        elif letter == "[":
            depth += 1
            if expression.startswith("^", at):
                at += 1
            first = True
            continue
        elif letter == "]" and not first:
            depth -= 1
            if not depth:
                return at
        first = False
    return at


def check_schema(schema: Any) -> None:
    """Raises GrammarError that names the keyword."""
    for key, value in _keywords(schema):
        if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
            raise GrammarError("a $ref must lead to a place in the schema itself (#/...); nothing is fetched")
        if key in _COUNTS and _number(value) > MAX_COUNT:
            raise GrammarError(f"{key}: at most {MAX_COUNT} is accepted")
        if key == "properties" and isinstance(value, dict) and len(value) > MAX_PROPERTIES:
            raise GrammarError(f"properties: {len(value)} of one object; at most {MAX_PROPERTIES} are accepted")
        if key == "pattern" and isinstance(value, str):
            _check_pattern(key, value)
        if key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_pattern(key, pattern)


def _check_pattern(key: str, pattern: str) -> None:
    try:
        check_expression(pattern)
    except GrammarError as error:
        raise GrammarError(f"{key}: {error}") from None


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every keyword with its value, wherever it stands. Raises GrammarError beyond the nesting or a length."""
    pending: list[tuple[Any, int, _Place]] = [(schema, 0, "schema")]
    while pending:
        value, depth, place = pending.pop()
        if depth > MAX_NESTING:
            raise GrammarError(f"it is nested more than {MAX_NESTING} deep")
        if isinstance(value, dict):
            for key, part in value.items():
                _check_length(key)
                if place == "schema":
                    yield key, part
                pending.append((part, depth + 1, _place_below(place, key)))
        elif isinstance(value, list):
            pending += [(part, depth + 1, place) for part in value]
        elif place == "data" and isinstance(value, str):
            _check_length(value)


def _place_below(place: _Place, key: str) -> _Place:
    if place == "schema":
        return "data" if key in _LITERALS else "names" if key in _NAMED else "schema"
    return "data" if place == "data" else "schema"


def _check_length(text: str) -> None:
    if len(text) > MAX_LITERAL:
        raise GrammarError(f"it holds a constant of {len(text)} characters; at most {MAX_LITERAL} are accepted")
