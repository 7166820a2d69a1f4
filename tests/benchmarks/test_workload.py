"""The same seed asks the same; what is to differ differs."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from benchmarks.pictures import PictureShelf, Size, picture_file
from benchmarks.workload import WARM_UP, Workload


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_picture_is_a_real_file_of_its_size_that_does_not_compress_to_nothing(kind: str) -> None:
    data = picture_file(Size(120, 70), kind, (0, 1))  # type: ignore[arg-type]
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size, picture.mode) == (kind.upper(), (120, 70), "RGB")
    assert len(data) > 120 * 70 / 2
    assert data == picture_file(Size(120, 70), kind, (0, 1))  # type: ignore[arg-type]


def test_pictures_differ_in_their_pixels_by_number_and_by_seed() -> None:
    seeds = [(0, 1), (0, 2), (1, 1)]
    pixels = {Image.open(io.BytesIO(picture_file(Size(32, 32), "jpeg", seed))).tobytes() for seed in seeds}
    assert len(pixels) == 3


def test_a_shelf_gives_what_it_made_ahead_and_makes_what_it_lacks() -> None:
    shelf = PictureShelf((Size(40, 30), Size(20, 10)), "png", 5)
    shelf.prepare(range(3))
    ahead = [shelf.data_url(number) for number in range(3)]
    assert shelf.made_late == 0
    late = shelf.data_url(3)
    assert shelf.made_late == 1
    shelf.close()
    sizes = []
    for url in [*ahead, late]:
        head, data = url.split(",", 1)
        assert head == "data:image/png;base64"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == [(40, 30), (20, 10), (40, 30), (20, 10)]
    assert len(set(ahead)) == 3


def test_distinct_repeated_and_no_pictures() -> None:
    distinct, repeated, none = (Workload(images=kind, pool=2) for kind in ("distinct", "repeated", "none"))
    assert [distinct.picture_number(i) for i in range(4)] == [0, 1, 2, 3]
    assert [repeated.picture_number(i) for i in range(4)] == [0, 1, 0, 1]
    assert [none.picture_number(i) for i in range(4)] == [None] * 4
    assert repeated.picture_number(WARM_UP) == WARM_UP  # so that the first measured request still meets a new one
    assert [len(workload.pictures(9)) for workload in (distinct, repeated, none)] == [9, 2, 0]


def test_questions_have_their_length_and_none_begins_like_another() -> None:
    workload = Workload(prompt_words=12)
    questions = [workload.question(conversation, turn) for conversation in range(50) for turn in range(2)]
    assert {len(question.split()) for question in questions} == {12}
    assert len({" ".join(question.split()[:6]) for question in questions}) == 100
    assert questions[3] == Workload(prompt_words=12).question(1, 1)
    assert questions[3] != Workload(prompt_words=12, seed=1).question(1, 1)


def test_a_later_turn_holds_the_picture_once_and_all_that_was_said() -> None:
    workload = Workload(turns=3)
    messages = workload.messages(4, ["one", "two"], "data:image/png;base64,AAAA")
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"][0] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert messages[0]["content"][1] == {"type": "text", "text": workload.question(4, 0)}
    assert [message["content"] for message in messages[1:]] == [
        "one",
        workload.question(4, 1),
        "two",
        workload.question(4, 2),
    ]


@pytest.mark.parametrize("text", ["1x", "0x5", "axb", "5x5x5", "99999x1", "-1x4"])
def test_a_size_that_is_none_is_refused_with_words(text: str) -> None:
    with pytest.raises(ValueError, match="expected WIDTHxHEIGHT"):
        Size.parse(text)


@pytest.mark.parametrize("wrong", [{"turns": 0}, {"max_tokens": 0}, {"prompt_words": 0}, {"pool": 0}, {"sizes": ()}])
def test_a_workload_that_asks_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        Workload(**wrong)  # type: ignore[arg-type]
