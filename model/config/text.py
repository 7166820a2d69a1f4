"""The language model's numbers, read from `text_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.config.fields import positive
from model.config.rope import RopeConfig, read_rope
from model.errors import CheckpointError


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


# What a field is when config.json leaves it out: the defaults of transformers' configuration classes.
_DEFAULTS: dict[str, dict[str, Any]] = {
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
        "sliding_window": 4096,
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


def read_text(raw: Mapping[str, Any], top: Mapping[str, Any]) -> TextConfig:
    kind = raw.get("model_type", "llama")
    if kind not in _DEFAULTS:
        raise CheckpointError(f"text_config.model_type {kind!r}: expected llama, mistral or qwen2")
    values = {**_DEFAULTS[kind], **{k: v for k, v in raw.items() if v is not None or k == "sliding_window"}}
    heads = positive(values, "text_config", "num_attention_heads")
    hidden = positive(values, "text_config", "hidden_size")
    kv_heads = values.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise CheckpointError(f"text_config: {heads} attention heads are not a multiple of {kv_heads} key-value heads")
    context = positive(values, "text_config", "max_position_embeddings")
    window = values.get("sliding_window") if kind == "mistral" else None
    if values.get("use_sliding_window") and values.get("max_window_layers", 0) < values["num_hidden_layers"]:
        raise CheckpointError("text_config.use_sliding_window: windows on some layers only are not supported")
    tied = raw.get("tie_word_embeddings", top.get("tie_word_embeddings", False))
    return TextConfig(
        kind=kind,
        vocab_size=positive(values, "text_config", "vocab_size"),
        hidden_size=hidden,
        intermediate_size=positive(values, "text_config", "intermediate_size"),
        layers=positive(values, "text_config", "num_hidden_layers"),
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
        rope=read_rope(values, context),
        sliding_window=window if window and window < context else None,
    )
