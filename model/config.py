"""The numbers that say what a checkpoint is: vision tower, connector, language model, image handling.

Pure Python. Reads the Hugging Face `config.json` of `llava` and `llava_next` (transformers 4.37 to 5.x) and keeps what
the model needs in frozen dataclasses; `model.checkpoint` writes it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model.errors import CheckpointError
from model.geometry import Canvas, ImageGeometry

ImageMode = Literal["crop", "pad", "anyres"]


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


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions as the Llama, Mistral and Qwen2 families name them (`rope_scaling` / `rope_parameters`)."""

    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class TextConfig:
    """A decoder of the Llama, Mistral or Qwen2 family."""

    kind: Literal["llama", "mistral", "qwen2"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int  # tokens, prompt and answer together
    norm_eps: float
    activation: str
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope: RopeConfig
    sliding_window: int | None = None  # tokens; None: full attention


@dataclass(frozen=True)
class LlavaConfig:
    """A whole checkpoint: the parts, how they meet, and how an image becomes tiles."""

    kind: Literal["llava", "llava_next"]
    vision: VisionConfig
    text: TextConfig
    feature_layer: int  # index into [embeddings, layer 1, ...]; negative counts from the end, as in Hugging Face
    drop_cls: bool  # vision_feature_select_strategy == "default"
    connector_activation: str
    connector_bias: bool
    image_token_id: int
    canvases: tuple[Canvas, ...]  # empty unless AnyRes
    raw: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)  # config.json as it was read

    @property
    def encoder_layers_used(self) -> int:
        """How many encoder layers must run for the chosen feature (the rest are never computed)."""
        layers = self.vision.layers
        used = self.feature_layer if self.feature_layer >= 0 else layers + 1 + self.feature_layer
        if not 0 <= used <= layers:
            raise CheckpointError(
                f"vision_feature_layer {self.feature_layer} does not exist: the vision tower has {layers} layers"
            )
        return used

    @property
    def geometry(self) -> ImageGeometry:
        """From (width, height) to tokens."""
        return ImageGeometry(
            tile=self.vision.image_size,
            grid=self.vision.grid,
            canvases=self.canvases,
            extra_tokens=0 if self.drop_cls or not self.vision.has_cls_token else 1,
        )

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> LlavaConfig:
        """Reads a Hugging Face `config.json`. Raises CheckpointError that names the field it cannot use."""
        kind = raw.get("model_type")
        if kind not in ("llava", "llava_next"):
            raise CheckpointError(f"model_type {kind!r} is not served: expected llava or llava_next")
        strategy = raw.get("vision_feature_select_strategy", "default")
        if strategy not in ("default", "full"):
            raise CheckpointError(f"vision_feature_select_strategy {strategy!r}: expected default or full")
        feature_layer = raw.get("vision_feature_layer", -2)
        if not isinstance(feature_layer, int):
            raise CheckpointError("vision_feature_layer: only a single layer is supported")
        vision = _vision(_section(raw, "vision_config"))
        token = raw.get("image_token_index", raw.get("image_token_id", 32000))
        text = _text(_section(raw, "text_config"), raw)
        if not isinstance(token, int) or not 0 <= token < text.vocab_size:
            raise CheckpointError(f"image_token_index {token!r} lies outside the vocabulary of {text.vocab_size}")
        # Hugging Face writes canvases as (height, width); ours are (width, height), the list's order is kept.
        pinpoints = _pinpoints(raw) if kind == "llava_next" else ()
        config = cls(
            kind=kind,
            vision=vision,
            text=text,
            feature_layer=feature_layer,
            drop_cls=strategy == "default",
            connector_activation=raw.get("projector_hidden_act", "gelu"),
            connector_bias=raw.get("multimodal_projector_bias", True),
            image_token_id=token,
            canvases=pinpoints,
            raw=dict(raw),
        )
        config.encoder_layers_used  # noqa: B018  (raises when the layer does not exist)
        return config


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = raw.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"config.json has no {name}")
    return section


