"""Answers as rows of the LLaVA conversation format. The picture stands before or behind the first question, by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.data.instruct.plan import drawn
from training.data.instruct.run import Accepted
from training.data.rows import PLACE


def row_of(accepted: Accepted, seed: int, descriptions: Sequence[str]) -> dict[str, Any]:
    """`descriptions`: the ways to ask for a description; one of them is drawn where the question is open."""
    task = accepted.task
    turns: list[dict[str, str]] = []
    for number, pair in enumerate(accepted.pairs):
        question = pair.question or descriptions[drawn(seed, "question", task.key) % len(descriptions)]
        if number == 0:
            before = drawn(seed, "place", task.key) % 2 == 0
            question = f"{PLACE}\n{question}" if before else f"{question}\n{PLACE}"
        turns += ({"from": "human", "value": question}, {"from": "gpt", "value": pair.answer})
    return {
        "id": f"{task.item.id}-{task.kind}",
        "image": task.item.image,
        "conversations": turns,
        "source": f"instruct-{task.kind}",
    }
