"""Keeps apart what people wrote and what the template wrote, while a template turns both into one text.

A special token can only be recognised by its first and last characters being there. In what people write, these
characters stand as an escape of two private-use characters; so no special token can come of them, not even across two
parts of a message or across a message and the template's own words. A typed escape character is escaped itself, so that
none can be forged. Where an answer begins and ends is marked by escapes too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from model.errors import PromptError

_CODES = 0xE000  # private use: no case, no white space, nothing that a template would look for
_CANDIDATES = "\uf8ff\uf8fe\uf8fd\uf8fc"
_ANSWER_BEGINS, _ANSWER_ENDS = 1, 2  # 0 is the escape character itself, letters follow


@dataclass(frozen=True)
class Written:
    """A stretch of text of people or template, without special tokens of the template."""

    text: str


@dataclass(frozen=True)
class Special:
    """A special token that the template wrote."""

    token: str


@dataclass(frozen=True)
class AnswerBegins:
    """The assistant's words begin here, white space at their edges not counted."""


@dataclass(frozen=True)
class AnswerEnds:
    """They end here."""


Piece = Written | Special | AnswerBegins | AnswerEnds


class Guard:
    """For one tokenizer's special tokens and one template."""

    def __init__(self, special: Collection[str], template: str) -> None:
        self._escape = next((mark for mark in _CANDIDATES if mark not in template), _CANDIDATES[0])
        letters = sorted({letter for token in special for letter in (token[0], token[-1])} - {self._escape})
        hidden = [self._escape, "", "", *letters]
        self._code_of = {letter: self._escape + chr(_CODES + code) for code, letter in enumerate(hidden) if letter}
        self._letter_of = {chr(_CODES + code): letter for code, letter in enumerate(hidden) if letter}
        self._to_hide = re.compile("[" + "".join(map(re.escape, self._code_of)) + "]")
        longest_first = sorted(special, key=len, reverse=True)
        tokens = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._pieces = re.compile(f"({tokens})|{self._escape}(.?)", re.DOTALL)

    def hide(self, text: str) -> str:
        """What somebody wrote, unrecognisable as a special token."""
        return self._to_hide.sub(lambda match: self._code_of[match.group()], text)

    def mark_answer(self, text: str) -> str:
        """The assistant's words, hidden and marked. Their outer white space stays outside: a template may strip it."""
        words = text.strip()
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if words else ""
        begins, ends = (self._escape + chr(_CODES + code) for code in (_ANSWER_BEGINS, _ANSWER_ENDS))
        return f"{before}{begins}{self.hide(words)}{ends}{after}"

    def pieces(self, rendered: str) -> Iterator[Piece]:
        """The rendered text taken apart. Raises PromptError when the template has broken an escape."""
        written: list[str] = []
        at = 0
        for match in self._pieces.finditer(rendered):
            written.append(rendered[at : match.start()])
            at = match.end()
            token, code = match.groups()
            if code in self._letter_of:
                written.append(self._letter_of[code])
                continue
            if text := "".join(written):
                yield Written(text)
            written.clear()
            yield self._piece(token, code)
        if text := "".join([*written, rendered[at:]]):
            yield Written(text)

    def _piece(self, token: str | None, code: str | None) -> Piece:
        if token is not None:
            return Special(token)
        if code == chr(_CODES + _ANSWER_BEGINS):
            return AnswerBegins()
        if code == chr(_CODES + _ANSWER_ENDS):
            return AnswerEnds()
        raise PromptError("The chat template cuts a message's text where it cannot be followed.")
