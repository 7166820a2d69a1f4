"""verify says what is wrong in words, inspect says what there is, export refuses what others cannot do."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.export import export_for_transformers, export_original
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.plan import write_checkpoint
from model.checkpoint.summary import summarise
from model.checkpoint.verify import verify_checkpoint
from model.errors import CheckpointError
from model.generations import GENERATIONS
from model.prompts.templates import TEMPLATES
from model.tiny import make_tiny_checkpoint

VICUNA_WITHOUT_SYSTEM = (  # as templates in circulation have it
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} "
    "{% else %}ASSISTANT: {% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, originals: Callable) -> Path:
    """llava-1.5, imported: with a manifest, and Vicuna's template."""
    folder = tmp_path_factory.mktemp("sound")
    source = originals(make_tiny_checkpoint(folder / "tiny", generation="llava-1.5"), folder)
    return write_checkpoint(plan_import(source.path, ImportOptions(vision_tower=source.tower)), folder / "llava-1.5")


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "llava-1.5"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors")


HEAD = "language_model.lm_head.weight"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: edit_weights(f, **{HEAD: None}), f"1 tensor missing: {HEAD}"),
    "unexpected": (lambda f: edit_weights(f, extra=torch.ones(2)), "1 unexpected tensor: extra"),
    "misshapen": (
        lambda f: edit_weights(f, **{HEAD: torch.ones(320, 32)}),
        f"{HEAD} has shape [320, 32], config.json makes it [320, 64]",
    ),
    "mixed dtypes": (
        lambda f: edit_weights(f, **{HEAD: torch.ones(320, 64).half()}),
        "tensors are of several dtypes: float16, float32",
    ),
    "not finite": (
        lambda f: edit_weights(f, **{HEAD: torch.full((320, 64), torch.inf)}),
        f"{HEAD} holds NaN or infinite",
    ),
    "changed": (lambda f: edit_weights(f, **{HEAD: torch.ones(320, 64)}), f"{HEAD} is not the one that manifest.json"),
    "image token": (lambda f: edit(f / "config.json", image_token_index=400), "outside the vocabulary of 320"),
    "unknown image token": (
        lambda f: edit(f / "config.json", image_token_index=300),
        "does not know image_token_index 300",
    ),
    "stop token": (lambda f: edit(f / "generation_config.json", eos_token_id=[2, 900]), "eos_token_id 900 is beyond"),
    "no padding": (lambda f: edit(f / "preprocessor_config.json", do_pad=False), "do_pad is missing"),
    "stock CLIP processor": (
        lambda f: edit(f / "preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
        "CLIPImageProcessor does not pad",
    ),
    "strategy": (
        lambda f: edit(f / "processor_config.json", vision_feature_select_strategy="full"),
        "vision_feature_select_strategy must be default",
    ),
    "CLS count": (
        lambda f: edit(f / "processor_config.json", num_additional_image_tokens=0),
        "num_additional_image_tokens must be 1 for clip",
    ),
    "system prompt": (
        lambda f: (f / "chat_template.jinja").write_text(VICUNA_WITHOUT_SYSTEM),
        "the chat template leaves out the system prompt that the family was trained with",
    ),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "there is no chat template"),
    "template that breaks": (lambda f: (f / "chat_template.jinja").write_text("{% if %}"), "template"),
}


