"""Published formats become conversations of the family; what does not fit is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.checkpoint import Checkpoint, load_checkpoint
from model.tiny import make_tiny_checkpoint
from training.data.batches import ExampleSet
from training.data.conversations import read_conversations
from training.data.convert import CONVERTERS, Boxes, CocoYear, Report, Settings, convert
from training.data.convert.base import Exchange
from training.data.convert.conversations import Layout
from training.data.convert.regions import box_text
from training.data.errors import DataError
from training.data.rows import OnBad

Files = dict[str, dict[str, Path]]
FORMATS = sorted(CONVERTERS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), dtype=torch.float32)


def converted(name: str, files: Files, folder: Path, **chosen: Any) -> list[dict[str, Any]]:
    out = folder / f"{name}.json"
    convert(CONVERTERS[name], files[name], out, Settings(**chosen))
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows


def said(row: dict[str, Any]) -> list[str]:
    return [turn["value"] for turn in row["conversations"]]


def test_every_format_of_the_mixes_has_a_converter() -> None:
    of_665k = {"vqav2", "gqa", "okvqa", "aokvqa", "ocrvqa", "textcaps", "refcoco", "visual-genome", "sharegpt"}
    of_next = {"docvqa", "chartqa", "dvqa", "ai2d", "syndog", "sharegpt4v"}
    assert set(FORMATS) == of_665k | of_next | {"coco-captions", "scienceqa"}


@pytest.mark.parametrize("name", FORMATS)
def test_the_trainer_learns_every_answer_of_what_is_written(
    name: str, published: Files, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    rows = converted(name, published, tmp_path)
    for row in rows:
        if "image" in row:
            (tmp_path / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10), "red").save(tmp_path / row["image"])
    read = read_conversations(tmp_path / f"{name}.json", tmp_path)
    examples = ExampleSet(read, checkpoint.prompter, checkpoint.preprocessor, view="base", max_length=8192)
    assert len(rows) == len(examples) > 0
    for row, place in zip(rows, range(len(examples)), strict=True):
        example = examples[place]
        learned = checkpoint.prompter.tokenizer.decode(example.token_ids[example.supervised])
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        assert learned == "".join(answer + "<|im_end|>" for answer in answers)


def test_vqav2_asks_all_questions_of_a_picture_in_one_conversation(published: Files, tmp_path: Path) -> None:
    first, second = converted("vqav2", published, tmp_path)
    assert said(first) == [
        "<image>\nWhat is it?\nAnswer the question using a single word or phrase.",
        "cat",
        "Is it red?",
        "no",
    ]
    assert first["image"] == "coco/train2017/000000000009.jpg" and first["id"] == "vqav2/000000000009"
    assert said(second)[1] == "2"


def test_the_format_can_be_said_behind_every_question(published: Files, tmp_path: Path) -> None:
    first, _ = converted("vqav2", published, tmp_path, every=True)
    assert said(first)[2] == "Is it red?\nAnswer the question using a single word or phrase."


def test_coco_files_are_named_as_of_either_year(published: Files, tmp_path: Path) -> None:
    rows = converted("vqav2", published, tmp_path, coco=CocoYear.Y2014, images="coco/train2014")
    assert rows[0]["image"] == "coco/train2014/COCO_train2014_000000000009.jpg"


def test_okvqa_takes_the_most_frequent_answer_and_the_first_of_equals(published: Files, tmp_path: Path) -> None:
    first, _ = converted("okvqa", published, tmp_path)
    assert said(first)[1::2] == ["cat", "no"]


def test_aokvqa_asks_once_per_choice_and_every_letter_is_right_once(published: Files, tmp_path: Path) -> None:
    rows = converted("aokvqa", published, tmp_path)
    assert [said(row)[1] for row in rows] == ["B", "A", "D", "C"]
    assert said(rows[0])[0] == (
        "<image>\nWhat is it?\nA. cat\nB. dog\nC. cow\nD. hen\n"
        "Answer with the option's letter from the given choices directly."
    )
    for row in rows:
        options = dict(line.split(". ") for line in said(row)[0].split("\n")[2:6])
        assert options[said(row)[1]] == "dog"


def test_other_splits_are_left_out_and_counted(published: Files, tmp_path: Path) -> None:
    report = convert(CONVERTERS["ocrvqa"], published["ocrvqa"], tmp_path / "o.json")
    assert (report.rows, report.exchanges, dict(report.left_out)) == (1, 2, {"of another split": 1})


def test_textcaps_gives_the_words_that_were_recognised(published: Files, tmp_path: Path) -> None:
    (row,) = converted("textcaps", published, tmp_path)
    assert said(row)[0] == (
        "<image>\nProvide a one-sentence caption for the provided image.\nReference OCR token: STOP, NOW"
    )
    assert said(row)[1] in {f"A sign {n}." for n in range(5)}


def test_refcoco_is_cut_into_conversations_of_under_ten_with_boxes_in_the_padded_square(
    published: Files, tmp_path: Path
) -> None:
    rows = converted("refcoco", published, tmp_path)
    assert [len(row["conversations"]) // 2 for row in rows] == [9, 3]
    assert [row["id"] for row in rows] == ["refcoco/000000000009-1", "refcoco/000000000009-2"]
    text = json.dumps(rows)
    assert "[0.1, 0.3, 0.6, 0.55]" in text  # (10 + 50) / 200 and (10 + 50 + 50) / 200
    assert "Please provide a short description for this region: [0.1, 0.3" in text and '"Red thing' in text
    assert "bounding box coordinate of the region this sentence describes: red thing" in text
    assert "kept apart" not in text


def test_refcoco_reads_the_same_from_json(published: Files, tmp_path: Path) -> None:
    as_pickle = converted("refcoco", published, tmp_path)
    refs = pickle.loads(published["refcoco"]["refs"].read_bytes())
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    files = {"refcoco": {**published["refcoco"], "refs": tmp_path / "refs.json"}}
    assert converted("refcoco", files, tmp_path) == as_pickle


def test_a_pickle_that_would_call_something_is_refused(published: Files, tmp_path: Path) -> None:
    published["refcoco"]["refs"].write_bytes(pickle.dumps(print))
    with pytest.raises(DataError, match=r"names builtins\.print"):
        converted("refcoco", published, tmp_path)


def test_visual_genome_draws_ten_regions_by_seed(published: Files, tmp_path: Path) -> None:
    (row,) = converted("visual-genome", published, tmp_path)
    assert len(row["conversations"]) == 20 and row["image"] == "vg/VG_100K_2/1.jpg"
    assert converted("visual-genome", published, tmp_path) == [row]
    assert converted("visual-genome", published, tmp_path, seed=1) != [row]
    assert "[0.3, 0.1, 0.45, 0.3]" in json.dumps(row)  # (10 + 50) / 200, 20 / 200


def test_scienceqa_answers_with_lecture_solution_and_letter(published: Files, tmp_path: Path) -> None:
    first, second = converted("scienceqa", published, tmp_path)
    assert said(first) == [
        "<image>\nWhich?\nContext: It burns.\nOptions: (A) ice (B) fire",
        "On heat. Fire burns. The answer is B.",
    ]
    assert first["image"] == "scienceqa/images/train/1/image.png"
    assert "image" not in second and said(second)[1] == "The answer is A."


def test_sharegpt_begins_with_a_question_and_ends_with_an_answer(published: Files, tmp_path: Path) -> None:
    (row,) = converted("sharegpt", published, tmp_path)
    assert said(row) == ["Hi", "Hello."] and "image" not in row


def test_sharegpt4v_puts_the_picture_first(published: Files, tmp_path: Path) -> None:
    (row,) = converted("sharegpt4v", published, tmp_path)
    assert said(row)[0] == "<image>\nWhat do you see?" and row["image"] == "coco/train2017/9.jpg"


def test_documents_and_charts_are_asked_for_short_answers(published: Files, tmp_path: Path) -> None:
    short = "\nAnswer the question using a single word or phrase."
    (page,) = converted("docvqa", published, tmp_path)
    assert said(page) == ["<image>\nwhat is the date?" + short, "1/8/93"]
    (chart,) = converted("chartqa", published, tmp_path)
    assert said(chart) == ["<image>\nHow many?" + short, "14", "Which?", "Blue"]
    (bars,) = converted("dvqa", published, tmp_path)
    assert said(bars) == ["<image>\nHow many bars?" + short, "two"]


def test_ai2d_takes_lettered_drawings_and_keeps_the_test_set_apart(published: Files, tmp_path: Path) -> None:
    report = convert(CONVERTERS["ai2d"], published["ai2d"], tmp_path / "a.json")
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["image"] for row in rows] == ["ai2d/abc_images/0.png", "ai2d/images/0.png"]
    assert dict(report.left_out) == {"kept for testing": 1}
    assert said(rows[0])[1] == "B" and "A. ear\nB. nose\n" in said(rows[0])[0]


def test_a_page_of_syndog_is_read_out(published: Files, tmp_path: Path) -> None:
    (row,) = converted("syndog", published, tmp_path)
    assert said(row)[1] == "Once upon a time." and row["image"] == "synthdog/image_0.jpg"


def test_one_caption_of_a_picture_is_drawn(published: Files, tmp_path: Path) -> None:
    (row,) = converted("coco-captions", published, tmp_path)
    assert said(row)[1] in {f"A cat {n}." for n in range(5)}
    assert len(converted("coco-captions", published, tmp_path, draw=5)[0]["conversations"]) == 10


BROKEN: list[tuple[str, str, Any, str]] = [
    ("gqa", "questions", {"7": {"question": "Q?", "imageId": "1"}}, "questions.json: 7: no answer"),
    ("gqa", "questions", {"7": {"question": "", "imageId": "1", "answer": "a"}}, "7: the question is empty"),
    ("gqa", "questions", {"7": {"question": "<image>?", "imageId": "1", "answer": "a"}}, "holds <image>"),
    ("ocrvqa", "dataset", {"7": {"split": 1, "questions": ["a", "b"], "answers": ["c"]}}, "2 questions, 1 answers"),
    (
        "dvqa",
        "questions",
        [{"question": "Q", "image": "a.png", "answer": 2}],
        "row 1: answer: expected text, found int",
    ),
    ("vqav2", "annotations", {"annotations": []}, "question 90 has no annotation"),
    ("aokvqa", "questions", [{"split": "train", "question": "q", "choices": []}], "choices: expected a list of texts"),
    ("sharegpt", "conversations", [{"id": 1, "conversations": [{"from": "bing", "value": "x"}]}], "nobody is called"),
    ("scienceqa", "problems", {"1": {"split": "train", "choices": ["a"], "answer": 3}}, "answer: 3 of 1 choices"),
    ("visual-genome", "images", [{"image_id": 1}], "images.json: row 1: no url"),
]


@pytest.mark.parametrize(("name", "role", "content", "message"), BROKEN)
def test_a_bad_entry_is_named_with_its_file_and_place(
    name: str, role: str, content: Any, message: str, published: Files, tmp_path: Path
) -> None:
    published[name][role].write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        converted(name, published, tmp_path)
    assert not (tmp_path / f"{name}.json").exists()


def test_bad_entries_are_rejected_with_reasons_and_the_rest_is_written(published: Files, tmp_path: Path) -> None:
    file = published["dvqa"]["questions"]
    file.write_text(json.dumps([{"question": "Q", "image": "a.png", "answer": 2}, *json.loads(file.read_text())]))
    out = tmp_path / "d.jsonl"
    report = convert(CONVERTERS["dvqa"], published["dvqa"], out, on_bad=OnBad.REJECT)
    assert (report.rows, report.rejected) == (1, 1)
    (reject,) = map(json.loads, (tmp_path / "d.jsonl.rejects.jsonl").read_text().splitlines())
    assert reject["where"] == f"{file}: row 1" and reject["reason"] == "answer: expected text, found int"


def test_a_dry_run_writes_nothing_and_names_pictures_that_are_missing(published: Files, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    report: Report = convert(
        CONVERTERS["vqav2"], published["vqav2"], folder / "v.json", image_folder=tmp_path, dry_run=True
    )
    assert not folder.exists()
    assert (report.rows, report.missing) == (2, 2)
    assert report.missing_names[0] == "coco/train2017/000000000009.jpg" and len(report.samples) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [({"questions": Path("q")}, r"missing annotations \(v2_mscoco"), ({"question": Path("q")}, "missing questions")],
)
def test_files_that_a_format_needs_are_asked_for(files: dict[str, Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        convert(CONVERTERS["vqav2"], files, tmp_path / "v.json")


@given(
    sides=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    box=st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.01, 1)] * 2),
    boxes=st.sampled_from(Boxes),
)
def test_a_box_lies_in_the_unit_square_and_keeps_its_order(
    sides: tuple[int, int], box: tuple[float, ...], boxes: Boxes
) -> None:
    width, height = sides
    pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    left, top, right, bottom = json.loads(box_text(pixels, width, height, boxes))
    assert 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1


@given(
    count=st.integers(1, 40),
    draw=st.integers(1, 50) | st.none(),
    turns=st.integers(1, 12) | st.none(),
    every=st.booleans(),
)
@settings(max_examples=50)
def test_no_question_is_lost_or_asked_twice(count: int, draw: int | None, turns: int | None, every: bool) -> None:
    layout = Layout(CONVERTERS["vqav2"], Settings(draw=draw, turns=turns, every=every))
    exchanges = tuple(Exchange(f"q{n}", f"a{n}", "Briefly.") for n in range(count))
    rows = list(layout.rows("x", "a.png", exchanges))
    turns_of = [turn for row in rows for turn in row["conversations"]]
    pairs = list(zip(turns_of[::2], turns_of[1::2], strict=True))
    asked = [ask["value"].removeprefix("<image>\n").split("\n")[0] for ask, _ in pairs]
    assert [answer["value"].replace("a", "q") for _, answer in pairs] == asked
    assert len(set(asked)) == len(asked) == min(count, draw or count) and layout.left_out == count - len(asked)
    assert all(len(row["conversations"]) <= 2 * (turns or count) for row in rows)
    assert all(said(row)[0].startswith("<image>\n") and said(row)[0].endswith("Briefly.") for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
