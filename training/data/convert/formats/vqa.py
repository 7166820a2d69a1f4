"""VQAv2 and OK-VQA: a file of questions and one of annotations, joined by question_id.

VQAv2 names the answer that most people gave (`multiple_choice_answer`). OK-VQA lists ten answers; the most frequent
counts, the first of equals. All questions of a picture become one conversation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest

from training.data.convert.base import Converter, Entry, Exchange, FieldError, Item, Role, Said, Settings, Sources
from training.data.convert.prompts import SHORT_ANSWER
from training.data.rows import BadRow


def _read(answer: Callable[[Entry], str], sources: Sources, settings: Settings) -> Iterator[Said]:
    """Both files list the same questions in the same order; where they do not, entries wait for their other half."""
    questions: dict[str, Entry] = {}
    annotations: dict[str, Entry] = {}
    columns = sources.array("questions", "questions"), sources.array("annotations", "annotations")
    for pair in zip_longest(*columns):
        for entry, mine, others in ((pair[0], questions, annotations), (pair[1], annotations, questions)):
            if entry is None:
                continue
            try:
                key = entry.name("question_id")
            except FieldError as error:
                yield BadRow(entry.where, str(error), entry.value)
                continue
            other = others.pop(key, None)
            if other is None:
                mine[key] = entry
                continue
            question, annotation = (other, entry) if mine is annotations else (entry, other)
            yield annotation.read(partial(_item, answer, settings, question))
    for key, entry in questions.items():
        yield BadRow(entry.where, f"question {key} has no annotation", entry.value)
    for key, entry in annotations.items():
        yield BadRow(entry.where, f"annotation {key} has no question", entry.value)


def _item(answer: Callable[[Entry], str], settings: Settings, question: Entry, annotation: Entry) -> Item:
    image = question.integer("image_id")
    exchange = Exchange(question.text("question"), answer(annotation), SHORT_ANSWER)
    return Item(question.where, f"{image:012d}", settings.coco_name(image), (exchange,))


def _named(annotation: Entry) -> str:
    return annotation.text("multiple_choice_answer")


def _most_frequent(annotation: Entry) -> str:
    given = [answer.text("answer") for answer in annotation.parts("answers")]
    if not given:
        raise FieldError("answers: expected at least one")
    return Counter(given).most_common(1)[0][0]


VQAV2 = Converter(
    "vqav2",
    "VQAv2",
    (
        Role("questions", "v2_OpenEnded_mscoco_train2014_questions.json"),
        Role("annotations", "v2_mscoco_train2014_annotations.json"),
    ),
    "coco/train2017",
    partial(_read, _named),
    merges=True,
)
OKVQA = Converter(
    "okvqa",
    "OK-VQA",
    (
        Role("questions", "OpenEnded_mscoco_train2014_questions.json"),
        Role("annotations", "mscoco_train2014_annotations.json"),
    ),
    "coco/train2017",
    partial(_read, _most_frequent),
    merges=True,
)