def _pinpoints(raw: Mapping[str, Any]) -> tuple[Canvas, ...]:
    pairs: Sequence[Sequence[int]] = raw.get("image_grid_pinpoints") or [
        [336, 672],
        [672, 336],
        [672, 672],
        [1008, 336],
        [336, 1008],
    ]
    try:
        return tuple(Canvas(width=int(w), height=int(h)) for h, w in pairs)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"image_grid_pinpoints: expected a list of [height, width], got {pairs!r}") from error


# What a field is when config.json leaves it out: the defaults of transformers' configuration classes.
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
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
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
}


def _vision(raw: Mapping[str, Any]) -> VisionConfig:
    kind = raw.get("model_type")
    if kind not in _VISION_DEFAULTS:
        raise CheckpointError(f"vision_config.model_type {kind!r}: expected clip_vision_model or siglip_vision_model")
    values = {**_VISION_DEFAULTS[kind], **raw}
    config = VisionConfig(
        kind="clip" if kind == "clip_vision_model" else "siglip",
        image_size=_positive(values, "vision_config", "image_size"),
        patch_size=_positive(values, "vision_config", "patch_size"),
        hidden_size=_positive(values, "vision_config", "hidden_size"),
        intermediate_size=_positive(values, "vision_config", "intermediate_size"),
        layers=_positive(values, "vision_config", "num_hidden_layers"),
        heads=_positive(values, "vision_config", "num_attention_heads"),
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


def _text(raw: Mapping[str, Any], top: Mapping[str, Any]) -> TextConfig:
    kind = raw.get("model_type", "llama")
    if kind not in _TEXT_DEFAULTS:
        raise CheckpointError(f"text_config.model_type {kind!r}: expected llama, mistral or qwen2")
    values = {**_TEXT_DEFAULTS[kind], **{k: v for k, v in raw.items() if v is not None}}
    heads = _positive(values, "text_config", "num_attention_heads")
    hidden = _positive(values, "text_config", "hidden_size")
    kv_heads = values.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise CheckpointError(f"text_config: {heads} attention heads are not a multiple of {kv_heads} key-value heads")
    context = _positive(values, "text_config", "max_position_embeddings")
    window = values.get("sliding_window") if kind == "mistral" else None
    if values.get("use_sliding_window") and values.get("max_window_layers", 0) < values["num_hidden_layers"]:
        raise CheckpointError("text_config.use_sliding_window: windows on some layers only are not supported")
    tied = raw.get("tie_word_embeddings", top.get("tie_word_embeddings", False))
    return TextConfig(
        kind=kind,
        vocab_size=_positive(values, "text_config", "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(values, "text_config", "intermediate_size"),
        layers=_positive(values, "text_config", "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=values.get("head_dim") or hidden // heads,
        context_length=context,
        norm_eps=float(values["rms_norm_eps"]),
        activation=values.get("hidden_act", "silu"),
        tied_embeddings=bool(tied),
        qkv_bias=kind == "qwen2" or bool(values.get("attention_bias", False)),
        output_bias=kind == "llama" and bool(values.get("attention_bias", False)),
        mlp_bias=kind == "llama" and bool(values.get("mlp_bias", False)),
        rope=_rope(values, context),
        sliding_window=window if window and window < context else None,
    )


def _rope(values: Mapping[str, Any], context: int) -> RopeConfig:
    """`rope_parameters` is transformers 5's name; `rope_theta` with `rope_scaling` is what came before."""
    scaling = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise CheckpointError(f"rope type {kind!r}: expected default, linear, dynamic, llama3 or yarn")
    return RopeConfig(
        kind=kind,
        theta=float(scaling.get("rope_theta") or values.get("rope_theta") or 10000.0),
        factor=float(scaling.get("factor", 1.0)),
        original_context=scaling.get("original_max_position_embeddings") or (context if kind != "default" else None),
        low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
        high_freq_factor=float(scaling.get("high_freq_factor", 4.0)),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        attention_factor=scaling.get("attention_factor"),
    )


def _positive(values: Mapping[str, Any], section: str, name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise CheckpointError(f"{section}.{name}: expected a positive whole number, got {value!r}")
    return value
