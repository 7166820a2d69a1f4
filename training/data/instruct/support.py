"""Whether the things that an answer speaks of are there, as far as captions and boxes tell.

The rule, which is one of words and no more: a text is cut into sentences. A sentence with a word that denies, supposes
or generalises claims nothing; nor does a yes/no question whose answer begins with "no". In every other sentence each
thing of objects.toml that is named, singular or plural, by any of its words, must be named in the item's captions or
be the category of a box, by any word of the same thing. A wider word (animal) is supported by what it takes in (dog).
Things that are not in objects.toml are not checked, nor are words listed there as ambiguous.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from training.data.errors import DataError
from training.data.instruct.answers import Pair
from training.data.instruct.items import Item
from training.data.instruct.wording import PhraseFinder, plain, plural_of

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_YES_NO = re.compile(r"^(is|are|was|were|does|do|did|can|could|has|have|will|would)\b")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    objects: dict[str, list[str]]
    groups: dict[str, list[str]] = {}
    ambiguous: list[str] = []
    unclaimed: list[str] = []
    plurals: dict[str, str] = {}


class SupportCheck:
    """The things of one objects.toml."""

    def __init__(self, file: Path) -> None:
        """Raises DataError."""
        try:
            told = msgspec.convert(tomllib.loads(file.read_text("utf-8")), _File)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: {error}") from error
        self._things: dict[str, set[str]] = {}  # a word's form -> the things that it may name
        self._members = {group: set(members) for group, members in told.groups.items()}
        for group, members in told.groups.items():
            for name in members:
                if name not in told.objects:
                    raise DataError(f"{file}: groups.{group}: {name!r} is not among the objects")
        names = ((thing, (thing, *words)) for thing, words in told.objects.items())
        for thing, words in (*names, *((group, (group,)) for group in told.groups)):
            for form in self._forms(words, told.plurals):
                self._things.setdefault(form, set()).add(thing)
        self._ambiguous = set(self._forms(told.ambiguous, told.plurals))
        self._finder = PhraseFinder(self._things)
        self._unclaimed = PhraseFinder(word for word in told.unclaimed if word != "n't")
        self._contractions = "n't" in told.unclaimed

    def unsupported(self, item: Item, pairs: Sequence[Pair]) -> str | None:
        """The first word of a thing that neither captions nor boxes name; None: there is none."""
        known = self._known(item)
        for sentence in _sentences(pairs):
            if self._claims(sentence):
                for word in self._finder.find(sentence):
                    if word not in self._ambiguous and not self._things[word] & known:
                        return word
        return None

    def _known(self, item: Item) -> set[str]:
        told = plain(". ".join((*item.captions, *(box.category for box in item.boxes))))
        known = {thing for word in self._finder.find(told) for thing in self._things[word]}
        return known | {group for group, members in self._members.items() if members & known}

    def _claims(self, sentence: str) -> bool:
        return not (self._unclaimed.find(sentence) or (self._contractions and "n't" in sentence))

    @staticmethod
    def _forms(words: Iterable[str], irregular: dict[str, str]) -> Iterator[str]:
        for word in map(plain, words):
            yield word
            yield plural_of(word, irregular)


def _sentences(pairs: Sequence[Pair]) -> Iterator[str]:
    for pair in pairs:
        question, answer = plain(pair.question), plain(pair.answer)
        if not (_YES_NO.match(question) and re.match(r"no\b", answer)):
            yield from filter(None, _SENTENCE.split(question))
        yield from filter(None, _SENTENCE.split(answer))
