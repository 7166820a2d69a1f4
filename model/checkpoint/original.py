"""The config.json of the original layout, in Hugging Face's words.

The original puts the language model's numbers and the `mm_*` ones side by side and names the vision tower without
describing it. Its canvases are (width, height); Hugging Face's are (height, width), so each pair is turned round and
the list's order is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.config.original import ORIGINAL_TYPES
from model.errors import CheckpointError

_PLAIN_LANGUAGE_MODELS = ("llama", "mistral", "qwen2")

# What a language model's section of config.json keeps.
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# The vision towers that the family was trained with; their own config.json is elsewhere.
_CLIP_LARGE: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14": {**_CLIP_LARGE, "image_size": 224},
    "clip-vit-large-patch14-336": {**_CLIP_LARGE, "image_size": 336},
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


@dataclass(frozen=True)
class OriginalConfig:
    """What an original config.json says beyond the language model."""

    language_model: str  # llama, mistral or qwen2
    tower: str  # the vision tower's name
    connector: Literal["mlp", "linear"]
    activation: str
    feature_layer: int
    keeps_cls: bool
    images: Literal["crop", "pad", "anyres"]
    max_tiles: int | None
    merge: str
    raw: Mapping[str, Any]

    def canvases(self, tile: int) -> list[list[int]]:
        """[height, width] of each, in the list's order."""
        return [[height, width] for width, height in _pinpoints(self.raw.get("image_grid_pinpoints"), tile)]

    @property
    def image_word_tokens(self) -> tuple[str, ...]:
        """Tokens that the original adds to its tokenizer when it loads, in its order."""
        patch = ("<im_patch>",) if self.raw.get("mm_use_im_patch_token", False) else ()
        return (*patch, "<im_start>", "<im_end>") if self.raw.get("mm_use_im_start_end", False) else patch


def told_by_export(raw: Mapping[str, Any]) -> Mapping[str, str]:
    """What our own export wrote beside the original's fields, which have no words for it. Raises CheckpointError."""
    told = raw.get("tephra", {})
    if not isinstance(told, Mapping):
        raise CheckpointError(f"tephra: expected a JSON object, got {str(told)[:80]!r}")
    for field, value in told.items():
        if not isinstance(value, str):
            raise CheckpointError(f"tephra.{field}: expected a word, got {str(value)[:80]!r}")
    return told


def read_original(raw: Mapping[str, Any], origin: str) -> OriginalConfig:
    """`origin` is where `raw` comes from, for the message of a CheckpointError, which names the field too."""
    try:
        return _read(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def _read(raw: Mapping[str, Any]) -> OriginalConfig:
    told_by_export(raw)
    kind = raw.get("model_type")
    if kind not in ORIGINAL_TYPES and kind not in _PLAIN_LANGUAGE_MODELS:
        raise CheckpointError(f"model_type {kind!r}: expected one of {', '.join(ORIGINAL_TYPES)}")
    tower = raw.get("mm_vision_tower")
    if not isinstance(tower, str) or not tower:
        raise CheckpointError(f"mm_vision_tower {tower!r}: expected the vision tower's name")
    connector, activation = _connector(raw.get("mm_projector_type") or "linear")
    images, max_tiles = _images(raw.get("image_aspect_ratio"))
    feature = raw.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise CheckpointError(f"mm_vision_select_feature {feature!r}: expected patch or cls_patch")
    layer = raw.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise CheckpointError(f"mm_vision_select_layer {layer!r}: expected a whole number")
    merge = raw.get("mm_patch_merge_type") or "flat"
    if images == "anyres" and merge != "spatial_unpad":
        raise CheckpointError(f"mm_patch_merge_type {merge!r} with {images}: only spatial_unpad is supported")
    return OriginalConfig(
        language_model=ORIGINAL_TYPES.get(str(kind), str(kind)),
        tower=tower,
        connector=connector,
        activation=activation,
        feature_layer=layer,
        keeps_cls=feature == "cls_patch",
        images=images,
        max_tiles=max_tiles,
        merge=merge,
        raw=raw,
    )


def text_section(raw: Mapping[str, Any], language_model: str) -> dict[str, Any]:
    """The language model's section, from a config.json that has its fields at the top."""
    told = {name: raw[name] for name in _TEXT_FIELDS if raw.get(name) is not None}
    if "sliding_window" in raw:
        told["sliding_window"] = raw["sliding_window"]  # null is no window; a key left out is Mistral's default
    return {"model_type": language_model, **told}


def vision_section(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The vision tower's section, from the config.json of a CLIP or SigLIP checkpoint (whole or vision half)."""
    kinds = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
    kind = raw.get("model_type")
    nested = raw.get("vision_config")
    section = {**(nested if isinstance(nested, Mapping) else raw), "model_type": kinds.get(str(kind), kind)}
    if section["model_type"] not in kinds.values():
        raise CheckpointError(f"model_type {kind!r}: expected a CLIP or SigLIP vision tower")
    if section["model_type"] == "siglip_vision_model":
        section["vision_use_head"] = False
    dropped = ("architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path")
    return {name: value for name, value in section.items() if name not in dropped}


def known_tower(name: str) -> dict[str, Any] | None:
    """The section of a tower that the family was trained with, by the last part of its name."""
    section = KNOWN_TOWERS.get(name.rstrip("/").rsplit("/", 1)[-1])
    return None if section is None else dict(section)


def _connector(kind: object) -> tuple[Literal["mlp", "linear"], str]:
    if kind == "linear":
        return "linear", "gelu"
    match = re.fullmatch(r"mlp2x_(gelu|relu)", kind) if isinstance(kind, str) else None
    if match is None:
        raise CheckpointError(f"mm_projector_type {kind!r}: expected linear, mlp2x_gelu or mlp2x_relu")
    return "mlp", match[1]


def _images(ratio: object) -> tuple[Literal["crop", "pad", "anyres"], int | None]:
    if ratio in (None, "square"):
        return "crop", None
    if ratio == "pad":
        return "pad", None
    match = re.fullmatch(r"anyres(?:_max_([1-9]\d{0,3}))?", ratio) if isinstance(ratio, str) else None
    if match is None:
        raise CheckpointError(f"image_aspect_ratio {ratio!r}: expected square, pad, anyres or anyres_max_N")
    return "anyres", int(match[1]) if match[1] else None


def _pinpoints(value: object, tile: int) -> list[tuple[int, int]]:
    """(width, height): a list of pairs, or the training script's text, "(1x1),...,(6x6)" in tiles."""
    pairs: list[tuple[int, int]] = []
    if isinstance(value, str) and (grids := re.findall(r"\((\d{1,4})x(\d{1,4})\)", value)):
        (across, down), (most_across, most_down) = (tuple(map(int, grids[place])) for place in (0, -1))
        if (most_across - across + 1) * (most_down - down + 1) <= 1024:
            pairs = [(w * tile, h * tile) for w in range(across, most_across + 1) for h in range(down, most_down + 1)]
    elif isinstance(value, str):
        pairs = [(int(w), int(h)) for w, h in re.findall(r"[(\[]\s*(\d{1,6})\s*,\s*(\d{1,6})\s*[)\]]", value)]
    elif isinstance(value, list) and len(value) <= 1024:
        pairs = [tuple(pair) for pair in value if _is_pair(pair)] if all(map(_is_pair, value)) else []
    if not pairs:
        raise CheckpointError(f"image_grid_pinpoints {str(value)[:80]!r}: expected a list of [width, height]")
    return pairs


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)
