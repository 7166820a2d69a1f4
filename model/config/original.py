"""Whether a config.json is of the original layout, told before anything else of it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.errors import CheckpointError

ORIGINAL_TYPES: Mapping[str, str] = {  # model_type -> what Hugging Face calls the language model in it
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}


def is_original(raw: Mapping[str, Any]) -> bool:
    """`raw` is a config.json. `llava` is a model_type of both layouts; Hugging Face's has sections."""
    if "text_config" in raw or "vision_config" in raw:
        return False
    return "mm_vision_tower" in raw or raw.get("model_type") in ORIGINAL_TYPES


def refuse_original(raw: Mapping[str, Any], directory: object) -> None:
    """Raises CheckpointError that says what to do."""
    if is_original(raw):
        raise CheckpointError(
            f"{directory}: in the original layout ({raw.get('model_type')}); "
            f"'tephra checkpoint import {directory} FOLDER' brings it into ours"
        )
