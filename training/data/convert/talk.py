"""Conversations that are published as turns of two speakers, whatever these are called."""

from __future__ import annotations

from training.data.convert.base import Entry, Exchange, FieldError
from training.data.rows import PLACE

_SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "chatgpt": "gpt",
    "assistant": "gpt",
    "system": "system",
}


def exchanges_of(entry: Entry, *, picture: bool) -> tuple[str, tuple[Exchange, ...]]:
    """(system message, questions with their answers) of the entry's conversations. Raises FieldError.

    What an assistant says before it is asked is left out, as Vicuna's cleaning of ShareGPT does. `picture`: the image's
    place is taken out of the first question, where it will be put back in front.
    """
    system, asked = "", None
    exchanges: list[Exchange] = []
    for number, turn in enumerate(entry.parts("conversations"), 1):
        speaker = _SPEAKERS.get(turn.text("from"))
        text = turn.text("value")
        match speaker:
            case "system" if number == 1:
                system = text
            case "gpt" if asked is None and not exchanges:
                continue
            case "human" if asked is None:
                asked = text.replace(PLACE, "").strip() if picture and not exchanges else text
            case "gpt" if asked is not None:
                exchanges.append(Exchange(asked, text))
                asked = None
            case None:
                raise FieldError(f"turn {number}: nobody is called {turn.text('from')[:40]!r}")
            case _:
                raise FieldError(f"turn {number}: two turns of one speaker, or a late system message")
    if not exchanges:
        raise FieldError("no question with an answer")
    return system, tuple(exchanges)  # a last question without an answer teaches nothing
