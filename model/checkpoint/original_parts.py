"""What is particular to the original layout: it comes in pieces, names its vision tower only, and counts otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.adapters import ADAPTER_CONFIG, PROJECTOR, delta_on, lora_on, projector
from model.checkpoint.configuration import checked_config
from model.checkpoint.derived import constant
from model.checkpoint.files import checked_folder, read_json, read_json_if_there
from model.checkpoint.names import EMBEDDING, canonical_name, from_original, from_tower, part_of
from model.checkpoint.original import OriginalConfig, known_tower, text_section, vision_section
from model.checkpoint.tensors import StoredTensor, all_tensors, has_weights
from model.config import LlavaConfig
from model.errors import CheckpointError
from model.generations import GENERATIONS, Generation
from model.geometry import Canvas

_POST_NORM = "vision_tower.vision_model.post_layernorm"

Tensors = dict[str, StoredTensor]


def original_weights(directory: Path, base_path: Path | None, *, delta: bool) -> tuple[str, Tensors]:
    """What kind of piece it is, in words, and the tensors of the whole."""
    base = _base_tensors(base_path) if base_path is not None else None
    if (directory / ADAPTER_CONFIG).exists():
        if base is None:
            raise CheckpointError(f"{directory}: a LoRA adapter; --base names the model that it adapts")
        return ", LoRA merged", lora_on(base, directory)
    if (directory / PROJECTOR).exists() and not has_weights(directory):
        if base is None:
            raise CheckpointError(f"{directory}: a projector alone; --base names the language model that it belongs to")
        return ", projector on a base", {**base, **projector(directory)}
    whole = all_tensors(directory, from_original)
    if delta:
        if base is None:
            raise CheckpointError(f"{directory}: a delta needs --base, the model that it is to be added to")
        return ", delta added", delta_on(base, whole)
    if base is not None:
        raise CheckpointError(f"{directory}: holds whole weights; --base is for a projector, an adapter or --delta")
    return "", whole


def _base_tensors(path: Path) -> Tensors:
    base = checked_folder(path)
    return all_tensors(base, canonical_name if "text_config" in read_json(base / "config.json") else from_original)


def add_tower(
    directory: Path, original: OriginalConfig, tensors: Tensors, given: Path | None
) -> tuple[dict[str, Any], tuple[Sequence[float], Sequence[float]] | None]:
    """Puts the vision tower's tensors among the others. Returns its section of config.json, and its mean and std."""
    inside = any(part_of(name) == "vision_tower" for name in tensors)
    section, normalisation = known_tower(original.tower), None
    if given is not None:
        tower = checked_folder(given)
        section = vision_section(read_json(tower / "config.json"))
        pixels = read_json_if_there(tower / "preprocessor_config.json")
        if "image_mean" in pixels and "image_std" in pixels:
            normalisation = (pixels["image_mean"], pixels["image_std"])
        if not inside:
            tensors |= {n: t for n, t in all_tensors(tower, from_tower).items() if part_of(n) == "vision_tower"}
    elif not inside:
        raise CheckpointError(
            f"{directory}: lacks its vision tower {original.tower}; --vision-tower names its directory"
        )
    if section is None:
        raise CheckpointError(
            f"{directory}: the vision tower {original.tower} is not known; --vision-tower describes it"
        )
    if section["model_type"] == "siglip_vision_model":
        _cut_last_layer(section, tensors)
    for ending, value in (("weight", 1.0), ("bias", 0.0)):  # behind every feature that is used, but readers look for it
        name = f"{_POST_NORM}.{ending}"
        if name not in tensors:
            tensors[name] = constant(tensors[EMBEDDING], name, (int(section["hidden_size"]),), value)
    return section, normalisation


def _cut_last_layer(section: dict[str, Any], tensors: Tensors) -> None:
    """The original leaves SigLIP's last layer out and takes what the one before gives."""
    layers = section.get("num_hidden_layers", 12)
    if not isinstance(layers, int) or layers < 2:
        raise CheckpointError(f"num_hidden_layers {layers!r} of the vision tower: expected at least 2")
    section["num_hidden_layers"] = layers - 1
    for name in [
        name for name in tensors if name.startswith(f"vision_tower.vision_model.encoder.layers.{layers - 1}.")
    ]:
        del tensors[name]


def original_config(
    directory: Path, original: OriginalConfig, tower: dict[str, Any], tensors: Tensors, generation: str | None
) -> LlavaConfig:
    siglip = tower["model_type"] == "siglip_vision_model"
    preset = GENERATIONS[generation or _generation_of(original, siglip=siglip)]
    kind = "llava"
    if original.images == "anyres":
        kind = "llava_next" if original.max_tiles is None else "llava_onevision"
    tile = tower.get("image_size", 224)
    raw: dict[str, Any] = {
        "model_type": kind,
        "text_config": {
            **text_section(original.raw, original.language_model),
            "vocab_size": tensors[EMBEDDING].shape[0] if tensors[EMBEDDING].shape else 0,
        },
        "vision_config": tower,
        "image_token_index": 0,
        "vision_feature_layer": -1 if siglip else original.feature_layer,
        "vision_feature_select_strategy": "full" if siglip or original.keeps_cls else "default",
        "projector_hidden_act": original.activation,
        "tephra": {
            "generation": preset.name,
            "connector": original.connector,
            "images": original.images,
            "rounding": preset.rounding,
            "several_images": preset.several_images,
        },
    }
    if original.images == "anyres" and isinstance(tile, int):
        own = generation is None or original.raw.get("image_grid_pinpoints")
        grids = [[down * tile, across * tile] for across, down in preset.grids]
        raw["image_grid_pinpoints"] = original.canvases(tile) if own else grids
    if kind == "llava_onevision":
        raw["vision_aspect_ratio"] = f"anyres_max_{original.max_tiles}"
    config = checked_config(raw, str(directory / "config.json"))
    return config if generation is None else as_generation(config, preset)


def _generation_of(original: OriginalConfig, *, siglip: bool) -> str:
    if original.images != "anyres":
        return "llava-1.0" if original.connector == "linear" else "llava-1.5"
    return "llava-next-2024-05" if siglip or original.max_tiles is not None else "llava-next-2024-01"


def as_generation(config: LlavaConfig, preset: Generation) -> LlavaConfig:
    """The preset's way with images, on this checkpoint's towers; canvases that it has already are its own."""
    canvases: tuple[Canvas, ...] = ()
    if preset.images in ("hd", "anyres"):
        tile = config.vision.image_size
        canvases = config.canvases or tuple(Canvas(across * tile, down * tile) for across, down in preset.grids)
    return replace(
        config,
        kind=preset.model_type,
        canvases=canvases,
        image_mode=preset.images,
        rounding=preset.rounding,
        max_tiles=preset.max_tiles,
        several_images=preset.several_images,
        generation=preset.name,
    )
