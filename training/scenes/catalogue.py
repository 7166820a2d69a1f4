"""The kinds of thing that scenes can show, read from kinds.toml.

It knows names, categories, grammar and where cut-outs come from; it opens no picture.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from training.scenes.shapes import COLOURS, SHAPES
from training.scenes.wording import with_article

KINDS_FILE = Path(__file__).with_name("kinds.toml")

_IRREGULAR_PLURALS = {
    "sheep": "sheep",
    "fish": "fish",
    "butterfly": "butterflies",
    "strawberry": "strawberries",
    "leaf": "leaves",
    "die": "dice",
}


@dataclass(frozen=True)
class Kind:
    """One everyday kind. `noun` is "count", "plural" (scissors) or "mass" (corn)."""

    name: str
    category: str
    noun: str = "count"
    emoji: tuple[str, ...] = ()
    clipart: tuple[str, ...] = ()
    drawn: tuple[tuple[str, str], ...] = ()  # (shape, colour) pairs: cut-outs that need no package
    synonyms: tuple[str, ...] = ()
    similar: tuple[str, ...] = ()

    @property
    def countable(self) -> bool:
        return self.noun == "count"

    @property
    def indefinite(self) -> str:
        """ "a cat", "an owl", "scissors", "corn"."""
        return with_article(self.name) if self.countable else self.name

    @property
    def plural(self) -> str:
        if self.name in _IRREGULAR_PLURALS:
            return _IRREGULAR_PLURALS[self.name]
        return self.name + ("es" if self.name.endswith(("s", "sh", "ch", "x")) else "s")

    @property
    def variants(self) -> int:
        """How many different cut-outs show this kind."""
        return len(self.emoji) + len(self.clipart) + len(self.drawn)


@dataclass(frozen=True)
class Catalogue:
    """All kinds and categories of a source set. `categories` maps a category to its phrase ("a vehicle", "food")."""

    kinds: tuple[Kind, ...]
    categories: Mapping[str, str]
    category_synonyms: Mapping[str, Sequence[str]]
    photos: bool  # whether photo backgrounds and installed fonts belong to the source set

    def __post_init__(self) -> None:
        names = {kind.name for kind in self.kinds}
        for kind in self.kinds:
            if kind.category not in self.categories:
                raise ValueError(f"kind {kind.name!r} has the unknown category {kind.category!r}")
            if kind.variants == 0:
                raise ValueError(f"kind {kind.name!r} has no cut-out")
            if unknown := set(kind.similar) - names:
                raise ValueError(f"kind {kind.name!r} is similar to unknown kinds: {sorted(unknown)}")
        if len(names) != len(self.kinds):
            raise ValueError("two kinds share a name")

    @property
    def countable(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in self.kinds if kind.countable)

    @property
    def digest(self) -> str:
        """Names this catalogue's content: a cache of cut-outs or a data set is valid for one digest."""
        return hashlib.sha256(repr((self.kinds, sorted(self.categories.items()))).encode()).hexdigest()[:16]

    def kind(self, name: str) -> Kind:
        for kind in self.kinds:
            if kind.name == name:
                return kind
        raise KeyError(f"no kind is called {name!r}")


@lru_cache(maxsize=1)
def full_catalogue() -> Catalogue:
    """Every kind of kinds.toml: needs the Debian packages that `training.scenes.assets` names."""
    data = tomllib.loads(KINDS_FILE.read_text("utf-8"))
    kinds = tuple(
        Kind(
            name=row["name"],
            category=row["category"],
            noun=row.get("noun", "count"),
            emoji=tuple(row.get("emoji", ())),
            clipart=tuple(row.get("clipart", ())),
            synonyms=tuple(row.get("synonyms", ())),
            similar=tuple(row.get("similar", ())),
        )
        for row in data["kind"]
    )
    return Catalogue(
        kinds=kinds, categories=data["categories"], category_synonyms=data["category_synonyms"], photos=True
    )


@lru_cache(maxsize=1)
def drawn_catalogue() -> Catalogue:
    """A reduced source set that needs no package: our own shapes stand in for kinds, on plain backgrounds."""
    categories = {"round": "a round shape", "angular": "an angular shape"}
    kinds = tuple(
        Kind(
            name=shape,
            category="round" if shape in ("circle", "oval", "heart") else "angular",
            drawn=tuple((shape, colour) for colour in COLOURS),
        )
        for shape in SHAPES
    )
    return Catalogue(kinds=kinds, categories=categories, category_synonyms={}, photos=False)
