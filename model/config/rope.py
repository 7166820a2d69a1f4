"""Rotary positions as config.json spells them, in old and new transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.errors import CheckpointError


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


def read_rope(values: Mapping[str, Any], context: int) -> RopeConfig:
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
