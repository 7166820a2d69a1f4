"""Tensor names: what Hugging Face has called the same tensor over the years, and the one name used here.

The name used here is the older one (transformers 4.37 to 4.51), which transformers 4, 5 and vLLM all load.
"""

from __future__ import annotations

_OUTER = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
)


def canonical_name(name: str) -> str | None:
    """The name used here, or None for a tensor that is derived and never loaded (rotary frequencies, position ids)."""
    if name.endswith((".inv_freq", ".position_ids")):
        return None
    for prefix, replacement in _OUTER:
        if name.startswith(prefix):
            name = replacement + name[len(prefix) :]
            break
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = "vision_tower.vision_model." + name[len("vision_tower.") :]
    return name
