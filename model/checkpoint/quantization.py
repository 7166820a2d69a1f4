"""Whether a checkpoint's weights are quantised, and how: `quantization_config` in config.json, as Hugging Face has it.

vLLM looks there too, and refuses a method that it does not know by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import LlavaConfig
from model.errors import CheckpointError

_SECTION = "quantization_config"
_METHOD = "tephra-int8"
_LAYOUT = 1  # raised when what is stored changes


def int8_section() -> dict[str, Any]:
    """What config.json of a checkpoint in int8 says besides."""
    return {_SECTION: {"quant_method": _METHOD, "layout": _LAYOUT}}


def is_int8(config: LlavaConfig, origin: str) -> bool:
    """Raises CheckpointError for weights that are quantised otherwise; `origin` is the checkpoint, for its message."""
    section = config.raw.get(_SECTION)
    if section is None:
        return False
    method = section.get("quant_method") if isinstance(section, Mapping) else section
    if method != _METHOD:
        raise CheckpointError(f"{origin}: {_SECTION}: quant_method {method!r} is not served, expected {_METHOD!r}")
    if section.get("layout") != _LAYOUT:
        raise CheckpointError(
            f"{origin}: {_SECTION}: layout {section.get('layout')!r} is not read, expected {_LAYOUT}; quantise the "
            "checkpoint anew that it was made from"
        )
    return True


def refuse_quantized(config: LlavaConfig, origin: str) -> None:
    """Raises CheckpointError unless the weights are stored as floating-point numbers."""
    if is_int8(config, origin):
        raise CheckpointError(
            f"{origin}: its weights are stored in int8, to be served by a worker of ours on a CPU; for anything else "
            "take the checkpoint that it was made from"
        )
