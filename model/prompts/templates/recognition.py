"""Which of our formats a Jinja text is, and what a text does otherwise than a format: by what it renders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from model.errors import PromptError
from model.prompts.anatomy import ANSWER, NEXT_QUESTION, QUESTION, SYSTEM, Anatomy, Message, attempt, dissect
from model.prompts.sandbox import BoundedTemplate
from model.prompts.templates.sources import IMAGE, MARKED_IMAGE, TEMPLATES

_BOS = "<s>"


class _Rendered:
    """What a template makes of the conversations that tell formats apart. BOS is nobody's difference: where the
    template does not write it, the tokenizer does. Nor are marks around images: they go with any format."""

    def __init__(self, jinja: str) -> None:
        self._template = BoundedTemplate(jinja)
        self.anatomy: Anatomy = dissect(self._render, IMAGE)
        self.default_system, self.system_position = self._system()

    def _render(self, messages: list[Message], generation: bool) -> str:
        variables: dict[str, Any] = {"bos_token": _BOS, "eos_token": "</s>", "unk_token": "<unk>"}
        variables |= {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": generation}
        return self._template.render(variables).removeprefix(_BOS).replace(MARKED_IMAGE, IMAGE)

    def message(self, role: str, text: str, *, images: int = 0) -> Message:
        if self.anatomy.takes_parts:
            words = [{"type": "text", "text": text}] if text else []
            return {"role": role, "content": [{"type": "image"}] * images + words}
        return {"role": role, "content": f"{IMAGE}\n" * images + text}

    def attempt(self, *messages: Message, generation: bool = True) -> str | None:
        return attempt(self._render, list(messages), generation)

    def outcomes(self) -> tuple[str | None, ...]:
        """Without white space at the end, which no two authors treat alike."""
        question, picture = self.message("user", QUESTION), self.message("user", QUESTION, images=1)
        answer = self.message("assistant", ANSWER)
        texts = (
            self.attempt(question),
            self.attempt(picture, answer, self.message("user", NEXT_QUESTION)),
            self.attempt(picture, answer, generation=False),
            self.attempt(self.message("user", "", images=1)),
        )
        return tuple(text if text is None else text.rstrip("\n ") for text in texts)

    def _system(self) -> tuple[str, str | None]:
        """The system prompt when none is given, and what a template makes of one that is."""
        given = self.attempt(self.message("system", SYSTEM), self.message("user", QUESTION))
        default = self.attempt(self.message("user", QUESTION))
        if given is None or default is None or SYSTEM not in given:
            return "", given
        before, _, behind = given.partition(SYSTEM)
        if default.startswith(before) and default.endswith(behind):
            return default[len(before) : len(default) - len(behind)], given
        return "", given


def recognise_template(jinja: str) -> str | None:
    """The name in TEMPLATES of the format that `jinja` renders; None for any other. Raises PromptError."""
    outcomes = _Rendered(jinja).outcomes()
    return next((name for name in TEMPLATES if _outcomes(name) == outcomes), None)


@lru_cache(len(TEMPLATES))
def _outcomes(name: str) -> tuple[str | None, ...]:
    return _Rendered(TEMPLATES[name]).outcomes()


def compare_templates(found: str, expected: str) -> list[str]:
    """What `found` does otherwise than `expected`, in words that go on from "the template ...". Both are Jinja texts.

    Nothing is said of what leads to the same text. Raises PromptError when `expected` cannot be read.
    """
    ours = _Rendered(expected)
    try:
        theirs = _Rendered(found)
    except PromptError as error:
        return [f"cannot be used: {error}"]
    return list(_differences(theirs, ours))


def _differences(theirs: _Rendered, ours: _Rendered) -> Iterator[str]:
    yield from _system_differences(theirs, ours)
    yield from _picture_differences(theirs, ours)
    places = {
        "opens a conversation with": (_without(theirs.anatomy.opening, theirs), _without(ours.anatomy.opening, ours)),
        "puts between question and answer": (theirs.anatomy.middle, ours.anatomy.middle),
        "puts between answer and next question": (theirs.anatomy.closing, ours.anatomy.closing),
        "ends an answer with": (theirs.anatomy.ending, ours.anatomy.ending),
        "asks for an answer with": (theirs.anatomy.generation, ours.anatomy.generation),
    }
    for what, (their, our) in places.items():
        if their is None and our is not None:
            yield f"refuses a conversation in which it {what} {our!r}"
        elif our is None and their is not None:
            yield f"accepts a conversation that the format has no place for, and {what} {their!r}"
        elif their is not None and our is not None and their.rstrip("\n ") != our.rstrip("\n "):
            yield f"{what} {their!r} instead of {our!r}"


def _system_differences(theirs: _Rendered, ours: _Rendered) -> Iterator[str]:
    default, opening = ours.default_system, theirs.anatomy.opening or ""
    if default and default not in opening:
        if theirs.default_system:
            yield f"says {theirs.default_system!r} instead of the system prompt {default!r}"
        else:
            yield f"leaves out the system prompt that the family was trained with: {default!r}"
    elif not default and theirs.default_system:
        yield f"adds a system prompt that the family was not trained with: {theirs.default_system!r}"
    if ours.system_position is not None and SYSTEM in ours.system_position:
        if theirs.system_position is None:
            yield "refuses a system message"
        elif SYSTEM not in theirs.system_position:
            yield "drops a system message without a word"


def _picture_differences(theirs: _Rendered, ours: _Rendered) -> Iterator[str]:
    asked = [side.attempt(side.message("user", QUESTION, images=2)) for side in (theirs, ours)]
    their, our = (None if text is None else text[text.find(IMAGE) : text.find(QUESTION)] for text in asked)
    if asked[0] is not None and asked[0].count(IMAGE) != 2:
        yield f"has places for {asked[0].count(IMAGE)} of two images"
    elif their is None and our is not None:
        yield "refuses images beside a question"
    elif their is not None and our is not None and their != our:
        yield f"writes two images as {their!r} instead of {our!r}"


def _without(opening: str | None, side: _Rendered) -> str | None:
    """The opening without the default system prompt, of which is spoken apart."""
    if opening is None or not side.default_system:
        return opening
    return opening.replace(side.default_system, "…")
