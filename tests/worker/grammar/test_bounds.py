"""What a form may ask for, counted before anything is compiled."""

from __future__ import annotations

import pytest

from worker.grammar.bounds import MAX_EXPANDED, Bounds, check_expression, check_schema
from worker.grammar.errors import GrammarError
from worker.grammar.source import read_schema


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "a+b*c?",
        "(a+)+",
        "a{3",
        "a{,}",
        "[a{9999999}]{2}",
        r"\{99999999}",
        r"\\{3}",
        "[]a{99999999}]b",
        "[^]x{99999999}]{3}",
        "[[:alpha:]{99999999}]",
        r"\p{L}{300}",
        "x{2}{3}",
        f"a{{{MAX_EXPANDED}}}",
        "(a|b){100}(c|d){0,1000}",
        "(" * 60 + ")" * 60,
        ")))",
        "[",
        "\\",
    ],
)
def test_expressions_of_a_bearable_size_pass(expression: str) -> None:
    check_expression(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "a{1,10000000}",
        "a{10000000}",
        "a{10000000,}",
        "a{99999999999999999999999999999999}",
        f"a{{{MAX_EXPANDED + 1}}}",
        "(ab){10001}",
        "(a{200}){101}",
        "a{200}{101}",
        "((a{1,1000}){1,1000}){1,1000}",
        "(?:(?:(?:x{99}){99}){99}){99}",
        "[ab]{20001}",
        r"\p{L}{30000}",
        r"\d{30000}",
        r"\\{20001}",
        "x|(y{30000})",
        "a{10001}b{10001}",
        "(" * 65 + ")" * 65,
    ],
)
def test_expressions_that_force_too_much_are_refused(expression: str) -> None:
    with pytest.raises(GrammarError):
        check_expression(expression)


def test_what_stands_in_data_is_no_keyword() -> None:
    check_schema({"properties": {"$ref": {"const": {"$ref": "http://elsewhere", "minItems": 10**9, "pattern": "("}}}})
    check_schema({"enum": [{"$ref": "http://elsewhere"}], "default": {"$ref": "x"}, "examples": [{"pattern": 5}]})
    for name in ("const", "properties", "pattern", "enum"):
        with pytest.raises(GrammarError, match="nothing is fetched"):
            check_schema({"properties": {name: {"$ref": "http://elsewhere"}}})
        with pytest.raises(GrammarError, match="20000"):
            check_schema({"$defs": {name: {"items": {"pattern": "a{99999}"}}}})


def test_a_schema_may_be_text_and_is_held_to_its_bytes() -> None:
    assert read_schema('{"type": "null"}', Bounds()) == {"type": "null"}
    with pytest.raises(GrammarError, match="it has 16 bytes; at most 15"):
        read_schema('{"type": "null"}', Bounds(max_bytes=15))
    with pytest.raises(GrammarError, match="at most 15"):
        read_schema({"const": "ééééééé"}, Bounds(max_bytes=15))
