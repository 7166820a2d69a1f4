"""What we write loads whole in each release of transformers and answers there as here, on the same pictures in fp32.

`make test-transformers` runs this against several releases, one after the other: from 4.53 on all holds, and
docs/checkpoints.md says what 4.50 to 4.52 do otherwise. The checkpoints are what a user
can have made with Tephra: exported, brought in from elsewhere, saved by training, and the demo.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from deploy.demo.assemble import demo_checkpoint
from model.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoint.export import export_for_transformers, export_original
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.plan import write_checkpoint
from model.generations import LLAVA_1_5, LLAVA_NEXT_2024_01, LLAVA_NEXT_2024_05, MODEL_CARD_GRIDS
from model.tiny import make_tiny_checkpoint
from training.scenes import MIXES, Composer, drawn_catalogue
from training.scenes.scene import Layout

pytestmark = [pytest.mark.transformers, pytest.mark.timeout(1800)]

LOGITS = 1e-4  # absolute; logits span about +-10
SIZES = {
    "square": [(112, 112)],
    "wide": [(300, 200)],
    "tall": [(90, 400)],
    "two": [(64, 64), (200, 50)],
    "none": [],
}
JANUARY = replace(LLAVA_NEXT_2024_01, rounding="round7")
MAY = replace(LLAVA_NEXT_2024_05, rounding="round7")


def exported(folder: Path, template: str | None = None, **tiny: Any) -> Path:
    export_for_transformers(
        make_tiny_checkpoint(folder / "tiny", seed=3, **tiny), folder / "exported", template=template
    )
    return folder / "exported"


def imported_from_the_original_layout(folder: Path) -> Path:
    tiny = make_tiny_checkpoint(folder / "tiny", seed=3, generation=JANUARY)
    export_original(tiny, folder / "original")
    (folder / "tower").mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        told = json.loads((tiny / file).read_text("utf-8"))
        (folder / "tower" / file).write_text(json.dumps(told.get("vision_config", told)), "utf-8")
    options = ImportOptions(vision_tower=folder / "tower", template="v1")
    write_checkpoint(plan_import(folder / "original", options), folder / "imported")
    return folder / "imported"


def imported_from_transformers_5(folder: Path) -> Path:
    tiny = make_tiny_checkpoint(folder / "tiny", seed=3, kind="llava_next", vision="siglip", text="mistral")
    AutoModelForImageTextToText.from_pretrained(tiny).save_pretrained(folder / "saved")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / "saved")
    for file in ("preprocessor_config.json", "processor_config.json"):
        (folder / "saved" / file).write_bytes((tiny / file).read_bytes())
    write_checkpoint(plan_import(folder / "saved"), folder / "imported")
    return folder / "imported"


def saved_by_training(folder: Path) -> Path:
    source = exported(folder, kind="llava", text="qwen2")
    tensors = load_checkpoint(source, dtype=torch.float32).model.state_dict()
    moved = {"multi_modal_projector.linear_1.bias": tensors["multi_modal_projector.linear_1.bias"] + 0.1}
    return save_checkpoint(moved, source, folder / "saved", dtype=torch.float32)


CHECKPOINTS: Mapping[str, Callable[[Path], Path]] = {
    "1.5": lambda folder: exported(folder, "v1", generation=LLAVA_1_5),
    "next-2024-01": lambda folder: exported(folder, "mistral", generation=JANUARY, text="mistral"),
    "next-2024-01, the model card's canvases": lambda folder: exported(
        folder, "llama_3", generation=replace(JANUARY, grids=MODEL_CARD_GRIDS)
    ),
    "next-2024-05": lambda folder: exported(folder, "qwen_1_5", generation=MAY),
    "next-2024-05, relu, four tiles": lambda folder: exported(
        folder, "chatml", generation=replace(MAY, activation="relu", max_tiles=4)
    ),
    "from the original layout": imported_from_the_original_layout,
    "from transformers 5": imported_from_transformers_5,
    "saved by training": saved_by_training,
}


@dataclass(frozen=True)
class Asked:
    """One checkpoint in both, and what the release answered."""

    pair: Any
    questions: Mapping[str, Any]
    answers: Any
    tokens: int


@pytest.fixture(scope="module", params=CHECKPOINTS)
def asked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_pair: Any,
    picture: Any,
    ask_release: Any,
    new_question: Any,
) -> Asked:
    folder = tmp_path_factory.mktemp("asked")
    checkpoint = CHECKPOINTS[request.param](folder)
    questions = {
        name: new_question(tuple(picture(*size) for size in sizes), "What is this?") for name, sizes in SIZES.items()
    }
    return Asked(make_pair(checkpoint, torch.float32), questions, ask_release(checkpoint, questions, 8, folder), 8)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, make_pair: Any, ask_release: Any, new_question: Any) -> Asked:
    folder = tmp_path_factory.mktemp("demo")
    composer = Composer(drawn_catalogue(), "test", 0, MIXES["instruct"], cache_dir=folder)
    questions = {}
    for layout in (Layout.SHAPES, Layout.COUNTING, Layout.READING):
        scene, stream = composer.scene_of(layout, 0), io.BytesIO()
        scene.picture.save(stream, "PNG")
        questions[layout.name] = new_question((stream.getvalue(),), scene.turns[0].question)
    answers = ask_release(demo_checkpoint(), questions, 24, folder)
    return Asked(make_pair(demo_checkpoint(), torch.float32), questions, answers, 24)


def assert_loaded_whole(asked: Asked) -> None:
    report = asked.answers.report
    assert not any(report["loading"].values()), report["loading"]
    assert report["complaints"] == []
    kind = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}
    expected = ["ForConditionalGeneration", "Processor", "ImageProcessor"]
    assert report["classes"] == [kind[asked.pair.ours.config.kind] + part for part in expected]


@torch.inference_mode()
def assert_same_answer(asked: Asked, name: str) -> None:
    question, pair = asked.questions[name], asked.pair
    theirs = {part: asked.answers.tensors.get(f"{name}/{part}") for part in ("pixel_values", "logits", "generated")}
    ids, images = pair.asked(list(question.pictures), question.text)
    assert asked.answers.tensors[f"{name}/input_ids"][0].tolist() == ids.tolist()
    for index, image in enumerate(images):
        pixels = theirs["pixel_values"][index]
        pixels = pixels[: image.layout.tiles] if pixels.dim() == 4 else pixels[None]
        assert torch.equal(pixels, image.pixels)
    whole = pair.logits([(torch.cat([ids, theirs["generated"]]), images)])
    difference = float((whole[: len(ids)] - theirs["logits"]).abs().max())
    print(f"largest difference {difference:.1e}")
    assert difference <= LOGITS
    # Each token that they wrote is the one that we would write behind those before it.
    assert whole[len(ids) - 1 : -1].argmax(-1).tolist() == theirs["generated"].tolist()
    ended = [int(token) in pair.ours.prompter.stop_token_ids for token in theirs["generated"]]
    assert not any(ended[:-1]) and (ended[-1] or len(ended) == asked.tokens)


def test_a_checkpoint_loads_whole_and_without_complaint(asked: Asked) -> None:
    assert_loaded_whole(asked)


@pytest.mark.parametrize("name", SIZES)
def test_prompt_pixels_logits_and_greedy_tokens_are_ours(asked: Asked, name: str) -> None:
    assert_same_answer(asked, name)


def test_the_demo_loads_whole_and_answers_as_here(demo: Asked) -> None:
    assert_loaded_whole(demo)
    for name in demo.questions:
        assert_same_answer(demo, name)
