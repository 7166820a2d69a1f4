"""The vision tower of an original checkpoint: inside it, beside it, or inside another LLaVA.

The original names its tower and describes it nowhere. Sizes come from a table of the family's own towers, or from the
config.json of the directory that holds the tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.checkpoint.configuration import checked_config
from model.checkpoint.derived import constant
from model.checkpoint.files import checked_folder, read_json, read_json_if_there
from model.checkpoint.names import EMBEDDING, canonical_name, from_original, from_tower, part_of
from model.checkpoint.original import OriginalConfig, known_tower, read_original, vision_section
from model.checkpoint.tensors import StoredTensor, all_tensors
from model.config import to_hf
from model.config.fields import positive
from model.config.llava import MODEL_TYPES
from model.config.original import is_original
from model.errors import CheckpointError

_LAYERS = "vision_tower.vision_model.encoder.layers."
_POST_NORM = "vision_tower.vision_model.post_layernorm"

Tensors = dict[str, StoredTensor]
Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of the pixels


@dataclass(frozen=True)
class VisionTower:
    """`section` is the vision_config of what is imported: SigLIP's layers behind the feature are left out."""

    section: Mapping[str, Any]
    layers_left_out: int = 0
    normalisation: Normalisation | None = None  # None: that of its kind


def has_tower(tensors: Mapping[str, StoredTensor]) -> bool:
    return any(part_of(name) == "vision_tower" for name in tensors)


def add_tower(directory: Path, original: OriginalConfig, tensors: Tensors, given: Path | None) -> VisionTower:
    """Puts the vision tower's tensors among the others, unless they are there. Raises CheckpointError."""
    inside = has_tower(tensors)
    if given is not None:
        tower, found = _described(checked_folder(given), with_tensors=not inside)
        tensors |= found
    elif not inside:
        raise CheckpointError(
            f"{directory}: lacks its vision tower {original.tower}; --vision-tower names its directory"
        )
    elif (section := known_tower(original.tower)) is not None:
        tower = _without_last_layer(section)
    else:
        raise CheckpointError(
            f"{directory}: the sizes of the vision tower {original.tower} are not known; --vision-tower names a "
            "directory whose config.json tells them"
        )
    width = positive(
        {"hidden_size": 768, **tower.section}, "vision_config", "hidden_size"
    )  # 768: transformers' default
    if type(wanted := original.raw.get("mm_hidden_size")) is int and wanted != width:
        raise CheckpointError(
            f"{given or original.tower}: a vision tower of width {width}; mm_hidden_size of {directory} is {wanted}"
        )
    _drop_layers_behind(tower, tensors)
    for ending, value in (("weight", 1.0), ("bias", 0.0)):  # behind every feature that is used, but readers look for it
        name = f"{_POST_NORM}.{ending}"
        if name not in tensors:
            tensors[name] = constant(tensors[EMBEDDING], name, (width,), value)
    return tower


def _described(folder: Path, *, with_tensors: bool) -> tuple[VisionTower, Tensors]:
    """What a directory says of its tower, and the tower's tensors where they are asked for."""
    raw = read_json(folder / "config.json")
    pixels = read_json_if_there(folder / "preprocessor_config.json")
    known = "image_mean" in pixels and "image_std" in pixels
    normalisation = (pixels["image_mean"], pixels["image_std"]) if known else None
    if is_original(raw):
        name = read_original(raw, str(folder / "config.json")).tower
        section, rename = known_tower(name), from_original
        if section is None:
            raise CheckpointError(
                f"{folder}: the sizes of its vision tower {name} are not known; --vision-tower names {name} itself"
            )
        tower = _without_last_layer(section)
    elif raw.get("model_type") in MODEL_TYPES:
        tower, rename = _tower_of_llava(raw, folder), canonical_name
    else:
        tower, rename = _without_last_layer(vision_section(raw)), from_tower
    tower = replace(tower, normalisation=normalisation)
    if not with_tensors:
        return tower, {}
    tensors = {name: t for name, t in all_tensors(folder, rename).items() if part_of(name) == "vision_tower"}
    if not tensors:
        raise CheckpointError(f"{folder}: holds no vision tower")
    return tower, tensors


def _tower_of_llava(raw: Mapping[str, Any], folder: Path) -> VisionTower:
    """Of a LLaVA in Hugging Face layout. SigLIP's ends with the layer that gives its features; CLIP stays whole."""
    config = checked_config(raw, str(folder / "config.json"))
    section: dict[str, Any] = to_hf(config)["vision_config"]
    if config.vision.kind != "siglip":
        return VisionTower(section)
    used = config.encoder_layers_used
    return VisionTower({**section, "num_hidden_layers": used}, config.vision.layers - used)


def _without_last_layer(section: dict[str, Any]) -> VisionTower:
    """The original leaves SigLIP's last layer out and takes what the one before gives. CLIP stays whole."""
    if section["model_type"] != "siglip_vision_model":
        return VisionTower(section)
    layers = section.get("num_hidden_layers", 12)
    if not isinstance(layers, int) or layers < 2:
        raise CheckpointError(f"num_hidden_layers {layers!r} of the vision tower: expected at least 2")
    return VisionTower({**section, "num_hidden_layers": layers - 1}, 1)


def _drop_layers_behind(tower: VisionTower, tensors: Tensors) -> None:
    first = tower.section.get("num_hidden_layers", 0)
    left_out = tuple(f"{_LAYERS}{number}." for number in range(first, first + tower.layers_left_out))
    for name in [name for name in tensors if name.startswith(left_out)]:
        del tensors[name]
