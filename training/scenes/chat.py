"""Text-only conversations that keep the language model fluent while it learns to see.

chat_prompts.jsonl holds prompts of ours. The base language model answers them itself before training (whoever holds the
model does that); `merge_chat` puts the answered conversations into a data set. Prompts about pictures that were never
sent come with answers of ours: a base model would invent a picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

PROMPTS_FILE = Path(__file__).with_name("chat_prompts.jsonl")

_PREFIX = "chat-"  # of every text-only row's id, so that merging again replaces instead of adding


class ChatFileError(ValueError):
    """A file of prompts or answers does not hold what it should; the message names the line."""


@dataclass(frozen=True)
class ChatPrompt:
    """The user's turns of one conversation; `answers` is empty when the base model is to answer."""

    id: str
    turns: tuple[str, ...]
    answers: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The conversation in LLaVA's format, without an image. Needs an answer for every turn."""
        if len(self.answers) != len(self.turns):
            raise ValueError(f"{self.id} has {len(self.turns)} turns and {len(self.answers)} answers")
        talk = []
        for question, answer in zip(self.turns, self.answers, strict=True):
            talk.append({"from": "human", "value": question})
            talk.append({"from": "gpt", "value": answer})
        return {"id": self.id, "conversations": talk, "layout": "chat", "families": ["chat"] * len(self.turns)}


def chat_prompts() -> tuple[ChatPrompt, ...]:
    """All prompts of ours, answered or not."""
    return tuple(_read(PROMPTS_FILE))


def merge_chat(dataset_file: Path, answers_file: Path, *, copies: int = 1, seed: int = 0) -> int:
    """Mix answered conversations into a data set's JSON file, in place; returns how many rows were added.

    `answers_file` is JSON lines, each {"prompt", "answer"} or {"turns": [...], "answers": [...]}. The prompts of ours
    that bring their own answer are added too. `copies` repeats all of them. Rows of an earlier merge are replaced.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}: use 1 or more")
    rows = [row for row in json.loads(dataset_file.read_text("utf-8")) if not str(row["id"]).startswith(_PREFIX)]
    answered = [*_read(answers_file), *(prompt for prompt in chat_prompts() if prompt.answers)]
    added = []
    for copy in range(copies):
        for place, prompt in enumerate(answered):
            if not prompt.answers:
                raise ChatFileError(f"{answers_file}: {prompt.id} has no answer")
            added.append(prompt.row() | {"id": f"{_PREFIX}{copy}-{place:04d}"})
    mixed = _interleave(rows, added, Random(f"chat/{seed}"))
    part = dataset_file.with_suffix(".part")
    part.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in mixed) + "\n]\n", "utf-8")
    os.replace(part, dataset_file)
    return len(added)


def _interleave(rows: Sequence[dict[str, Any]], added: Sequence[dict[str, Any]], rng: Random) -> list[dict[str, Any]]:
    """Both sequences in one, each in its own order, at random places."""
    sources = [0] * len(rows) + [1] * len(added)
    rng.shuffle(sources)
    queues = (iter(rows), iter(added))
    return [next(queues[source]) for source in sources]


def _read(path: Path) -> Iterable[ChatPrompt]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            turns = tuple(data["turns"]) if "turns" in data else (data["prompt"],)
            answers = tuple(data["answers"]) if "answers" in data else ((data["answer"],) if "answer" in data else ())
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ChatFileError(f'{path}, line {number}: expected JSON with "turns" or "prompt" ({error})') from error
        if answers and len(answers) != len(turns):
            raise ChatFileError(f"{path}, line {number}: {len(turns)} turns but {len(answers)} answers")
        yield ChatPrompt(str(data.get("id", f"{_PREFIX}{number:03d}")), turns, answers)
