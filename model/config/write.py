"""A `LlavaConfig` as config.json: what transformers and vLLM read, and our own section for what they cannot say."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from model.config.llava import LlavaConfig
from model.config.rope import RopeConfig
from model.config.text import TextConfig
from model.config.vision import VisionConfig

_ARCHITECTURES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}


def to_hf(config: LlavaConfig) -> dict[str, Any]:
    """`LlavaConfig.from_hf` reads it as the same config. Canvases go out as (height, width), in the list's order."""
    raw: dict[str, Any] = {
        "model_type": config.kind,
        "architectures": [_ARCHITECTURES[config.kind]],
        "image_token_index": config.image_token_id,
        "projector_hidden_act": config.connector_activation,
        "multimodal_projector_bias": config.connector_bias,
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": "default" if config.drop_cls else "full",
        "tie_word_embeddings": config.text.tied_embeddings,
        "text_config": _text(config.text),
        "vision_config": _vision(config.vision),
    }
    if config.canvases:
        raw["image_grid_pinpoints"] = [[canvas.height, canvas.width] for canvas in config.canvases]
    if config.kind == "llava_onevision":
        raw["vision_aspect_ratio"] = "anyres" if config.max_tiles is None else f"anyres_max_{config.max_tiles}"
    ours = _tephra(config)
    return {**raw, "tephra": ours} if ours else raw


def _tephra(config: LlavaConfig) -> dict[str, Any]:
    """Only what differs from transformers' rule for this model_type, which is what an absent key means."""
    own_way = {"llava": "crop", "llava_next": "anyres", "llava_onevision": "anyres"}[config.kind]
    own_rule = "base" if config.kind == "llava_onevision" else "tiles"
    told = {
        "generation": (config.generation, None),
        "connector": (config.connector, "mlp"),
        "images": (config.image_mode, own_way),
        "rounding": (config.rounding, "round7"),
        "max_tiles": (config.max_tiles if config.kind == "llava_next" else None, None),
        "several_images": (config.several_images, own_rule),
    }
    return {name: value for name, (value, absent) in told.items() if value != absent}


def _vision(vision: VisionConfig) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "model_type": f"{vision.kind}_vision_model",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "hidden_act": vision.activation,
        "layer_norm_eps": vision.layer_norm_eps,
    }
    if vision.kind == "siglip":
        raw["vision_use_head"] = False
    return raw


def _text(text: TextConfig) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "model_type": text.kind,
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "max_position_embeddings": text.context_length,
        "rms_norm_eps": text.norm_eps,
        "hidden_act": text.activation,
        "tie_word_embeddings": text.tied_embeddings,
        "rope_theta": text.rope.theta,
    }
    if text.kind == "llama":
        raw |= {"attention_bias": text.qkv_bias, "mlp_bias": text.mlp_bias}
    if text.kind == "mistral":
        raw["sliding_window"] = text.sliding_window
    if text.rope.kind != "default":
        raw["rope_scaling"] = _rope_scaling(text.rope)
    return raw


def _rope_scaling(rope: RopeConfig) -> dict[str, Any]:
    """Only what is set, under transformers' names."""
    names = {"kind": "rope_type", "original_context": "original_max_position_embeddings"}
    default, values = RopeConfig(kind=rope.kind), asdict(rope)
    told = [field.name for field in fields(rope) if field.name not in ("kind", "theta")]
    scaling = {names.get(name, name): values[name] for name in told if values[name] != getattr(default, name)}
    return {"rope_type": rope.kind, **scaling}
