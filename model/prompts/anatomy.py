"""What a template puts around messages, found out by rendering a few small conversations.

It knows nothing of tokenizers; whoever asks brings the way to render.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.errors import PromptError
from model.prompts.sandbox import TemplateCostError

Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]  # messages, whether an answer is to follow

QUESTION, ANSWER, NEXT_QUESTION, SYSTEM = "first question", "first answer", "second question", "system words"


@dataclass(frozen=True)
class Anatomy:
    """Texts of the template's own; None where it refused the conversation that would have shown it."""

    takes_parts: bool  # content may be a list of parts; else only text
    opening: str | None  # all before the first question; the default system prompt is in it
    middle: str | None  # between a question and its answer
    closing: str | None  # between an answer and the next question
    ending: str | None  # behind the last answer
    generation: str | None  # between the last question and where an answer is to begin
    lead: str  # between there and the answer's first word: the space that many formats put

    @property
    def separator(self) -> tuple[str, str]:
        """What stands behind an answer before the next turn names its speaker: white space and the first word."""
        closing = self.closing if self.closing is not None else self.ending or ""
        words = closing.split()
        word = words[0] if words else ""
        return closing[: closing.index(word)] if word else closing, word


def dissect(render: Render, image_token: str) -> Anatomy:
    """Raises TemplateCostError; a template that refuses everything gives an anatomy that says nothing."""
    takes_parts = _takes_parts(render, image_token)

    def message(role: str, text: str) -> Message:
        return {"role": role, "content": [{"type": "text", "text": text}] if takes_parts else text}

    question, answer = message("user", QUESTION), message("assistant", ANSWER)
    asked = attempt(render, [question], True)
    if asked is None:  # a format without questions
        picture = {"role": "user", "content": [{"type": "image"}] if takes_parts else image_token}
        asked, answered, more = attempt(render, [picture], True), attempt(render, [picture, answer], False), None
        middle = None
    else:
        answered = attempt(render, [question, answer], False)
        more = attempt(render, [question, answer, message("user", NEXT_QUESTION)], True)
        middle = _between(answered, QUESTION, ANSWER)
    begins = answered.find(ANSWER) if answered is not None else -1
    follows = asked is not None and answered is not None and begins >= 0 and answered.startswith(asked)
    return Anatomy(
        takes_parts=takes_parts,
        opening=_between(asked, "", QUESTION),
        middle=middle,
        closing=_between(more, ANSWER, NEXT_QUESTION),
        ending=_between(answered, ANSWER, None),
        generation=_between(asked, QUESTION, None),
        lead=answered[len(asked) : begins] if follows and asked is not None and answered is not None else "",
    )


def attempt(render: Render, messages: list[Message], generation: bool) -> str | None:
    """The rendered text; None when the template refuses."""
    try:
        return render(messages, generation)
    except TemplateCostError:
        raise
    except PromptError:
        return None


def _takes_parts(render: Render, image_token: str) -> bool:
    """Either with words beside the picture, or, in a format that has no place for words, without."""
    for words in (QUESTION, ""):
        content = [{"type": "image"}, *([{"type": "text", "text": words}] if words else [])]
        rendered = attempt(render, [{"role": "user", "content": content}], False) or ""
        if image_token in rendered and words in rendered and "'type'" not in rendered:
            return True
    return False


def _between(rendered: str | None, first: str, last: str | None) -> str | None:
    if rendered is None:
        return None
    begin = rendered.find(first)
    end = len(rendered) if last is None else rendered.find(last, begin + len(first))
    return rendered[begin + len(first) : end] if begin >= 0 and end >= 0 else None
