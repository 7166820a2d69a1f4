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

from model.checkpoint.chat_template import own_template
from model.checkpoint.configuration import read_config
from model.checkpoint.elsewhere import differences, limits, refusals
from model.checkpoint.expected import check_tensors
from model.checkpoint.files import checked_folder, read_json, read_json_if_there
from model.checkpoint.folder import written_aside
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.names import LM_HEAD, to_original
from model.checkpoint.original import text_section
from model.checkpoint.plan import Progress, counter, dtype_name, write_checkpoint
from model.checkpoint.quantization import refuse_quantized
from model.checkpoint.tensors import stored_tensors
from model.checkpoint.tokenizer_files import plan_tokenizer, write_tokenizer
from model.checkpoint.weights import SHARD_BYTES, write_weights
from model.config import LlavaConfig, to_hf
from model.config.original import refuse_original
from model.errors import CheckpointError
from model.prompts.templates import MARKED_IMAGE, recognise_template

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
    refuse_original(read_json(checked_folder(source) / "config.json"), source)
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
    refuse_quantized(config, str(directory))
    stored = stored_tensors(directory)
    if config.text.tied_embeddings:
        stored.pop(LM_HEAD, None)
    check_tensors(config, stored, str(directory))
    chosen = dtype or next(iter(stored.values())).dtype
    linear = config.connector == "linear"
    tensors = {to_original(name, linear=linear): tensor.cast(chosen) for name, tensor in stored.items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    tokenizer = plan_tokenizer(directory, ())
    template = own_template(directory, tokenizer) or ""
    raw = _original_config(config, read_json(directory / "config.json"), tower)
    raw["mm_use_im_start_end"] = MARKED_IMAGE in template
    written_as = recognise_template(template) if template else None
    raw["tephra"] = _for_our_import(config, written_as)
    raw["torch_dtype"] = dtype_name(chosen)
    stops = read_json_if_there(directory / "generation_config.json")
    with written_aside(target, total) as aside:
        write_weights(tensors, aside, shard_bytes=shard_bytes, advance=counter("writing", total, progress))
        (aside / "config.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")
        (aside / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n", "utf-8")
        write_tokenizer(tokenizer, aside)
    notes = [f"The original code loads the architecture of the vision tower from mm_vision_tower, {tower!r}."]
    if config.image_mode == "hd":
        notes.append("The original code has no LLaVA-1.5-HD: it lays images out as LLaVA-NeXT does.")
    elif config.canvases and config.rounding == "round7":
        notes.append("The original code cuts padding with another rounding: a few image sizes get other token counts.")
    if template and written_as is None:
        notes.append("The chat template is none of the family's and is left out: the original code has its own.")
    return notes


def _for_our_import(config: LlavaConfig, written_as: str | None) -> dict[str, Any]:
    """What the original's fields have no words for; the original code ignores the section."""
    told = {
        "model_type": config.kind,
        "generation": config.generation,
        "images": config.image_mode,
        "rounding": config.rounding,
        "several_images": config.several_images,
        "chat_template": written_as,
    }
    return {field: value for field, value in told.items() if value is not None}


def _original_config(config: LlavaConfig, raw: Mapping[str, Any], tower: str) -> dict[str, Any]:
    kind = config.text.kind
    anyres = "anyres" if config.max_tiles is None else f"anyres_max_{config.max_tiles}"
    layer = -2 if config.vision.kind == "siglip" else config.feature_layer  # it cuts SigLIP's last layer itself
    text = {**raw["text_config"], **to_hf(config)["text_config"]}
    if config.text.rope.kind in ("linear", "dynamic"):  # in the words that the original's transformers knows
        text["rope_scaling"] = {"type": config.text.rope.kind, "factor": config.text.rope.factor}
    text.pop("rope_parameters", None)
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
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tokenizer_model_max_length": config.text.context_length,
    }
