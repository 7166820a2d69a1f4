"""Whether an answer is right: strict rules on plain text, one for each family of questions.

Case, articles and punctuation do not matter. An answer that names the truth and something false beside it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from training.scenes.catalogue import Catalogue
from training.scenes.scene import Family, Turn

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {str(n): str(n) for n in range(11)}
_ARTICLES = frozenset({"a", "an", "the"})
_QUOTED = re.compile(r"[\"“”'‘’*`]([^\"“”'‘’*`]+)[\"“”'‘’*`]")


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces, no articles."""
    tokens = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return " ".join(token for token in tokens if token not in _ARTICLES)


class Mentions:
    """Finds which of many named things a text mentions; longer names win ("palm tree" does not mention a tree)."""

    def __init__(self, names: Mapping[str, Iterable[str]]) -> None:
        """`names` maps a thing to every name that it goes by."""
        self._things: dict[str, str] = {}
        for thing in names:
            self._things.setdefault(normalise(thing), thing)
        for thing, spellings in names.items():
            for spelling in spellings:
                self._things.setdefault(normalise(spelling), thing)
        longest_first = sorted(self._things, key=len, reverse=True)
        self._pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")

    def __call__(self, text: str) -> frozenset[str]:
        return frozenset(self._things[match] for match in self._pattern.findall(normalise(text)))


class Scorer:
    """Scores answers to questions about scenes of one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._kinds = Mentions({kind.name: (kind.plural, *kind.synonyms) for kind in catalogue.kinds})
        self._categories = Mentions(
            {
                name: (phrase, *catalogue.category_synonyms.get(name, ()))
                for name, phrase in catalogue.categories.items()
            }
        )
        self._sides = Mentions({"left": (), "right": ()})

    def right(self, turn: Turn, answer: str) -> bool:
        """Whether `answer` answers `turn`. Raises ValueError for a family that has no scoring rule."""
        match turn.family:
            case Family.NAMING:
                return self._kinds(answer) == frozenset(turn.truth.split("+"))
            case Family.CATEGORY:
                return self._categories(answer) == {turn.truth}
            case Family.YES_NO | Family.CATEGORY_CHECK:
                return normalise(answer).split(" ")[0] == turn.truth
            case Family.LEFT_RIGHT:
                named = self._sides(answer) if turn.truth in ("left", "right") else self._kinds(answer)
                return named == {turn.truth}
            case Family.COUNTING:
                return {_NUMBERS[token] for token in normalise(answer).split() if token in _NUMBERS} == {turn.truth}
            case Family.READING:
                return read_word(answer) == turn.truth
        raise ValueError(f"answers of family {turn.family} are not scored")


def read_word(answer: str) -> str:
    """The word that an answer claims to have read: the quoted one, or the last one of the answer."""
    quoted = _QUOTED.findall(answer)
    tokens = re.sub(r"[^a-z0-9]+", " ", (quoted[0] if quoted else answer).lower()).split()
    return tokens[-1] if tokens and (not quoted or len(tokens) == 1) else ""