def test_nothing_is_found_in_a_sound_checkpoint(sound: Path) -> None:
    assert verify_checkpoint(sound) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_words(fault: str, checkpoint: Path) -> None:
    damage, words = FAULTS[fault]
    damage(checkpoint)
    assert any(words in finding.text for finding in verify_checkpoint(checkpoint)), verify_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ("llava-1.0", "no linear connector"),
        ("llava-1.5-hd", "do not lay images out as LLaVA-1.5-HD"),
        (replace(GENERATIONS["llava-next-2024-05"], max_tiles=4), "N of anyres_max_4 is not supported by vLLM"),
    ],
    ids=["linear", "hd", "N"],
)
def test_what_only_we_can_serve_is_told_as_such(generation: object, words: str, tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    assert [words in finding.text for finding in verify_checkpoint(tiny) if finding.kind == "elsewhere"] == [True]


@pytest.mark.parametrize("generation", ["llava-1.0", "llava-1.5-hd"])
def test_what_transformers_has_no_class_for_is_not_exported_to_it(generation: str, tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    with pytest.raises(CheckpointError, match="cannot be exported: transformers and vLLM"):
        export_for_transformers(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_to_transformers_tells_what_vllm_does_otherwise(tmp_path: Path) -> None:
    generation = replace(GENERATIONS["llava-next-2024-05"], max_tiles=4)
    notes = export_for_transformers(make_tiny_checkpoint(tmp_path / "tiny", generation=generation), tmp_path / "out")
    assert any("anyres_max_4 is not supported by vLLM" in note for note in notes)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["vision_aspect_ratio"]) == ("llava_onevision", "anyres_max_4")


def test_a_feature_that_the_original_code_cannot_take_is_not_exported(tmp_path: Path) -> None:
    generation = replace(GENERATIONS["llava-next-2024-05"], feature_layer=-2)
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    with pytest.raises(CheckpointError, match="the last layer that a SigLIP tower keeps"):
        export_original(tiny, tmp_path / "original")
    assert not (tmp_path / "original").exists()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_export_to_the_original_layout_comes_back_the_same(generation: str, tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation)
    export_original(tiny, tmp_path / "original")
    tower = tmp_path / "tower"  # the original says a tower's name only; its sizes come from its own config.json
    tower.mkdir()
    vision = json.loads((tiny / "config.json").read_text())["vision_config"]
    if vision["model_type"] == "siglip_vision_model":
        vision["num_hidden_layers"] += 1
    (tower / "config.json").write_text(json.dumps(vision))
    told = generation if generation == "llava-1.5-hd" else None
    plan = plan_import(tmp_path / "original", ImportOptions(vision_tower=tower, generation=told))
    write_checkpoint(plan, tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = plan_import(tiny).config
    assert replace(plan.config, raw={}) == replace(found, raw={})


def test_inspect_tells_parts_generation_template_and_digests(sound: Path) -> None:
    summary = summarise(sound)
    assert (summary.generation, summary.template, summary.images) == ("llava-1.5", "v1", "pad")
    assert summary.version is not None and summary.version.startswith("llava-1.5-")
    assert [part.name for part in summary.parts] == ["vision_tower", "connector", "language_model"]
    assert summary.parameters == sum(t.numel() for t in load_file(sound / "model.safetensors").values())
    assert all(part.dtype == "float32" and part.digest for part in summary.parts)


def test_digests_that_no_manifest_holds_are_computed_on_demand(checkpoint: Path) -> None:
    recorded = [part.digest for part in summarise(checkpoint).parts]
    (checkpoint / "manifest.json").unlink()
    assert [part.digest for part in summarise(checkpoint).parts] == [None] * 3
    assert [part.digest for part in summarise(checkpoint, digests=True).parts] == recorded


def test_a_template_of_ours_by_another_name_is_no_fault_when_it_was_chosen_at_import(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(TEMPLATES["v0"])
    assert verify_checkpoint(checkpoint) == []


def test_marks_around_images_are_no_fault_of_a_template(tmp_path: Path, originals: Callable) -> None:
    source = originals(make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.0"), tmp_path)
    edit(source.path / "config.json", mm_use_im_start_end=True)
    named = source.path.rename(tmp_path / "llava-7b-v0")
    plan = plan_import(named, ImportOptions(vision_tower=source.tower))
    assert "<im_start><image><im_end>" in (plan.template or "")
    for name in ("ours", "vicuna-7b-v0"):  # the second name tells a family to compare with
        write_checkpoint(plan, tmp_path / name)
        assert [finding.kind for finding in verify_checkpoint(tmp_path / name)] == ["elsewhere"]
        assert summarise(tmp_path / name).template == "v0, with <im_start><image><im_end>"


def test_the_template_of_stage_1_is_no_fault_but_worth_a_note(tmp_path: Path, originals: Callable) -> None:
    source = originals(make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5"), tmp_path)
    edit(source.path / "config.json", tune_mm_mlp_adapter=True)
    write_checkpoint(plan_import(source.path, ImportOptions(vision_tower=source.tower)), tmp_path / "ours")
    [finding] = verify_checkpoint(tmp_path / "ours")
    assert finding.kind == "note"
    assert "takes pictures without questions" in finding.text
