"""The demo's first stages: what each patch shows is known, and vision tower and connector learn it."""

import json
from pathlib import Path

import pytest
import torch

from model.tiny import make_tiny_checkpoint
from training.data.conversations import DataError
from training.recipes.recipe import DataPlan, PartPlan, SeeingRecipe
from training.scenes.dataset import write_dataset
from training.scenes.patches import IGNORED, MARKS, PatchClasses, View
from training.train import train

GRID = 8
WHOLE = View(0, 0, 80, 80)  # ten pixels a patch


def row(layout: str, name: str, box: list[float], edges: list[float] | None = None) -> dict[str, object]:
    return {"layout": layout, "objects": [{"name": name, "box": box, "edges": edges or []}]}


def labels(shown: dict[str, object], view: View = WHOLE) -> tuple[torch.Tensor, torch.Tensor, PatchClasses]:
    classes = PatchClasses([shown])
    what, marks = classes.labels(shown, view, GRID)
    return what.view(GRID, GRID), marks.view(GRID, GRID), classes


def test_a_thing_fills_the_ellipse_of_its_box_and_nothing_is_said_of_the_corners() -> None:
    what, _, classes = labels(row("single", "cat", [0, 0, 60, 60]))
    assert classes.names[what[2, 3]] == "cat" and classes.names[what[0, 7]] == "background"
    assert what[0, 0] == what[0, 5] == what[5, 0] == what[5, 5] == IGNORED
    assert (what == IGNORED).sum() + (what == classes.names.index("cat")).sum() == 36


@pytest.mark.parametrize(("box", "side"), [([0, 0, 60, 60], "left"), ([40, 10, 80, 50], "right")])
def test_each_thing_has_one_mark_in_its_middle(box: list[float], side: str) -> None:
    what, marks, classes = labels(row("single", "cat", box))
    middle = int((box[1] + box[3]) / 20), int((box[0] + box[2]) / 20)
    assert marks.nonzero().tolist() == [list(middle)] and MARKS[marks[middle]] == side
    assert classes.names[what[middle]] == "cat"


def test_a_thing_whose_middle_is_outside_of_the_view_bears_no_mark() -> None:
    what, marks, _ = labels(row("single", "cat", [0, 0, 60, 60]), View(40, 40, 80, 80))
    assert not marks.any() and (what > 0).any()


def test_letters_stand_where_they_are_printed_however_wide_they_are() -> None:
    what, marks, classes = labels(row("reading", "ilm", [0, 30, 80, 50], [0, 10, 20, 80]))
    read = [classes.names[label].removeprefix("letter ") for label in what[4]]
    assert read == ["i", "l", *"mmmmmm"]
    assert MARKS[marks[4, 0]] == MARKS[marks[4, 1]] == MARKS[marks[4, 5]] == "letter" and (marks > 0).sum() == 3


def test_letters_too_small_for_the_view_are_left_out() -> None:
    what, marks, _ = labels(row("small_print", "bread", [0, 30, 10, 33], [0, 2, 4, 6, 8, 10]))
    assert not marks.any() and set(what.unique().tolist()) == {0, IGNORED}
    what, marks, classes = labels(
        row("small_print", "bread", [0, 30, 10, 33], [0, 2, 4, 6, 8, 10]), View(0, 20, 10, 40)
    )
    assert "".join(classes.names[label][-1] for label in what[4] if label > 0).startswith("b") and marks.any()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vision="siglip")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "see", "train", 40, 0, "see", drawn_only=True, show_progress=False, processes=1)
    return folder


SEE = SeeingRecipe(
    name="see",
    purpose="a test",
    parts={"vision_tower": PartPlan(3e-3, lora_rank=8, lora_alpha=8)},
    data=DataPlan("see/train.json", "see"),
    head_rate=1e-2,
    batch=8,
    epochs=8,
)
NAME = SeeingRecipe(
    name="name",
    purpose="a test",
    init_from="see",
    parts={"connector": PartPlan(5e-3)},
    data=SEE.data,
    batch=8,
    epochs=4,
)


def test_vision_tower_and_then_connector_learn_and_are_saved(base: Path, data: Path, tmp_path: Path) -> None:
    for recipe in (SEE, NAME):
        train(recipe, base=base, data=data, runs=tmp_path, threads=1, loader_workers=0)
        losses = [json.loads(line)["loss"] for line in (tmp_path / recipe.name / "log.jsonl").read_text().splitlines()]
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    left = {file.name for file in (tmp_path / "name").glob("*.safetensors")}
    assert left == {"vision_lora.safetensors", "connector.safetensors"}
    assert not any(file.name.startswith("language") for file in tmp_path.rglob("*.safetensors"))


def test_rows_without_their_objects_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    (tmp_path / "see").mkdir()
    (tmp_path / "see" / "train.json").write_text('[{"image": "a.jpg", "layout": "single"}]')
    with pytest.raises(DataError, match=r"train\.json: not a data set of scenes with their objects"):
        train(SEE, base=base, data=tmp_path, runs=tmp_path / "runs", loader_workers=0)
