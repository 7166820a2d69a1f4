"""Ours, the original layout, and ours again: nothing that decides an answer is lost on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import LlavaNextConfig

from model.checkpoint.configuration import read_config
from model.checkpoint.export import export_original
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.plan import write_checkpoint
from model.checkpoint.summary import summarise
from model.config import LlavaConfig
from model.generations import GENERATIONS, Generation
from model.tiny import make_tiny_checkpoint

NEXT, MAY, HD = (GENERATIONS[f"llava-{name}"] for name in ("next-2024-01", "next-2024-05", "1.5-hd"))
KINDS: dict[str, Generation] = {
    **GENERATIONS,
    "rounded as transformers does": replace(NEXT, rounding="round7"),
    "several images as one view each": replace(NEXT, several_images="base"),
    "N of 4, ReLU": replace(MAY, max_tiles=4, activation="relu"),
    "May, without a limit": replace(MAY, max_tiles=None),
    "one padded view, of an early stage": replace(NEXT, images="pad", grids=()),
    "January with a limit": replace(NEXT, max_tiles=4),
}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def first(tmp_path: Path, tiny: Path, template: str = "qwen_1_5") -> Path:
    """With the token for videos, which an import gives to whatever becomes llava_onevision."""
    if read_config(tiny).kind == "llava_onevision":
        tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
        tokenizer.add_special_tokens([AddedToken("<video>", special=True, normalized=False)])
        tokenizer.save(str(tiny / "tokenizer.json"))
    write_checkpoint(plan_import(tiny, ImportOptions(template=template)), tmp_path / "first")
    return tmp_path / "first"


def again(tmp_path: Path) -> Path:
    """What became of `first` in the original layout, imported. The directory that it came from describes the tower."""
    export_original(tmp_path / "first", tmp_path / "original")
    plan = plan_import(tmp_path / "original", ImportOptions(vision_tower=tmp_path / "first"))
    write_checkpoint(plan, tmp_path / "again")
    return tmp_path / "again"


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_files_and_version_come_back(kind: str, tmp_path: Path) -> None:
    before = first(tmp_path, make_tiny_checkpoint(tmp_path / "tiny", generation=KINDS[kind], seed=5))
    after = again(tmp_path)
    assert read_config(after) == read_config(before)
    assert manifest(after)["tensors"] == manifest(before)["tensors"]
    assert manifest(after)["files"] == manifest(before)["files"]
    assert manifest(after)["version"] == manifest(before)["version"]


@pytest.mark.parametrize("template", ["plain", "v0", "v1", "mistral", "chatml", "qwen_1_5", "llama_3"])
def test_every_format_comes_back(template: str, tmp_path: Path) -> None:
    first(tmp_path, make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5"), template)
    assert summarise(again(tmp_path)).template == template


def test_tokens_around_images_come_back(tmp_path: Path, originals: Any) -> None:
    source = originals(make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.0"), tmp_path / "source")
    edit(source.path / "config.json", mm_use_im_start_end=True)
    write_checkpoint(plan_import(source.path, ImportOptions(vision_tower=source.tower)), tmp_path / "first")
    after = again(tmp_path)
    assert json.loads((tmp_path / "original" / "config.json").read_text())["mm_use_im_start_end"] is True
    assert manifest(after)["version"] == manifest(tmp_path / "first")["version"]


def test_a_template_of_somebodys_own_is_said_to_be_left_out(tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5")
    notes = export_original(tiny, tmp_path / "original")
    assert any("chat template is none of the family's" in note for note in notes)


def test_what_the_original_code_makes_of_1_5_hd_is_said(tmp_path: Path) -> None:
    notes = export_original(make_tiny_checkpoint(tmp_path / "tiny", generation=HD), tmp_path / "original")
    assert any("has no LLaVA-1.5-HD" in note for note in notes)
    assert not any("another rounding" in note for note in notes)


def test_a_generation_that_is_asked_for_leaves_the_checkpoint_its_own_n(tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=KINDS["N of 4, ReLU"])
    assert plan_import(tiny, ImportOptions(generation="llava-next-2024-05")).config.max_tiles == 4


@pytest.mark.parametrize("window", [{}, {"sliding_window": None}, {"sliding_window": 64}], ids=str)
def test_mistrals_window_is_transformers_own_and_comes_back(window: dict[str, Any], tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=NEXT, text="mistral", context_length=8192)
    raw = json.loads((tiny / "config.json").read_text())
    raw["text_config"] = {k: v for k, v in raw["text_config"].items() if k != "sliding_window"} | window
    edit(tiny / "config.json", text_config=raw["text_config"])
    theirs = LlavaNextConfig(**{key: value for key, value in raw.items() if key != "model_type"})
    assert LlavaConfig.from_hf(raw).text.sliding_window == theirs.text_config.sliding_window
    first(tmp_path, tiny)
    after = again(tmp_path)
    assert "sliding_window" in json.loads((tmp_path / "original" / "config.json").read_text())
    assert read_config(after).text.sliding_window == theirs.text_config.sliding_window


def test_positions_go_out_in_the_words_of_old_transformers(tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation="llava-1.5")
    text = json.loads((tiny / "config.json").read_text())["text_config"]
    del text["rope_theta"]
    text["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    edit(tiny / "config.json", text_config=text)
    export_original(tiny, tmp_path / "original")
    raw = json.loads((tmp_path / "original" / "config.json").read_text())
    assert (raw["rope_theta"], raw["rope_scaling"]) == (5e5, {"type": "linear", "factor": 2.0})
    assert "rope_parameters" not in raw
