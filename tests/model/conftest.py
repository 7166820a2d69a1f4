"""Checkpoints in the original layout, made by renaming the tensors of a tiny one; the names are written out here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

TEXT_ROWS = 259  # the tiny tokenizer without <image>
_KINDS = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}


@dataclass(frozen=True)
class Original:
    path: Path
    tower: Path
    base: Path  # a language model alone
    tensors: Mapping[str, torch.Tensor]  # original names


def original_name(name: str) -> str:
    for ours, theirs in (
        ("vision_tower.", "model.vision_tower.vision_tower."),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("image_newline", "model.image_newline"),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise AssertionError(name)


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], form: str, shards: int) -> None:
    stem, suffix = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[form]
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        weight_map |= dict.fromkeys(part, file)
        if form == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_tokenizer(source: Path, target: Path) -> None:
    """Without the image token: the original has none."""
    raw = json.loads((source / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<image>"]
    Tokenizer.from_str(json.dumps(raw)).save(str(target / "tokenizer.json"))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["additional_special_tokens"] = ["<|im_start|>"]
    (target / "tokenizer_config.json").write_text(json.dumps(settings))


def original_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The original's config.json for a tiny checkpoint's."""
    ours = raw.get("tephra", {})
    images = ours.get("images", "anyres" if raw["model_type"] != "llava" else "crop")
    ratio = raw.get("vision_aspect_ratio", {"hd": "anyres", "crop": "square"}.get(images, images))
    return {
        **{name: value for name, value in raw["text_config"].items() if name != "model_type"},
        "vocab_size": TEXT_ROWS,
        "model_type": _KINDS[raw["text_config"]["model_type"]],
        "mm_vision_tower": "nobody/tower",
        "mm_hidden_size": raw["vision_config"]["hidden_size"],
        "mm_projector_type": "linear" if ours.get("connector") == "linear" else "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat" if images in ("crop", "pad") else "spatial_unpad",
        "image_aspect_ratio": ratio,
        "image_grid_pinpoints": [[w, h] for h, w in raw.get("image_grid_pinpoints", [])],
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tokenizer_model_max_length": 2048,
    }


def make_original(
    tiny: Path, folder: Path, *, form: str = "safetensors", shards: int = 1, tower_inside: bool = False
) -> Original:
    """`tiny` again, as its makers would have saved it: in pieces, with its vision tower apart or inside."""
    raw = json.loads((tiny / "config.json").read_text())
    original, tower, base = (folder / name for name in ("original", "tower", "base"))
    for directory in (original, tower, base):
        directory.mkdir(parents=True)
    ours = load_file(tiny / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        if name in ours:
            ours[name] = ours[name][:TEXT_ROWS]
    tensors = {original_name(name): tensor for name, tensor in ours.items()}
    if raw.get("tephra", {}).get("connector") == "linear":
        tensors = {name.replace("mm_projector.0.", "mm_projector."): tensor for name, tensor in tensors.items()}
    vision = dict(raw["vision_config"])
    tower_tensors = {n.removeprefix("vision_tower."): t for n, t in ours.items() if n.startswith("vision_tower.")}
    if vision["model_type"] == "siglip_vision_model":  # the original cuts the last layer, so there is one more
        last = vision["num_hidden_layers"]
        vision["num_hidden_layers"] = last + 1
        layer = {n: t for n, t in tower_tensors.items() if f".layers.{last - 1}." in n}
        tower_tensors |= {n.replace(f".layers.{last - 1}.", f".layers.{last}."): t * 0 for n, t in layer.items()}
    whole = {"model_type": vision["model_type"].removesuffix("_vision_model"), "vision_config": vision}
    (tower / "config.json").write_text(json.dumps(whole))
    write_tensors(tower, {**tower_tensors, "logit_scale": torch.ones(())}, "bin", 1)
    kept = {n: t for n, t in tensors.items() if tower_inside or not n.startswith("model.vision_tower.")}
    kept["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    write_tensors(original, kept, form, shards)
    (original / "config.json").write_text(json.dumps(original_config(raw)))
    write_tokenizer(tiny, original)
    language = {n: t for n, t in kept.items() if n.startswith(("model.layers", "model.embed", "model.norm", "lm_head"))}
    write_tensors(base, language, "safetensors", 1)
    (base / "config.json").write_text(json.dumps({**raw["text_config"], "vocab_size": TEXT_ROWS}))
    write_tokenizer(tiny, base)
    return Original(original, tower, base, tensors)


@pytest.fixture(scope="session")
def originals() -> Callable[..., Original]:
    return make_original
