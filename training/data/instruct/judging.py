"""Whether an answer may enter the data set: its form, what it must not say, what it must not make up."""

from __future__ import annotations

from pathlib import Path

from training.data.instruct.answers import AnswerFault, Pair, parse_answer
from training.data.instruct.items import Item
from training.data.instruct.kinds import Kind
from training.data.instruct.leaks import LeakCheck
from training.data.instruct.prompts import prompt_file, read_lines
from training.data.instruct.support import SupportCheck


class Judge:
    """The same answer is always judged the same way: verdicts need not be kept, answers are."""

    def __init__(self, folder: Path | None = None) -> None:
        """leaks.txt and objects.toml: ours, or those of `folder` where it has them. Raises DataError."""
        self._leaks = LeakCheck(read_lines(prompt_file("leaks.txt", folder)))
        self._support = SupportCheck(prompt_file("objects.toml", folder))

    def judge(self, kind: Kind, item: Item, text: str, *, cut_off: bool) -> tuple[Pair, ...]:
        """The pairs of an answer that can be used. Raises AnswerFault."""
        if cut_off:
            raise AnswerFault("cut off", "it was cut off at the limit of its length: write a shorter one")
        pairs = parse_answer(kind, text)
        whole = "\n".join(part for pair in pairs for part in (pair.question, pair.answer))
        if (leak := self._leaks.leak(item, whole)) is not None:
            raise AnswerFault("leak", f"it says {leak!r}, which nobody would who looks at the picture itself")
        if (word := self._support.unsupported(item, pairs)) is not None:
            raise AnswerFault("unsupported", f"it speaks of {word!r}, but nothing says that it is in the picture")
        return pairs
