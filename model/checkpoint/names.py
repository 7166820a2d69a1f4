"""Tensor names: what Hugging Face and the original code call the same tensor, and the one name used here.

The name used here is the older one of Hugging Face (transformers 4.37 to 4.51), which transformers 4, 5 and vLLM all
load. Every function here takes a name as it is written in a file; None stands for a tensor that is derived and never
loaded. A name that belongs to no table comes back as it is, for whoever checks the whole to complain about.
"""

from __future__ import annotations

import re
from typing import Literal

Part = Literal["vision_tower", "connector", "language_model"]
PARTS: tuple[Part, ...] = ("vision_tower", "connector", "language_model")
LM_HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
NEWLINE = "image_newline"

_TOWER = "vision_tower.vision_model."
_CONNECTOR = "multi_modal_projector."
_DERIVED = (".inv_freq", ".position_ids")

_OUTER = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", _CONNECTOR),
    ("model.image_newline", NEWLINE),
    ("lm_head.", "language_model.lm_head."),
)
_ORIGINAL = (
    ("model.vision_tower.vision_tower.vision_model.", _TOWER),
    ("model.mm_projector.0.", f"{_CONNECTOR}linear_1."),
    ("model.mm_projector.2.", f"{_CONNECTOR}linear_2."),
    ("model.image_newline", NEWLINE),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
)
_LINEAR = "model.mm_projector."  # of a linear connector: weight and bias, no layer number
_BARE_TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_POOLING_HEAD = re.compile(r"^vision_tower\.vision_model\.head\.")  # SigLIP's: no LLaVA uses it
_BESIDE_TOWER = ("text_model.", "visual_projection.", "text_projection.", "logit_scale", "logit_bias")


def canonical_name(name: str) -> str | None:
    """From any Hugging Face layout of a LLaVA."""
    if name.endswith(_DERIVED):
        return None
    name = _replaced(name, _OUTER)
    if name.startswith("vision_tower.") and not name.startswith(_TOWER):
        name = _TOWER + name[len("vision_tower.") :]
    return None if _POOLING_HEAD.match(name) else name


def from_original(name: str) -> str | None:
    """From the original layout of a LLaVA, or from a language model alone in Hugging Face layout."""
    if name.endswith(_DERIVED):
        return None
    if name in (f"{_LINEAR}weight", f"{_LINEAR}bias"):
        return f"{_CONNECTOR}linear_1.{name[len(_LINEAR) :]}"
    name = _replaced(name, _ORIGINAL)
    if name.startswith("model.vision_tower.vision_tower."):  # saved by transformers 5, which left out `vision_model`
        name = _TOWER + name[len("model.vision_tower.vision_tower.") :]
    return None if _POOLING_HEAD.match(name) else name


def from_tower(name: str) -> str | None:
    """From a CLIP or SigLIP checkpoint; its text half is none of ours."""
    if name.endswith(_DERIVED) or name.startswith(_BESIDE_TOWER):
        return None
    if name.startswith("vision_model."):
        name = f"vision_tower.{name}"
    elif name.startswith(_BARE_TOWER):
        name = _TOWER + name
    return None if _POOLING_HEAD.match(name) else name


def from_non_lora(name: str) -> str | None:
    """From `non_lora_trainables.bin`, whose names carry the wrappers that training had put around the model."""
    name = name.removeprefix("base_model.")
    wrapped = name.startswith(("model.model.", "model.lm_head."))
    return from_original(name.removeprefix("model.") if wrapped else name)


def to_original(name: str, *, linear: bool) -> str:
    """From the name used here to the original layout's."""
    if linear and name.startswith(f"{_CONNECTOR}linear_1."):
        return _LINEAR + name[len(f"{_CONNECTOR}linear_1.") :]
    for original, ours in _ORIGINAL:
        if name.startswith(ours):
            return original + name[len(ours) :]
    return name


def part_of(name: str) -> Part:
    """The part that a tensor (by the name used here) belongs to. The newline is trained with the connector's space."""
    if name.startswith("vision_tower."):
        return "vision_tower"
    if name.startswith(_CONNECTOR) or name == NEWLINE:
        return "connector"
    return "language_model"


def _replaced(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for prefix, replacement in table:
        if name.startswith(prefix):
            return replacement + name[len(prefix) :]
    return name
