"""Reads what the model wrote: `Question:` / `===` / `Answer:` blocks, or a description alone. Strict, and says why.

Knows nothing of what the words mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from training.data.instruct.kinds import Kind

MOST_PAIRS = 12  # of a conversation
SHORTEST_DETAIL = 20  # words
LONGEST_ANSWER = 20_000  # characters of one answer

_RULE = re.compile(r"^[ \t]*===[ \t]*$", re.MULTILINE)
_HEAD = re.compile(r"(Question|Answer)[ \t]*:[ \t]*", re.IGNORECASE)
_STRAY = re.compile(r"^[ \t]*(?:Question|Answer)[ \t]*:|^[ \t]*={3,}[ \t]*$|^[ \t]*```", re.IGNORECASE | re.MULTILINE)
_FORM = "expected 'Question:' and 'Answer:' blocks in turn, with a line === between them"


class AnswerFault(ValueError):
    """An answer that cannot be used: `code` to count by, the message in words that the model can be told."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Pair:
    """A question and its answer. Of a description the question is empty: it is drawn from paraphrases."""

    question: str
    answer: str


def parse_answer(kind: Kind, text: str) -> tuple[Pair, ...]:
    """Raises AnswerFault."""
    if not text.strip():
        raise AnswerFault("empty", "it is empty")
    if "<image>" in text:
        raise AnswerFault("form", "it holds the word <image>, which marks a picture's place")
    pairs = (_description(text),) if kind is Kind.DETAIL else _pairs(text)
    if kind is Kind.REASONING and len(pairs) != 1:
        raise AnswerFault("form", f"expected one question and its answer, found {len(pairs)}")
    if len(pairs) > MOST_PAIRS:
        raise AnswerFault("form", f"expected at most {MOST_PAIRS} questions, found {len(pairs)}")
    for pair in pairs:
        if max(len(pair.question), len(pair.answer)) > LONGEST_ANSWER:
            raise AnswerFault("length", f"a part is longer than {LONGEST_ANSWER} characters")
    return pairs


def _description(text: str) -> Pair:
    if found := _STRAY.search(text):
        raise AnswerFault("form", f"expected the description alone, found {found.group().strip()!r}")
    if (words := len(text.split())) < SHORTEST_DETAIL:
        raise AnswerFault("length", f"expected a description of at least {SHORTEST_DETAIL} words, found {words}")
    return Pair("", text.strip())


def _pairs(text: str) -> tuple[Pair, ...]:
    blocks = [block.strip() for block in _RULE.split(text)]
    while blocks and not blocks[-1]:
        blocks.pop()
    texts = []
    for number, block in enumerate(blocks):
        expected = ("Question", "Answer")[number % 2]
        head = _HEAD.match(block)
        if head is None or head.group(1).lower() != expected.lower():
            raise AnswerFault("form", f"{_FORM}; block {number + 1} does not begin with '{expected}:'")
        body = block[head.end() :].strip()
        if not body:
            raise AnswerFault("form", f"block {number + 1} ({expected}) is empty")
        if found := _STRAY.search(body):
            raise AnswerFault("form", f"{_FORM}; block {number + 1} holds {found.group().strip()!r}")
        texts.append(body)
    if len(texts) % 2:
        raise AnswerFault("form", f"{_FORM}; the last question has no answer")
    return tuple(Pair(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))
