"""What the family says to name the form of an answer, and our ways of asking for descriptions.

The response-format prompts are those of LLaVA-1.5's paper and of its published 665K mix; models answer to these very
words. The paraphrases are ours.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
ONE_SENTENCE = "Provide a one-sentence caption for the provided image."
REGION_TO_WORDS = "Please provide a short description for this region: {box}."
WORDS_TO_REGION = "Please provide the bounding box coordinate of the region this sentence describes: {words}."

BRIEF = (
    "Say in a few words what this picture shows.",
    "Give a short caption for this image.",
    "Sum up the picture in one line.",
    "What is in this image, put briefly?",
    "Write a brief description of the photo.",
    "In a sentence, what do you see?",
    "Caption this picture concisely.",
    "Tell shortly what the image is about.",
    "Describe the scene in as few words as you can.",
    "Provide a compact summary of the image.",
    "What would a short caption for this photo be?",
)

READ_ALL = (
    "Read out all the text in this image.",
    "What does the text in the picture say, from top to bottom?",
    "Transcribe everything that is written here.",
    "Write down the text of this page as it stands.",
)


def lettered(options: Sequence[str]) -> str:
    """One option a line: `A. red`."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def sentence(words: str) -> str:
    """Begins with a capital letter and ends with a full stop, as region descriptions in the 665K mix do."""
    words = words.strip()
    whole = words[:1].upper() + words[1:]
    return whole if not whole or whole[-1] in ".!?" else whole + "."
