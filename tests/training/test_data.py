"""Rows in the LLaVA conversation format become labelled, flat batches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.checkpoint import Checkpoint, load_checkpoint
from model.tiny import make_tiny_checkpoint
from training.data.batches import ExampleSet, LengthGroupedSampler, collate
from training.data.conversations import DataError, read_conversations
from training.objective import Objective


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), dtype=torch.float32)


def talk(*turns: str, image: bool = True) -> list[dict[str, str]]:
    sides = ("human", "gpt")
    return [
        {"from": sides[i % 2], "value": ("<image>\n" if image and i == 0 else "") + text}
        for i, text in enumerate(turns)
    ]


def write_rows(folder: Path, rows: list[object], name: str = "rows.json") -> Path:
    file = folder / name
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    file.write_text(text)
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    return file


def examples(checkpoint: Checkpoint, folder: Path, rows: list[object], **options: object) -> ExampleSet:
    read = read_conversations(write_rows(folder, rows), folder)
    settings = {"view": "full", "max_length": 4096, **options}
    return ExampleSet(read, checkpoint.prompter, checkpoint.preprocessor, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_and_jsonl_hold_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": "x", "image": "a.png", "conversations": talk("q", "a")},
        {"conversations": talk("hi", "yo", image=False)},
    ]
    read = read_conversations(write_rows(tmp_path, rows, name), tmp_path)
    assert read[0].id == "x" and [row.image for row in read] == [tmp_path / "a.png", None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1}, "row 1: expected an object with a list of conversations"),
        ({"conversations": talk("q", "a")}, "row 1: 1 image places in the text, 0 images"),
        ({"image": "a.png", "conversations": talk("q", "a", image=False)}, "0 image places in the text, 1 images"),
        ({"image": ["a.png"], "conversations": talk("q", "a")}, "image must be one file name"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "no answer to learn from"),
        ({"conversations": [{"from": "robot", "value": "q"}]}, "a turn needs from"),
        ("text", "expected an object"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_conversations(write_rows(tmp_path, [row]), tmp_path)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[{")
    with pytest.raises(DataError, match=r"rows\.json: not valid JSON"):
        read_conversations(tmp_path / "rows.json", tmp_path)


def test_a_missing_picture_stops_with_the_rows_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    data = examples(checkpoint, tmp_path, [{"id": "lost", "image": "gone.png", "conversations": talk("q", "a")}])
    with pytest.raises(DataError, match="row lost"):
        data[0]


def test_a_row_that_is_too_long_stops_with_the_numbers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [{"id": "long", "conversations": talk("q" * 300, "a", image=False)}]
    with pytest.raises(DataError, match=r"row long: .* more than max_length 100"):
        examples(checkpoint, tmp_path, rows, max_length=100)[0]


def test_the_base_view_leaves_the_tiles_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [{"image": "a.png", "conversations": talk("q", "a")}]
    full = examples(checkpoint, tmp_path, rows)[0]
    base = examples(checkpoint, tmp_path, rows, view="base")[0]
    assert base.image is not None and full.image is not None
    assert base.image.layout.tiles == 1 < full.image.layout.tiles
    assert torch.equal(base.image.pixels[0], full.image.pixels[0])


def test_a_batch_predicts_exactly_the_answers_of_its_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "conversations": talk("what?", "a cat", "sure?", "yes")},
        {"conversations": talk("hi", "hello", image=False)},
    ]
    data = examples(checkpoint, tmp_path, rows)
    batch = collate([data[0], data[1]])
    said = checkpoint.prompter.tokenizer.decode(batch.targets)
    assert said == "a cat<|im_end|>yes<|im_end|>hello<|im_end|>"
    assert torch.equal(batch.token_ids[batch.predictors + 1], batch.targets)
    assert batch.positions.tolist() == [*range(batch.lengths[0]), *range(batch.lengths[1])]
    assert len(batch.images) == 1


def test_every_rank_takes_its_own_share_of_the_same_order() -> None:
    lengths = [i % 17 for i in range(100)]
    whole = list(LengthGroupedSampler(lengths, 8, seed=1, rank=0, world=1))
    shares = [list(LengthGroupedSampler(lengths, 8, seed=1, rank=rank, world=2)) for rank in range(2)]
    assert len(whole) == 12 and all(len(batch) == 8 for batch in whole)
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(first + second) == sorted(batch)


def test_the_order_is_a_function_of_seed_and_epoch_and_takes_no_row_twice() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = LengthGroupedSampler([1] * 64, 8, seed=seed, rank=0, world=1)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)
    assert sorted(i for batch in order(1, 0) for i in batch) == list(range(64))


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="9 cannot be shared evenly by 2"):
        LengthGroupedSampler([1] * 20, 9, seed=0, rank=0, world=2)


def independent(*turns: str, image: bool = True) -> dict[str, object]:
    row: dict[str, object] = {"id": "i", "conversations": talk(*turns, image=image), "turns": "independent"}
    return row | ({"image": "a.png"} if image else {})


TURNS = ("What is this?", "A cat.", "What colour is it?", "Red, mostly.", "Is it a dog?", "No.")


@pytest.mark.parametrize("image", [True, False])
def test_independent_turns_cost_what_they_would_cost_in_conversations_of_their_own(
    checkpoint: Checkpoint, tmp_path: Path, image: bool
) -> None:
    rows = [independent(*TURNS, image=image), independent("Why?", "So.", "Who?", "Nobody at all.", image=image)]
    together = collate(list(examples(checkpoint, tmp_path, rows)))
    pairs = [
        turns[i : i + 2]
        for turns in (TURNS, ("Why?", "So.", "Who?", "Nobody at all."))
        for i in range(0, len(turns), 2)
    ]
    alone = [{"conversations": talk(*pair, image=image)} | ({"image": "a.png"} if image else {}) for pair in pairs]
    apart = collate(list(examples(checkpoint, tmp_path, alone)))
    assert sorted(together.targets.tolist()) == sorted(apart.targets.tolist())
    assert len(together.token_ids) < len(apart.token_ids)
    objective = Objective(checkpoint.model)
    with torch.no_grad():
        torch.testing.assert_close(objective(together), objective(apart), rtol=1e-5, atol=1e-4)


def test_an_answer_does_not_see_other_independent_answers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def loss_of_last(first_answer: str) -> float:
        batch = collate(list(examples(checkpoint, tmp_path, [independent("One?", first_answer, "Two?", "Yes.")])))
        chosen = batch.branches[batch.predictors] == 2  # type: ignore[index]
        last = replace(batch, predictors=batch.predictors[chosen], targets=batch.targets[chosen])
        with torch.no_grad():
            return float(Objective(checkpoint.model)(last))

    assert loss_of_last("Yes.") == pytest.approx(loss_of_last("Something else, and long."), rel=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**independent("a", "b"), "turns": "apart"}, "turns is 'apart'"),
        (independent("a", "b", "c"), "questions, each with its answer"),
    ],
)
def test_independent_turns_that_make_no_sense_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, row: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(examples(checkpoint, tmp_path, [row]))
