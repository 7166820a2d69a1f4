"""Noun phrases of a caption, by a tagger that can be chosen.

`brill`: Brill's tagger with its lexicon of 94,000 words, from the package textblob, and the chunker below it.
`spacy:MODEL`: the noun chunks of an installed spaCy model, as the paper used.

Either way a phrase is its words in lower case, without the articles, pronouns and numbers that it begins with.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from typing import Any

from training.data.errors import DataError

Tagger = Callable[[str], set[str]]  # caption -> its phrases, each once

# Penn Treebank tags: adjectives and participles may stand before a noun, nouns may stand together.
_BEFORE = frozenset(("JJ", "JJR", "JJS", "VBN", "VBG"))
_NOUN = frozenset(("NN", "NNS", "NNP", "NNPS"))
_LEADING = re.compile(
    r"^(?:(?:an?|the|this|that|these|those|some|any|all|both|each|every|another|other|several|many|few|more|most|its?|"
    r"his|her|their|our|my|your|he|him|she|they|them|we|us|you|who|which|what|there|one|two|three|four|five|six|seven|"
    r"eight|nine|ten|\d[\d,.]*)\s+)+"
)
_ALONE = re.compile(
    r"^(?:it|he|him|she|her|they|them|we|us|you|i|me|who|which|what|that|this|these|those|\W*|[\d\W]+)$"
)


def tagger(name: str) -> Tagger:
    """Raises DataError: no such tagger, or not installed."""
    if name == "brill":
        return _brill()
    kind, _, model = name.partition(":")
    if kind == "spacy" and model:
        return _spacy(model)
    raise DataError(f"--tagger {name}: expected brill or spacy:MODEL")


def chunk(tagged: Iterable[tuple[str, str]]) -> set[str]:
    """Runs of words before nouns and nouns, from (word, Penn tag), each cut behind its last noun."""
    phrases: set[str] = set()
    run: list[str] = []
    end = 0  # of the run, behind its last noun

    def close() -> None:
        nonlocal end
        if end:
            phrases.add(" ".join(run[:end]))
        run.clear()
        end = 0

    for word, tag in tagged:
        tag = tag.partition("-")[0]  # the lexicon adds what an entity is: NNP-LOC
        if tag in _NOUN:
            run.append(word.lower())
            end = len(run)
        elif tag in _BEFORE:
            if end:  # a new phrase begins: "a dog | running past a red house"
                close()
            run.append(word.lower())
        else:
            close()
    close()
    return _plain(phrases)


def _plain(phrases: Iterable[str]) -> set[str]:
    shortened = (_LEADING.sub("", " ".join(phrase.lower().split())) for phrase in phrases)
    return {phrase for phrase in shortened if not _ALONE.match(phrase)}


def _brill() -> Tagger:
    _needs("textblob", "'make install EXTRAS=filter' brings it")
    from textblob.en import tag

    return lambda caption: chunk(tag(caption))


def _spacy(model: str) -> Tagger:
    _needs("spacy", "install it, and the model by 'python -m spacy download'")
    import spacy

    try:
        language: Any = spacy.load(model, exclude=["ner", "lemmatizer"])
    except OSError as error:
        raise DataError(f"--tagger spacy:{model}: {error}") from error
    return lambda caption: _plain(found.text for found in language(caption).noun_chunks)


def _needs(package: str, how: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{package} is not installed: {how}")
