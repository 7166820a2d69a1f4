"""The vision tower's numbers, read from `vision_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.config.fields import positive
from model.errors import CheckpointError


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP or SigLIP vision transformer.

    `layers` counts the checkpoint's encoder layers; `LlavaConfig.feature_layer` picks the one whose output is used.
    """

    kind: Literal["clip", "siglip"]
    image_size: int  # pixels a side of one tile
    patch_size: int  # pixels a side of one patch
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    activation: str
    layer_norm_eps: float

    @property
    def grid(self) -> int:
        """Patches a side of one tile."""
        return self.image_size // self.patch_size

    @property
    def has_cls_token(self) -> bool:
        return self.kind == "clip"


# What a field is when config.json leaves it out: the defaults of transformers' configuration classes.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}


def read_vision(raw: Mapping[str, Any]) -> VisionConfig:
    kind = raw.get("model_type")
    if kind not in _DEFAULTS:
        raise CheckpointError(f"vision_config.model_type {kind!r}: expected clip_vision_model or siglip_vision_model")
    values = {**_DEFAULTS[kind], **raw}
    config = VisionConfig(
        kind="clip" if kind == "clip_vision_model" else "siglip",
        image_size=positive(values, "vision_config", "image_size"),
        patch_size=positive(values, "vision_config", "patch_size"),
        hidden_size=positive(values, "vision_config", "hidden_size"),
        intermediate_size=positive(values, "vision_config", "intermediate_size"),
        layers=positive(values, "vision_config", "num_hidden_layers"),
        heads=positive(values, "vision_config", "num_attention_heads"),
        activation=values["hidden_act"],
        layer_norm_eps=float(values["layer_norm_eps"]),
    )
    if config.hidden_size % config.heads:
        raise CheckpointError(
            f"vision_config: hidden_size {config.hidden_size} is not a multiple of {config.heads} heads"
        )
    if config.patch_size > config.image_size:
        raise CheckpointError(f"vision_config: patch_size {config.patch_size} exceeds image_size {config.image_size}")
    return config
