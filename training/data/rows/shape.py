"""Whether a row is one that the trainer takes: turns in order, a place for each image."""

from __future__ import annotations

from typing import Any

PLACE = "<image>"


def image_paths(row: dict[str, Any]) -> list[str]:
    """The row's images, in the order of their places."""
    image = row.get("image")
    if image is None:
        return []
    return [image] if isinstance(image, str) else list(image)


def shape_fault(row: Any) -> str | None:
    """What is wrong with the row's shape; None: nothing is."""
    if not isinstance(row, dict):
        return f"expected an object, found {type(row).__name__}"
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return "expected a list of conversations"
    return _image_fault(row.get("image")) or _turn_fault(turns) or _place_fault(turns, len(image_paths(row)))


def _image_fault(image: Any) -> str | None:
    if image is None or (isinstance(image, str) and image):
        return None
    if isinstance(image, list) and image and all(isinstance(name, str) and name for name in image):
        return None
    return "image must be a file name or a list of file names"


def _turn_fault(turns: list[Any]) -> str | None:
    expected = "human"
    for number, turn in enumerate(turns, 1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        text = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or not isinstance(text, str):
            return f"turn {number}: expected from and value, both text"
        if speaker == "system" and number == 1:
            continue
        if speaker != expected:
            return f"turn {number}: expected {expected}, found {speaker[:40]!r}"
        if not text.strip() and speaker == "gpt":
            return f"turn {number}: the answer is empty"
        expected = "gpt" if speaker == "human" else "human"
    return None if expected == "human" and turns[-1]["from"] == "gpt" else "the last turn must be gpt's"


def _place_fault(turns: list[dict[str, str]], images: int) -> str | None:
    places = 0
    for turn in turns:
        found = turn["value"].count(PLACE)
        if found and turn["from"] != "human":
            return f"{PLACE} in a turn of {turn['from']}: images stand in questions only"
        places += found
    return None if places == images else f"{places} image places in the text, {images} images"
