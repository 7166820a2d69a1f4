"""What was asked for, as a grammar in llguidance's own notation, held to the bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.grammar.bounds import Bounds, check_choices, check_expression, check_schema
from worker.grammar.errors import GrammarError

Kind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "tools"]

# Some white space, as people write JSON, but never so much that a weak model fills its answer with it.
_WHITESPACE = r"[ \t]|\r?\n[ \t]{0,32}"
_OPTIONS = {"whitespace_pattern": _WHITESPACE, "whitespace_flexible": True}
_GUIDANCE = "x-guidance"  # where a schema could change the options itself
_MANY_CALLS = 16


@dataclass(frozen=True)
class GrammarSource:
    """A form to be compiled. `text` is what llguidance reads, and what the cache goes by."""

    kind: Kind
    text: str

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self.text.encode())


@dataclass(frozen=True)
class CallFormat:
    """What stands around each call of a tool, and between two."""

    begin: str = ""
    end: str = ""
    between: str = "\n"


def read_structure(kind: Kind, value: Any, bounds: Bounds) -> GrammarSource:
    """Raises GrammarError with the reason."""
    match kind:
        case "json_object":
            return GrammarSource(kind, _of_schema({"type": "object"}))
        case "json_schema":
            return GrammarSource(kind, _of_schema(read_schema(value, bounds)))
        case "regex":
            bounds.check_size(value)
            expression = _without_anchors(value)
            check_expression(expression)
            return GrammarSource(kind, _lark(f"start: {_expression(expression)}"))
        case "choice":
            bounds.check_size("".join(value))
            check_choices(value)
            expression = "|".join(_word_for_word(choice) for choice in dict.fromkeys(value))
            return GrammarSource(kind, _lark(f"start: {_expression(expression)}"))
        case "grammar":
            bounds.check_size(value)
            return GrammarSource(kind, _lark(value))
    raise ValueError(kind)


def read_tools(
    functions: Mapping[str, dict[str, Any] | None], bounds: Bounds, layout: CallFormat, *, several: bool
) -> GrammarSource:
    """Calls of these functions, by the schemas of their arguments: `{"name": "...", "arguments": {...}}` each.

    Raises GrammarError that names the function.
    """
    bounds.check_size(_dumps(dict(functions)))
    rules = []
    for place, (name, schema) in enumerate(functions.items()):
        try:
            arguments = _dumps(_with_options(read_schema(_of_object(schema), bounds)))
        except GrammarError as error:
            raise GrammarError(f"{name}: {error}") from None
        head = _literal(f'{{"name": "{name}", "arguments": ')
        rules.append(f"f{place}: {head} a{place} {_literal('}')}\na{place}: %json {arguments}")
    call = f"{_quoted(layout.begin)}call{_quoted(layout.end, before=True)}".strip()
    more = f" ({_literal(layout.between)} {call}){{0,{_MANY_CALLS - 1}}}" if several else ""
    alternatives = " | ".join(f"f{place}" for place in range(len(rules)))
    return GrammarSource("tools", _lark("\n".join([f"start: {call}{more}", f"call: {alternatives}", *rules])))


def read_schema(value: Any, bounds: Bounds) -> dict[str, Any]:
    """A schema that may stand as JSON text, within the bounds. Raises GrammarError."""
    try:
        text = value if isinstance(value, str) else _dumps(value)
        bounds.check_size(text)
        schema = json.loads(text) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise GrammarError("it is not valid JSON, or it is nested too deep") from None
    if not isinstance(schema, dict):
        raise GrammarError("a JSON schema is an object")
    check_schema(schema)
    return schema


def _of_object(schema: dict[str, Any] | None) -> dict[str, Any]:
    """What a function's arguments must be: an object, whatever else its schema says."""
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return schema if "type" in schema else {"type": "object", **schema}


def _with_options(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, _GUIDANCE: _OPTIONS}


def _of_schema(schema: dict[str, Any]) -> str:
    return _dumps({"grammars": [{"json_schema": _with_options(schema)}]})


def _lark(grammar: str) -> str:
    return _dumps({"grammars": [{"lark_grammar": grammar}]})


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _quoted(text: str, *, before: bool = False) -> str:
    """A literal with a space between it and its neighbour; nothing for no text."""
    if not text:
        return ""
    return f" {_literal(text)}" if before else f"{_literal(text)} "


def _expression(expression: str) -> str:
    """Between slashes, as Lark has it; only slashes and line ends need another form there."""
    escaped = re.sub(r"\\.|[/\n\r]", _escape, expression, flags=re.DOTALL)
    return f"/{escaped}/"


def _escape(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\r": r"\r"}.get(match.group(), match.group())


def _word_for_word(text: str) -> str:
    """An expression that matches this text alone."""
    return re.sub(r"[^\w ]|\t", lambda match: f"\\x{{{ord(match.group()):x}}}", text)


def _without_anchors(expression: str) -> str:
    """An answer is matched as a whole, so anchors at the edges say nothing new."""
    expression = expression.removeprefix("^")
    body = expression.removesuffix("$")
    backslashes = len(body) - len(body.rstrip("\\"))
    return expression if backslashes % 2 else body
