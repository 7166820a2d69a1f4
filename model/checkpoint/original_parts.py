"""What is particular to the original layout: it comes in pieces, and says its way with images in words of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from model.checkpoint.adapters import ADAPTER_CONFIG, PROJECTOR, delta_on, lora_on, projector
from model.checkpoint.configuration import checked_config
from model.checkpoint.files import checked_folder, read_json
from model.checkpoint.lineage import repository_name
from model.checkpoint.names import EMBEDDING, canonical_name, from_original
from model.checkpoint.original import OriginalConfig, text_section, told_by_export
from model.checkpoint.tensors import StoredTensor, all_tensors, has_weights
from model.config import LlavaConfig
from model.errors import CheckpointError
from model.generations import GENERATIONS, Generation
from model.geometry import Canvas, ImageMode

_TOLD = ("generation", "rounding", "several_images")  # taken from our own export as they are

Piece = Literal["adapter", "projector", "whole"]
Tensors = dict[str, StoredTensor]


def piece_of(directory: Path) -> Piece:
    """Weights beside a projector are the whole's: later stages save both."""
    if (directory / ADAPTER_CONFIG).exists():
        return "adapter"
    return "projector" if (directory / PROJECTOR).exists() and not has_weights(directory) else "whole"


def may_be_delta(directory: Path) -> bool:
    """Nothing but its name tells a delta from whole weights."""
    return piece_of(directory) == "whole" and "delta" in repository_name(directory).lower()


def original_weights(directory: Path, base_path: Path | None, *, delta: bool) -> tuple[str, Tensors]:
    """How the whole was made of its pieces, in words, and its tensors."""
    base = _base_tensors(base_path) if base_path is not None else None
    piece = piece_of(directory)
    if piece == "adapter":
        if base is None:
            raise CheckpointError(f"{directory}: a LoRA adapter; --base names the model that it adapts")
        return ", LoRA merged", lora_on(base, directory)
    if piece == "projector":
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


def original_config(
    directory: Path,
    original: OriginalConfig,
    tower: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    generation: str | None,
) -> LlavaConfig:
    """`tower` is its section of config.json. A generation that is asked for goes before everything that is told."""
    siglip = tower["model_type"] == "siglip_vision_model"
    preset = GENERATIONS[generation or generation_of(original, siglip=siglip)]
    told = told_by_export(original.raw) if generation is None else {}
    images: ImageMode = original.images
    kind = "llava"
    if images == "anyres":
        images = "hd" if told.get("images") == "hd" else images
        kind = "llava_next" if original.max_tiles is None else "llava_onevision"
    kind = told.get("model_type", kind)
    tile = tower.get("image_size", 224)
    ours = {
        "generation": preset.name,
        "connector": original.connector,
        "images": images,
        "rounding": preset.rounding,
        "several_images": preset.several_images,
    }
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
        "tephra": ours | {field: told[field] for field in _TOLD if field in told},
    }
    if original.images == "anyres" and isinstance(tile, int):
        own = generation is None or original.raw.get("image_grid_pinpoints")
        grids = [[down * tile, across * tile] for across, down in preset.grids]
        raw["image_grid_pinpoints"] = original.canvases(tile) if own else grids
    if kind == "llava_onevision":
        raw["vision_aspect_ratio"] = "anyres" if original.max_tiles is None else f"anyres_max_{original.max_tiles}"
    elif original.max_tiles is not None:
        raw["tephra"]["max_tiles"] = original.max_tiles
    config = checked_config(raw, str(directory / "config.json"))
    return config if generation is None else as_generation(config, preset)


def generation_of(original: OriginalConfig, *, siglip: bool) -> str:
    """The preset that an original configuration describes."""
    if original.images != "anyres":
        return "llava-1.0" if original.connector == "linear" else "llava-1.5"
    return "llava-next-2024-05" if siglip or original.max_tiles is not None else "llava-next-2024-01"


def as_generation(config: LlavaConfig, preset: Generation) -> LlavaConfig:
    """The preset's way with images, on this checkpoint's towers; canvases and N that it has already are its own."""
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
        max_tiles=None if preset.max_tiles is None else config.max_tiles or preset.max_tiles,
        several_images=preset.several_images,
        generation=preset.name,
    )
