"""From our layout to others: the one for transformers and vLLM, and the original.

Ours is what transformers and vLLM load already, so the first is an import of it with every file made anew, held to what
they can do. The original gets its own names and configuration back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.configuration import read_config
from model.checkpoint.elsewhere import differences, limits, refusals
from model.checkpoint.expected import check_tensors
from model.checkpoint.files import checked_folder, read_json
from model.checkpoint.folder import written_aside
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.names import LM_HEAD, to_original
from model.checkpoint.original import text_section
from model.checkpoint.plan import Progress, counter, dtype_name, write_checkpoint
from model.checkpoint.tensors import stored_tensors
from model.checkpoint.tokenizer_files import plan_tokenizer, write_tokenizer
from model.checkpoint.weights import SHARD_BYTES, write_weights
from model.config import LlavaConfig
from model.errors import CheckpointError

_ORIGINAL_TYPES = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}
_ARCHITECTURES = {
    "llama": "LlavaLlamaForCausalLM",
    "mistral": "LlavaMistralForCausalLM",
    "qwen2": "LlavaQwenForCausalLM",
}


def export_for_transformers(
    source: str | Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    template: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> list[str]:
    """Writes `target`; returns where transformers or vLLM will do otherwise than the checkpoint says.

    Raises CheckpointError for what neither can do.
    """
    plan = plan_import(source, ImportOptions(dtype=dtype, template=template))
    if found := refusals(plan.config):
        raise CheckpointError(f"{source}: cannot be exported: {'; '.join(found)}")
    write_checkpoint(plan, target, shard_bytes=shard_bytes, progress=progress)
    return [*limits(plan.config), *differences(plan.config)]


def export_original(
    source: str | Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    tower: str = "vision-tower",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> list[str]:
    """Writes `target` in the original layout, its vision tower inside; `tower` is what mm_vision_tower is to say.

    Returns what the original code must be told besides. Raises CheckpointError.
    """
    directory = checked_folder(source)
    config = read_config(directory)
    if config.vision.kind == "siglip" and config.encoder_layers_used != config.vision.layers:
        raise CheckpointError(
            f"{source}: cannot be exported: the original code takes the last layer that a SigLIP tower keeps, "
            f"this model layer {config.encoder_layers_used} of {config.vision.layers}"
        )
    stored = stored_tensors(directory)
    if config.text.tied_embeddings:
        stored.pop(LM_HEAD, None)
    check_tensors(config, stored, str(directory))
    chosen = dtype or next(iter(stored.values())).dtype
    linear = config.connector == "linear"
    tensors = {to_original(name, linear=linear): tensor.cast(chosen) for name, tensor in stored.items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    with written_aside(target, total) as aside:
        write_weights(tensors, aside, shard_bytes=shard_bytes, advance=counter("writing", total, progress))
        raw = _original_config(config, read_json(directory / "config.json"), tower)
        raw["torch_dtype"] = dtype_name(chosen)
        (aside / "config.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")
        write_tokenizer(plan_tokenizer(directory, ()), aside)
    notes = [f"The original code loads the architecture of the vision tower from mm_vision_tower, {tower!r}."]
    if config.canvases and config.rounding == "round7":
        notes.append("The original code cuts padding with another rounding: a few image sizes get other token counts.")
    return notes


def _original_config(config: LlavaConfig, raw: Mapping[str, Any], tower: str) -> dict[str, Any]:
    kind = config.text.kind
    anyres = "anyres" if config.max_tiles is None else f"anyres_max_{config.max_tiles}"
    layer = (
        -2 if config.vision.kind == "siglip" else config.feature_layer
    )  # the original cuts SigLIP's last layer itself
    text = {
        **raw["text_config"],
        "vocab_size": config.text.vocab_size,
        "tie_word_embeddings": config.text.tied_embeddings,
    }
    return {
        **text_section(text, kind),
        "model_type": _ORIGINAL_TYPES[kind],
        "architectures": [_ARCHITECTURES[kind]],
        "mm_vision_tower": tower,
        "mm_hidden_size": config.vision.hidden_size,
        "mm_projector_type": "linear" if config.connector == "linear" else f"mlp2x_{config.connector_activation}",
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": "cls_patch" if config.vision.has_cls_token and not config.drop_cls else "patch",
        "mm_patch_merge_type": "spatial_unpad" if config.has_newline else "flat",
        "image_aspect_ratio": {"crop": "square", "pad": "pad"}.get(config.image_mode, anyres),
        "image_grid_pinpoints": [[canvas.width, canvas.height] for canvas in config.canvases],
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tokenizer_model_max_length": config.text.context_length,
    }
