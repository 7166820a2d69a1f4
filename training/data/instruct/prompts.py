"""The words that the model is prompted with: files of the package, each of which a user's folder can replace.

conversation|detail|reasoning/system.txt      what to write
conversation|detail|reasoning/examples.jsonl  {"captions": [...], "boxes": [{"category", "box"}], "answer": "..."}
detail/questions.txt                          ways to ask for a description, one a line
repair.txt                                    how to ask again; {fault} says what was wrong
leaks.txt, objects.toml                       what answers are held to
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec

from training.data.errors import DataError
from training.data.instruct.answers import AnswerFault, parse_answer
from training.data.instruct.items import Box, Item
from training.data.instruct.kinds import Kind

OWN = Path(__file__).with_name("prompts")

Message = dict[str, str]


class _Box(msgspec.Struct):
    category: str
    box: tuple[float, float, float, float]


class _Example(msgspec.Struct, forbid_unknown_fields=True):
    captions: list[str]
    answer: str
    boxes: list[_Box] = []


@dataclass(frozen=True)
class Prompts:
    """All that a request says besides the picture's own captions and boxes."""

    opening: dict[Kind, tuple[Message, ...]]  # system message and worked examples
    descriptions: tuple[str, ...]  # ways to ask for one
    repair: str
    digest: str  # of what is sent

    def messages(self, kind: Kind, item: Item) -> list[Message]:
        context = item.context(boxes=kind is not Kind.CONVERSATION)
        return [*self.opening[kind], {"role": "user", "content": context}]

    def repair_messages(self, kind: Kind, item: Item, answer: str, fault: str) -> list[Message]:
        """Once more, with the answer that cannot be used and why."""
        return [
            *self.messages(kind, item),
            {"role": "assistant", "content": answer},
            {"role": "user", "content": self.repair.replace("{fault}", fault)},
        ]


def prompt_file(name: str, folder: Path | None) -> Path:
    """The user's file where there is one, else ours."""
    return folder / name if folder is not None and (folder / name).is_file() else OWN / name


def read_prompts(folder: Path | None = None) -> Prompts:
    """Ours, or those of `folder` where it has them. Raises DataError."""
    if folder is not None:
        _known_files(folder)
    opening = {kind: _opening(kind, folder) for kind in Kind}
    repair = _text(prompt_file("repair.txt", folder))
    if "{fault}" not in repair:
        raise DataError(f"{prompt_file('repair.txt', folder)}: expected the word {{fault}}, where the reason goes")
    questions = read_lines(prompt_file("detail/questions.txt", folder))
    digest = blake2b(msgspec.json.encode([opening, repair]), digest_size=8).hexdigest()
    return Prompts(opening, questions, repair, digest)


def write_prompts(folder: Path) -> None:
    """Our files, for a user to edit. Raises DataError where the folder holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: expected an empty folder")
    shutil.copytree(OWN, folder, dirs_exist_ok=True)


def read_lines(file: Path) -> tuple[str, ...]:
    """Lines that are neither empty nor comments (#). Raises DataError."""
    lines = tuple(text for line in _text(file).splitlines() if (text := line.strip()) and not text.startswith("#"))
    if not lines:
        raise DataError(f"{file}: expected at least one line")
    return lines


def _known_files(folder: Path) -> None:
    """A misspelt file would be ignored: it is an error instead."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of prompts")
    known = {file.relative_to(OWN) for file in OWN.rglob("*") if file.is_file()}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder) not in known:
            names = ", ".join(sorted(map(str, known)))
            raise DataError(f"{file}: no file of prompts has this name; expected one of {names}")


def _opening(kind: Kind, folder: Path | None) -> tuple[Message, ...]:
    system = _text(prompt_file(f"{kind}/system.txt", folder)).strip()
    messages: list[Message] = [{"role": "system", "content": system}]
    file = prompt_file(f"{kind}/examples.jsonl", folder)
    for number, line in enumerate(_text(file).splitlines(), 1):
        where = f"{file}: line {number}"
        try:
            example = msgspec.json.decode(line, type=_Example)
            parse_answer(kind, example.answer)
        except msgspec.MsgspecError as error:
            raise DataError(f"{where}: {error}") from error
        except AnswerFault as fault:
            raise DataError(f"{where}: the example's own answer does not fit: {fault}") from fault
        boxes = tuple(Box(box.category, box.box) for box in example.boxes)
        context = Item("example", "", tuple(example.captions), boxes).context(boxes=kind is not Kind.CONVERSATION)
        messages.append({"role": "user", "content": context})
        messages.append({"role": "assistant", "content": example.answer})
    return tuple(messages)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
