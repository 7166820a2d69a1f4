"""Items become rows: those of one id merged, drawn from, cut into conversations, laid out as turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from training.data.convert.base import Converter, Exchange, Item, Settings
from training.data.rows import PLACE


def item_fault(item: Item, *, text_only: bool) -> str | None:
    """Why the item cannot be trained on; None: it can."""
    if not item.exchanges:
        return "no question with an answer"
    if item.image is None and not text_only:
        return "no image"
    if item.image == "":
        return "the image's name is empty"
    for question, answer, _ in item.exchanges:
        if not question or not answer:
            return "the answer is empty" if question else "the question is empty"
        if PLACE in question or PLACE in answer:
            return f"its text holds {PLACE}, which would be taken for an image's place"
    return None


class Layout:
    """How one converter's items become rows, with what the user chose."""

    def __init__(self, converter: Converter, settings: Settings) -> None:
        self._name, self._settings = converter.name, settings
        self._draw = converter.draw if settings.draw is None else settings.draw
        self._turns = converter.turns if settings.turns is None else settings.turns
        self._every = converter.every if settings.every is None else settings.every
        folder = converter.images if settings.images is None else settings.images
        self._folder = folder.rstrip("/") + "/" if folder else ""
        self.left_out = 0  # exchanges that were not drawn

    def rows(
        self, id: str, image: str | None, exchanges: tuple[Exchange, ...], system: str = ""
    ) -> Iterator[dict[str, Any]]:
        """The conversations about one picture."""
        if self._draw is not None and len(exchanges) > self._draw:
            drawn = self._settings.chance("draw", self._name, id).sample(range(len(exchanges)), self._draw)
            self.left_out += len(exchanges) - self._draw
            exchanges = tuple(exchanges[place] for place in sorted(drawn))
        size = self._turns or len(exchanges)
        for number, start in enumerate(range(0, len(exchanges), size), 1):
            row: dict[str, Any] = {"id": f"{self._name}/{id}" + (f"-{number}" if len(exchanges) > size else "")}
            if image is not None:
                row["image"] = self._folder + image
            row["conversations"] = list(self._turns_of(exchanges[start : start + size], image is not None, system))
            yield row

    def _turns_of(self, exchanges: Iterable[Exchange], picture: bool, system: str) -> Iterator[dict[str, str]]:
        if system:
            yield {"from": "system", "value": system}
        said = ""
        for place, (question, answer, format) in enumerate(exchanges):
            ask = f"{question}\n{format}" if format and (self._every or format != said) else question
            said = format
            yield {"from": "human", "value": f"{PLACE}\n{ask}" if picture and place == 0 else ask}
            yield {"from": "gpt", "value": answer}
