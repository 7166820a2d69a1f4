"""What answers are held to: form, no word of captions or boxes, nothing made up, nothing said twice."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.errors import DataError
from training.data.instruct.answers import AnswerFault, Pair, parse_answer
from training.data.instruct.duplicates import NearDuplicates
from training.data.instruct.items import Box, Item
from training.data.instruct.judging import Judge
from training.data.instruct.kinds import SHARES, Kind, counts_by_share, greatest_total
from training.data.instruct.prompts import OWN, read_prompts, write_prompts

ITEM = Item("1", "1.jpg", ("Two dogs run after a ball on the grass.",), (Box("frisbee", (0.1, 0.2, 0.3, 0.4)),))
JUDGE = Judge()


def one(question: str, answer: str) -> str:
    return f"Question:\n{question}\n===\nAnswer:\n{answer}"


def code_of(answer: str, kind: Kind = Kind.CONVERSATION, item: Item = ITEM) -> str | None:
    try:
        JUDGE.judge(kind, item, answer, cut_off=False)
    except AnswerFault as fault:
        return fault.code
    return None


TEXT = st.text("abc ?!.\n", min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12))
def test_blocks_are_read_back_as_they_were_written(pairs: list[tuple[str, str]]) -> None:
    text = "\n===\n".join(f"Question: {question}\n===\nAnswer:\n{answer}" for question, answer in pairs)
    assert parse_answer(Kind.CONVERSATION, text) == tuple(Pair(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "answer",
    [
        "What is it? A dog.",
        "Here you are:\nQuestion:\nWhat?\n===\nAnswer:\nA dog.",
        "Question:\nWhat?\nAnswer:\nA dog.",
        "Question:\nWhat?",
        "Question:\nWhat?\n===\nAnswer:\n",
        "Question:\nWhat?\n===\nQuestion:\nWho?",
        "Answer:\nA dog.\n===\nQuestion:\nWhat?",
        "```\n" + one("What?", "A dog.") + "\n```",
        one("<image> What?", "A dog."),
        "\n===\n".join([one("What?", "A dog.")] * 13),
    ],
)
def test_what_is_not_in_the_form_is_not_guessed_at(answer: str) -> None:
    assert code_of(answer) == "form"


def test_reasoning_is_one_question_and_a_description_is_none() -> None:
    assert code_of("\n===\n".join([one("Why?", "So.")] * 2), Kind.REASONING) == "form"
    assert code_of(one("What?", "A dog. " * 20), Kind.DETAIL) == "form"
    assert code_of("Dogs.", Kind.DETAIL) == "length"
    assert code_of("Two dogs run over the grass. " * 5, Kind.DETAIL) is None


def test_an_answer_that_was_cut_off_is_not_taken() -> None:
    with pytest.raises(AnswerFault, match="cut off"):
        JUDGE.judge(Kind.CONVERSATION, ITEM, one("What?", "Dogs."), cut_off=True)


@pytest.mark.parametrize(
    "answer",
    [
        "The caption says that there are dogs.",
        "As the captions say, dogs.",
        "The bounding boxes show two dogs.",
        "There are two boxes.",
        "By the coordinates it is on the left.",
        "It lies at [0.1, 0.2, 0.3, 0.4].",
        "It begins at 0.125 from the left.",
        "Based on the description, they play.",
        "As an AI, I see dogs.",
    ],
)
def test_an_answer_must_not_show_what_it_was_written_from(answer: str) -> None:
    assert code_of(one("What is this?", answer)) == "leak"


def test_a_word_of_the_pictures_own_may_be_said() -> None:
    boxed = Item("2", "2.jpg", ("A dog in a cardboard box.",))
    assert code_of(one("Where is the dog?", "It is in a box."), item=boxed) is None
    assert code_of(one("Where is the dog?", "It is in one of the boxes."), item=boxed) is None
    assert code_of(one("How much?", "It costs 0.5 or 1.25.")) is None


@pytest.mark.parametrize(
    "answer",
    [
        "There is a cat.",
        "Two horses stand there.",
        "A puppy sits on a sofa.",
        "The vehicle is red.",
        "Knives lie there.",
    ],
)
def test_a_thing_that_nothing_tells_of_is_made_up(answer: str) -> None:
    assert code_of(one("What is there?", answer)) == "unsupported"


@pytest.mark.parametrize(
    "answer",
    [
        "There are two dogs and a ball.",
        "The puppies run.",  # another word for dogs
        "The animals play.",  # a wider word
        "A flying disc is in the air.",  # a box's category, in other words
        "There is no cat.",
        "There isn't a cat.",
        "A cat might join them.",  # supposed
        "Dogs often chase cats.",  # in general
        "They run over the grass beneath the trees.",  # trees are not in the list of things
    ],
)
def test_what_is_told_of_or_not_claimed_may_be_said(answer: str) -> None:
    assert code_of(one("What is there?", answer)) is None


def test_a_question_claims_too_unless_it_is_answered_with_no() -> None:
    assert code_of(one("What colour is the cat?", "It is grey.")) == "unsupported"
    assert code_of(one("Is there a cat in the picture?", "No, only dogs.")) is None
    assert code_of(one("Is there a cat in the picture?", "Yes.")) == "unsupported"


def test_our_own_examples_are_held_to_the_same_rules() -> None:
    for kind in Kind:
        for line in (OWN / kind / "examples.jsonl").read_text("utf-8").splitlines():
            example = json.loads(line)
            boxes = tuple(Box(box["category"], tuple(box["box"])) for box in example.get("boxes", ()))
            item = Item("example", "", tuple(example["captions"]), boxes)
            assert code_of(example["answer"], kind, item) is None


def test_there_are_as_many_examples_and_paraphrases_as_the_paper_had() -> None:
    prompts = read_prompts()
    assert [len(prompts.opening[kind]) // 2 for kind in Kind] == [2, 3, 3]
    assert len(set(prompts.descriptions)) == 16


def test_a_users_files_replace_ours_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    write_prompts(folder)
    assert read_prompts(folder) == read_prompts()
    (folder / "leaks.txt").unlink()
    (folder / "detail" / "system.txt").write_text("Describe it in verse.", "utf-8")
    changed = read_prompts(folder)
    assert changed.opening[Kind.DETAIL][0]["content"] == "Describe it in verse."
    assert changed.opening[Kind.REASONING] == read_prompts().opening[Kind.REASONING]
    assert changed.digest != read_prompts().digest


def test_a_file_of_a_name_that_is_not_known_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sytem.txt").write_text("x", "utf-8")
    with pytest.raises(DataError, match=r"sytem\.txt"):
        read_prompts(tmp_path)


def test_an_example_that_breaks_its_own_form_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conversation").mkdir()
    (tmp_path / "conversation" / "examples.jsonl").write_text('{"captions": ["a"], "answer": "b"}\n', "utf-8")
    with pytest.raises(DataError, match="line 1"):
        read_prompts(tmp_path)


def words(draw: random.Random, count: int) -> list[str]:
    return [f"w{draw.randrange(2000)}" for _ in range(count)]


def test_near_duplicates_are_found_and_others_are_not() -> None:
    draw = random.Random(0)
    texts = [words(draw, 100) for _ in range(300)]
    check = NearDuplicates(1000)
    assert [check.add(str(at), " ".join(text)) for at, text in enumerate(texts)] == [None] * 300
    for at, text in enumerate(texts):
        changed = [*text]
        changed[50] = "another"  # 3 of 98 runs of words: 95/101 in common
        assert check.add("copy", " ".join(changed)) == str(at)
    for text in texts:
        half = " ".join(text[:50] + words(draw, 50))
        assert check.add("half", half) is None


def test_memory_of_the_duplicate_check_does_not_grow_with_texts() -> None:
    draw = random.Random(0)
    check = NearDuplicates(200)
    tracemalloc.start()
    for at in range(200):
        check.add(str(at), " ".join(words(draw, 30)))
    before = tracemalloc.get_traced_memory()[0]
    for at in range(2000):
        check.add(str(at), " ".join(words(draw, 30)))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000


@given(st.integers(0, 100_000))
def test_shares_add_up_and_are_as_close_as_whole_numbers_can_be(total: int) -> None:
    counts = counts_by_share(total)
    assert sum(counts.values()) == total
    for kind, count in counts.items():
        assert abs(count - total * SHARES[kind] / 158) < 1


@given(st.integers(1, 3000))
def test_the_greatest_total_is_the_greatest(items: int) -> None:
    most = greatest_total(items)
    assert max(counts_by_share(most).values()) <= items
    assert all(max(counts_by_share(most + more).values()) > items for more in range(1, 10))


def test_the_papers_numbers_come_out() -> None:
    assert counts_by_share(158_000) == {Kind.CONVERSATION: 58_000, Kind.DETAIL: 23_000, Kind.REASONING: 77_000}
