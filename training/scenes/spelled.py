"""Text-only rows that ask the language model to spell words and to tell words from their letters.

A printed word reaches the model as letters; putting them together is a matter of language and is learned far cheaper
without pictures. Only words that training may show are used.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from training.scenes import phrases
from training.scenes.words import words

WORDS_A_ROW = 10

_TOGETHER = (
    "Which word do the letters {} make?",
    "What word is spelled {}?",
    "Put the letters {} together.",
    "Read the letters {}.",
)
_APART = ('Spell the word "{}".', 'Which letters does the word "{}" have?')


def spelled_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows of independent questions, a function of (count, seed). All words come up before one does again."""
    rng = Random(f"spelled/{seed}")
    deck: list[str] = []
    rows = []
    for index in range(count):
        talk: list[dict[str, str]] = []
        for _ in range(WORDS_A_ROW):
            if not deck:
                deck = rng.sample(words(held_out=False), len(words(held_out=False)))
            question, answer = _question(rng, deck.pop())
            talk += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"spelled-{index:05d}", "conversations": talk, "turns": "independent"})
    return rows


def _question(rng: Random, word: str) -> tuple[str, str]:
    letters = rng.choice(("-", " ", ", ")).join(word)
    if rng.random() < 0.2:
        return rng.choice(_APART).format(word), phrases.spelling(rng, word).answer
    return rng.choice(_TOGETHER).format(letters), phrases.reading(rng, word).answer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.scenes.spelled", description=__doc__)
    parser.add_argument("--count", type=int, required=True, help=f"rows of {WORDS_A_ROW} words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge-into", type=Path, required=True, help="a data set's JSON file that takes the rows in")
    given = parser.parse_args()
    try:
        rows = json.loads(given.merge_into.read_text("utf-8"))
        kept = [row for row in rows if not str(row.get("id")).startswith("spelled-")]
        kept += spelled_rows(given.count, given.seed)
        given.merge_into.write_text(json.dumps(kept), "utf-8")
    except (OSError, ValueError) as error:
        print(f"tephra: {given.merge_into}: {error}", file=sys.stderr)
        return 1
    print(f"{given.count} rows merged into {given.merge_into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
