"""How many tokens a row may have at each stage of the family, and how images are counted there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """`generation` is one of `model.generations`; `base_view`: tiles are left out, as in early stages."""

    generation: str
    max_tokens: int
    template: str
    base_view: bool = False


PRESETS: Mapping[str, Preset] = {
    "llava-1.0": Preset("llava-1.0", 2048, "v1"),
    "llava-1.5-pretrain": Preset("llava-1.5", 2048, "plain"),
    "llava-1.5": Preset("llava-1.5", 2048, "v1"),
    "llava-1.5-hd": Preset("llava-1.5-hd", 2048, "v1"),
    "llava-next-2024-01": Preset("llava-next-2024-01", 4096, "v1"),
    "llava-next-2024-05-pretrain": Preset("llava-next-2024-05", 8192, "plain", base_view=True),
    "llava-next-2024-05": Preset("llava-next-2024-05", 32768, "qwen_1_5"),
}
