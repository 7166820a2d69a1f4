"""A checkpoint's config.json as a `LlavaConfig`, held within sizes that a model can have.

The sizes are bounds against nonsense, since a hostile or damaged file must not cost memory. They lie far above any
model of the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.files import read_json
from model.checkpoint.quantization import is_int8
from model.config import LlavaConfig
from model.config.original import refuse_original
from model.errors import CheckpointError

_MAX_LAYERS = 512
_MAX_WIDTH = 1 << 17
_MAX_HEADS = 1 << 11
_MAX_VOCABULARY = 1 << 22
_MAX_CONTEXT = 1 << 24
_MAX_IMAGE_SIDE = 1 << 12  # pixels of a tile
_MAX_CANVASES = 1 << 10
_MAX_TILES_A_SIDE = 64


def read_config(directory: Path) -> LlavaConfig:
    """Raises CheckpointError that names the field."""
    file = directory / "config.json"
    raw = read_json(file)
    refuse_original(raw, directory)
    return checked_config(raw, str(file))


def checked_config(raw: Mapping[str, Any], origin: str) -> LlavaConfig:
    """`origin` is where `raw` comes from, for the message of a CheckpointError."""
    pinpoints = raw.get("image_grid_pinpoints")
    if isinstance(pinpoints, list) and len(pinpoints) > _MAX_CANVASES:
        raise CheckpointError(
            f"{origin}: image_grid_pinpoints has {len(pinpoints)} pairs: expected at most {_MAX_CANVASES}"
        )
    try:
        config = LlavaConfig.from_hf(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{origin}: a field is not of its kind ({type(error).__name__}: {error})") from error
    check_sizes(config, origin)
    is_int8(config, origin)  # or not quantised; whatever else there is cannot be read
    return config


def check_sizes(config: LlavaConfig, origin: str) -> None:
    """Raises CheckpointError for a size that no model of the family has."""
    vision, text = config.vision, config.text
    for field, value, most in (
        ("vision_config.num_hidden_layers", vision.layers, _MAX_LAYERS),
        ("vision_config.hidden_size", vision.hidden_size, _MAX_WIDTH),
        ("vision_config.intermediate_size", vision.intermediate_size, _MAX_WIDTH),
        ("vision_config.num_attention_heads", vision.heads, _MAX_HEADS),
        ("vision_config.image_size", vision.image_size, _MAX_IMAGE_SIDE),
        ("text_config.num_hidden_layers", text.layers, _MAX_LAYERS),
        ("text_config.hidden_size", text.hidden_size, _MAX_WIDTH),
        ("text_config.intermediate_size", text.intermediate_size, _MAX_WIDTH),
        ("text_config.num_attention_heads", text.heads, _MAX_HEADS),
        ("text_config.num_key_value_heads", text.kv_heads, _MAX_HEADS),
        ("text_config.head_dim", text.head_dim, _MAX_WIDTH),
        ("text_config.vocab_size", text.vocab_size, _MAX_VOCABULARY),
        ("text_config.max_position_embeddings", text.context_length, _MAX_CONTEXT),
    ):
        if not isinstance(value, int) or not 1 <= value <= most:
            raise CheckpointError(f"{origin}: {field} {value!r}: expected 1 to {most}")
    for canvas in config.canvases:
        for side in canvas:
            if not 1 <= side <= _MAX_TILES_A_SIDE * vision.image_size:
                raise CheckpointError(
                    f"{origin}: image_grid_pinpoints has a side of {side} pixels: expected 1 to "
                    f"{_MAX_TILES_A_SIDE} tiles of {vision.image_size}"
                )
