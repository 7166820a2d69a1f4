"""A whole stage on a tiny checkpoint: what trains, what it costs, what it leaves behind."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.checkpoint import load_checkpoint
from model.checkpoint.files import read_json
from model.checkpoint.load import load_model
from model.config import LlavaConfig
from model.tiny import make_tiny_checkpoint
from training.data.batches import ExampleSet, collate
from training.data.conversations import read_conversations
from training.objective import Objective
from training.parts import PartsError, describe, load_parts, prepare_parts, save_parts
from training.recipes.recipe import DataPlan, PartPlan, Recipe
from training.schedule import cosine_with_warmup
from training.train import RecipeError, find_recipe, train
from training.trainer import TrainingError

COLOURS = ("red", "green", "blue", "white")
RECIPE = Recipe(
    name="small",
    purpose="a test",
    parts={
        "vision_tower": PartPlan(1e-2, lora_rank=4, lora_alpha=4),
        "connector": PartPlan(1e-2),
        "language_model": PartPlan(1e-2, lora_rank=8, lora_alpha=8),
    },
    data=DataPlan("rows.json", "."),
    view="base",
    batch=8,
    epochs=6,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index in range(40):
        colour = COLOURS[index % 4]
        Image.new("RGB", (60, 40), colour).save(folder / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": colour}]
        rows.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_stage_learns_and_writes_only_the_parts_it_trained(base: Path, data: Path, tmp_path: Path) -> None:
    train(RECIPE, base=base, data=data, runs=tmp_path, threads=1, loader_workers=0)
    curve = losses(tmp_path / "small")
    assert len(curve) == 30 and curve[-1] < curve[0] / 2
    files = {file.name for file in (tmp_path / "small").glob("*.safetensors")}
    assert files == {"connector.safetensors", "language_lora.safetensors", "vision_lora.safetensors"}
    assert json.loads((tmp_path / "small" / "summary.json").read_text())["steps"] == 30


def test_the_same_stage_twice_gives_the_same_bits(base: Path, data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1.0)
    for name in ("one", "two"):
        train(recipe, base=base, data=data, runs=tmp_path / name, threads=1, loader_workers=0)
    assert losses(tmp_path / "one" / "small") == losses(tmp_path / "two" / "small")
    for file in (tmp_path / "one" / "small").glob("*.safetensors"):
        one, two = load_file(file), load_file(tmp_path / "two" / "small" / file.name)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_later_stage_starts_from_the_one_before_and_carries_its_parts_on(
    base: Path, data: Path, tmp_path: Path
) -> None:
    train(RECIPE, base=base, data=data, runs=tmp_path, threads=1, loader_workers=0)
    later = replace(RECIPE, name="later", init_from="small", parts={"connector": PartPlan(1e-9)}, epochs=1.0)
    train(later, base=base, data=data, runs=tmp_path, threads=1, loader_workers=0)
    assert losses(tmp_path / "later")[0] < losses(tmp_path / "small")[0] / 2
    lora = "language_lora.safetensors"
    assert (tmp_path / "later" / lora).read_bytes() == (tmp_path / "small" / lora).read_bytes()


def test_a_stage_whose_predecessor_has_not_run_says_which(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="starts from before: run that first"):
        train(replace(RECIPE, init_from="before"), base=base, data=data, runs=tmp_path)


def test_two_processes_take_the_steps_of_one(base: Path, data: Path, tmp_path: Path) -> None:
    program = (
        "import dataclasses, sys; from pathlib import Path; from training.train import train;"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_stage import RECIPE;"
        f"train(dataclasses.replace(RECIPE, epochs=1.0), base=Path({str(base)!r}), data=Path({str(data)!r}),"
        f" runs=Path(sys.argv[1]), threads=1, loader_workers=0)"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    for name, processes in (("one", 1), ("two", 2)):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run([*launch, str(script), str(tmp_path / name)], check=True, capture_output=True, timeout=110)
    one, two = losses(tmp_path / "one" / "small"), losses(tmp_path / "two" / "small")
    assert len(one) == len(two) == 5
    assert two == pytest.approx(one, rel=2e-2)  # bf16 sums in another order


def test_one_step_equals_a_plain_computation_in_fp32(base: Path, data: Path) -> None:
    """Loss and connector gradients of a flat batch against transformers, row by row."""
    from transformers import AutoModelForImageTextToText

    checkpoint = load_checkpoint(base, dtype=torch.float32)
    rows = read_conversations(data / "rows.json", data)[:3]
    examples = [
        ExampleSet(rows, checkpoint.prompter, checkpoint.preprocessor, view="full", max_length=4096)[i]
        for i in range(3)
    ]
    parts = prepare_parts(checkpoint.model, {"connector": PartPlan(1e-3)})
    total = Objective(checkpoint.model)(collate(examples))
    total.backward()

    theirs = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    expected = torch.zeros(())
    for example in examples:
        assert example.image is not None
        size = torch.tensor([[example.image.layout.height, example.image.layout.width]])
        logits = theirs(
            input_ids=example.token_ids[None], pixel_values=example.image.pixels[None], image_sizes=size
        ).logits[0]
        labels = torch.where(example.supervised, example.token_ids, -100)
        expected = expected + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in checkpoint.model.named_parameters():
        if parameter.requires_grad:
            other = next(grad for key, grad in gradients.items() if key.endswith(name))
            assert parameter.grad is not None and torch.allclose(parameter.grad, other, rtol=1e-3, atol=1e-5), name
    assert {name for part in parts for name in [part.name]} == {"connector"}


def test_only_the_named_parts_train_and_it_is_said(base: Path) -> None:
    model = load_checkpoint(base, dtype=torch.float32).model
    parts = prepare_parts(model, {"connector": PartPlan(1e-3)})
    open_names = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert open_names == {"multi_modal_projector", "image_newline"}
    assert "connector" in describe(parts) and "frozen: vision_tower, language_model" in describe(parts)


def test_an_unknown_part_and_lora_on_the_connector_are_refused(base: Path) -> None:
    model = load_checkpoint(base, dtype=torch.float32).model
    with pytest.raises(PartsError, match="unknown parts"):
        prepare_parts(model, {"head": PartPlan(1e-3)})  # type: ignore[dict-item]
    with pytest.raises(PartsError, match="connector is trained whole"):
        prepare_parts(model, {"connector": PartPlan(1e-3, lora_rank=4)})


def test_a_lora_merged_into_the_weights_answers_as_it_does_apart(base: Path, data: Path, tmp_path: Path) -> None:
    config = LlavaConfig.from_hf(read_json(base / "config.json"))
    checkpoint = load_checkpoint(base, dtype=torch.float32)
    rows = read_conversations(data / "rows.json", data)[:2]
    batch = collate(
        [
            ExampleSet(rows, checkpoint.prompter, checkpoint.preprocessor, view="full", max_length=4096)[i]
            for i in range(2)
        ]
    )
    apart = load_model(base, config, "cpu", torch.float32)
    prepare_parts(apart, RECIPE.parts)
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter).bfloat16())
    save_parts(apart, RECIPE.parts, tmp_path)
    assert load_file(tmp_path / "vision_lora.safetensors")
    merged = load_model(base, config, "cpu", torch.float32)
    used = load_parts(merged, {}, tmp_path)
    assert used == ["connector.safetensors", "language_lora.safetensors", "vision_lora.safetensors"]
    with torch.inference_mode():
        plain = Objective(load_model(base, config, "cpu", torch.float32))(batch).item()
        assert Objective(merged)(batch).item() == pytest.approx(Objective(apart)(batch).item(), rel=2e-3)
        assert Objective(merged)(batch).item() != pytest.approx(plain, rel=1e-2)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    curve = [cosine_with_warmup(step, 100, 0.03) for step in range(100)]
    assert curve[0] < curve[2] == 1.0 and all(a >= b for a, b in pairwise(curve[3:]))
    assert curve[-1] < 0.01


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nothing", [], "no recipe 'nothing'; there are demo-see"),
        ("demo-align", ["batch"], "expected key=value"),
        ("demo-align", ["colour=red"], "with a key of batch"),
        ("demo-align", ["batch=many"], "'many' is no int"),
    ],
)
def test_a_wrong_recipe_or_override_says_what_there_is(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        find_recipe(name, overrides)


def test_overrides_change_the_recipe() -> None:
    recipe = find_recipe("demo-align", ["batch=4", "epochs=0.5"])
    assert (recipe.batch, recipe.epochs) == (4, 0.5)
