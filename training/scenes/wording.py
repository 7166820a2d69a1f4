"""English grammar for the names of things."""

from __future__ import annotations


def with_article(noun: str) -> str:
    """ "a cat", "an owl"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun
