"""Anyone's LLaVA becomes a checkpoint in the one layout that we, transformers 4.5x and 5, and vLLM load.

What comes in: every Hugging Face layout since transformers 4.37; the original layout, whole, or in pieces that need a
base (a projector, a LoRA adapter, a delta), with or without its vision tower. Pickles are read as data only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.adapters import ADAPTER_CONFIG, PROJECTOR, delta_on, lora_on, projector
from model.checkpoint.chat_template import STOP_TOKENS, family_template, own_template
from model.checkpoint.configuration import checked_config
from model.checkpoint.derived import constant, with_rows
from model.checkpoint.files import checked_folder, read_json, read_json_if_there
from model.checkpoint.names import EMBEDDING, LM_HEAD, NEWLINE, canonical_name, from_original, from_tower, part_of
from model.checkpoint.original import (
    OriginalConfig,
    is_original,
    known_tower,
    read_original,
    text_section,
    vision_section,
)
from model.checkpoint.plan import CheckpointPlan, dtype_name
from model.checkpoint.processor_files import NORMALISATION
from model.checkpoint.tensors import StoredTensor, all_tensors, has_weights
from model.checkpoint.tokenizer_files import IMAGE, VIDEO, TokenizerPlan, has_tokenizer, plan_tokenizer
from model.config import LlavaConfig
from model.config.write import to_hf
from model.errors import CheckpointError
from model.generations import GENERATIONS, Generation
from model.geometry import BaseView, Canvas
from model.images import read_preprocessor
from model.prompts.templates import find_template

_VOCABULARY_MULTIPLE = 64
_POST_NORM = "vision_tower.vision_model.post_layernorm"

Tensors = dict[str, StoredTensor]


@dataclass(frozen=True)
class ImportOptions:
    """What the source does not say itself."""

    base: Path | None = None  # the model under a projector, an adapter or a delta
    delta: bool = False  # the source's weights are to be added to the base's
    vision_tower: Path | None = None
    generation: str | None = None  # a preset whose way with images is taken instead of the config's
    template: str | None = None  # a chat template of ours by name, or a file, instead of the one that fits
    dtype: torch.dtype | None = None  # by default that of the token embeddings


def plan_import(source: str | Path, options: ImportOptions | None = None) -> CheckpointPlan:
    """Reads headers and small files only. Raises CheckpointError for whatever stands in the way."""
    chosen = options or ImportOptions()
    if chosen.generation is not None and chosen.generation not in GENERATIONS:
        raise CheckpointError(f"generation {chosen.generation!r}: expected one of {', '.join(GENERATIONS)}")
    directory = checked_folder(source)
    raw = read_json(directory / "config.json")
    return _plan_original(directory, raw, chosen) if is_original(raw) else _plan_hf(directory, raw, chosen)


def _plan_hf(directory: Path, raw: Mapping[str, Any], options: ImportOptions) -> CheckpointPlan:
    for field, given in (("base", options.base), ("vision tower", options.vision_tower)):
        if given is not None:
            raise CheckpointError(f"{directory}: is whole, in Hugging Face layout; it takes no {field}")
    config = checked_config(raw, str(directory / "config.json"))
    preprocessor = read_preprocessor(directory, config)
    base: BaseView = preprocessor.geometry.base
    if config.kind == "llava":
        config = replace(config, image_mode="pad" if base == "pad" else "crop")
    if options.generation is not None:
        config = _as_generation(config, GENERATIONS[options.generation])
        base = _base_view(config)
    tokenizer = plan_tokenizer(directory, ())
    image_token = tokenizer.tokenizer.id_to_token(config.image_token_id)
    if image_token is None:
        raise CheckpointError(f"{directory}: the tokenizer does not know the image token id {config.image_token_id}")
    return _plan(
        f"Hugging Face ({raw.get('model_type')})",
        config,
        all_tensors(directory, canonical_name),
        tokenizer,
        str(image_token),
        raw["text_config"],
        find_template(options.template) if options.template else own_template(directory, tokenizer),
        directory,
        base,
        (preprocessor.mean, preprocessor.std),
        options.dtype,
        (),
    )


def _plan_original(directory: Path, raw: Mapping[str, Any], options: ImportOptions) -> CheckpointPlan:
    original = read_original(raw)
    layout, tensors = _original_weights(directory, options)
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{directory}: no token embeddings among the weights; is this a whole language model?")
    tower, normalisation = _add_tower(directory, original, tensors, options.vision_tower)
    config = _original_config(directory, original, tower, tensors, options.generation)
    notes = []
    if not config.has_newline and tensors.pop(NEWLINE, None) is not None:
        notes.append("image_newline is left out: images of this checkpoint are one view each.")
    home = directory if has_tokenizer(directory) else options.base
    if home is None:
        raise CheckpointError(f"{directory}: no tokenizer; --base names the model that has it")
    videos = (VIDEO,) if config.kind == "llava_onevision" else ()
    tokenizer = plan_tokenizer(home, (*original.image_word_tokens, IMAGE, *videos))
    image_id = tokenizer.id_of(IMAGE)
    assert image_id is not None
    template = find_template(options.template) if options.template else family_template(directory, raw, tokenizer)
    return _plan(
        f"original ({raw.get('model_type')}{layout})",
        replace(config, image_token_id=image_id),
        tensors,
        tokenizer,
        IMAGE,
        raw,
        template,
        home,
        _base_view(config),
        normalisation or NORMALISATION[config.vision.kind],
        options.dtype,
        notes,
    )


def _plan(
    layout: str,
    config: LlavaConfig,
    tensors: Tensors,
    tokenizer: TokenizerPlan,
    image_token: str,
    text: Mapping[str, Any],
    template: str | None,
    home: Path,
    base: BaseView,
    normalisation: tuple[Sequence[float], Sequence[float]],
    dtype: torch.dtype | None,
    notes: Sequence[str],
) -> CheckpointPlan:
    """What every layout comes to: a padded vocabulary, one dtype, and files that follow from the configuration."""
    if config.text.tied_embeddings:
        tensors.pop(LM_HEAD, None)
    if EMBEDDING in tensors and tensors[EMBEDDING].shape:
        rows = max(tensors[EMBEDDING].shape[0], tokenizer.size)
        rows += -rows % _VOCABULARY_MULTIPLE
        config = replace(config, text=replace(config.text, vocab_size=rows))
        for table in (EMBEDDING, LM_HEAD):
            if table in tensors and tensors[table].shape and tensors[table].shape[0] < rows:
                tensors[table] = with_rows(tensors[table], rows)
        dtype = dtype or tensors[EMBEDDING].dtype
    dtype = dtype or torch.bfloat16
    raw = to_hf(config)
    raw["torch_dtype"] = dtype_name(dtype)
    raw["image_seq_length"] = config.vision.grid**2
    if (video := tokenizer.id_of(VIDEO)) is not None and config.kind == "llava_onevision":
        raw["video_token_index"] = video
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
    raw["text_config"] |= {name: text[name] for name in kept if text.get(name) is not None}
    mean, std = normalisation
    return CheckpointPlan(
        layout=layout,
        raw=raw,
        tensors={name: tensor.cast(dtype) for name, tensor in tensors.items()},
        tokenizer=tokenizer,
        image_token=image_token,
        template=template,
        stop_token_ids=_stop_ids(home, tokenizer, text, template),
        base=base,
        mean=mean,
        std=std,
        notes=tuple(notes),
    )


def _original_weights(directory: Path, options: ImportOptions) -> tuple[str, Tensors]:
    """What kind of piece it is, in words, and the tensors of the whole."""
    base = _base_tensors(options.base) if options.base is not None else None
    if (directory / ADAPTER_CONFIG).exists():
        if base is None:
            raise CheckpointError(f"{directory}: a LoRA adapter; --base names the model that it adapts")
        return ", LoRA merged", lora_on(base, directory)
    if (directory / PROJECTOR).exists() and not has_weights(directory):
        if base is None:
            raise CheckpointError(f"{directory}: a projector alone; --base names the language model that it belongs to")
        return ", projector on a base", {**base, **projector(directory)}
    whole = all_tensors(directory, from_original)
    if options.delta:
        if base is None:
            raise CheckpointError(f"{directory}: a delta needs --base, the model that it is to be added to")
        return ", delta added", delta_on(base, whole)
    if base is not None:
        raise CheckpointError(f"{directory}: holds whole weights; --base is for a projector, an adapter or --delta")
    return "", whole


def _base_tensors(path: Path) -> Tensors:
    base = checked_folder(path)
    return all_tensors(base, canonical_name if "text_config" in read_json(base / "config.json") else from_original)


def _add_tower(
    directory: Path, original: OriginalConfig, tensors: Tensors, given: Path | None
) -> tuple[dict[str, Any], tuple[Sequence[float], Sequence[float]] | None]:
    """Puts the vision tower's tensors among the others. Returns its section of config.json, and its mean and std."""
    inside = any(part_of(name) == "vision_tower" for name in tensors)
    section, normalisation = known_tower(original.tower), None
    if given is not None:
        tower = checked_folder(given)
        section = vision_section(read_json(tower / "config.json"))
        pixels = read_json_if_there(tower / "preprocessor_config.json")
        if "image_mean" in pixels and "image_std" in pixels:
            normalisation = (pixels["image_mean"], pixels["image_std"])
        if not inside:
            tensors |= {n: t for n, t in all_tensors(tower, from_tower).items() if part_of(n) == "vision_tower"}
    elif not inside:
        raise CheckpointError(
            f"{directory}: lacks its vision tower {original.tower}; --vision-tower names its directory"
        )
    if section is None:
        raise CheckpointError(
            f"{directory}: the vision tower {original.tower} is not known; --vision-tower describes it"
        )
    if section["model_type"] == "siglip_vision_model":
        _cut_last_layer(section, tensors)
    for ending, value in (("weight", 1.0), ("bias", 0.0)):  # behind every feature that is used, but readers look for it
        name = f"{_POST_NORM}.{ending}"
        if name not in tensors:
            tensors[name] = constant(tensors[EMBEDDING], name, (int(section["hidden_size"]),), value)
    return section, normalisation


def _cut_last_layer(section: dict[str, Any], tensors: Tensors) -> None:
    """The original leaves SigLIP's last layer out and takes what the one before gives."""
    layers = section.get("num_hidden_layers", 12)
    if not isinstance(layers, int) or layers < 2:
        raise CheckpointError(f"num_hidden_layers {layers!r} of the vision tower: expected at least 2")
    section["num_hidden_layers"] = layers - 1
    for name in [
        name for name in tensors if name.startswith(f"vision_tower.vision_model.encoder.layers.{layers - 1}.")
    ]:
        del tensors[name]


def _original_config(
    directory: Path, original: OriginalConfig, tower: dict[str, Any], tensors: Tensors, generation: str | None
) -> LlavaConfig:
    siglip = tower["model_type"] == "siglip_vision_model"
    preset = GENERATIONS[generation or _generation_of(original, siglip=siglip)]
    kind = "llava"
    if original.images == "anyres":
        kind = "llava_next" if original.max_tiles is None else "llava_onevision"
    tile = tower.get("image_size", 224)
    raw: dict[str, Any] = {
        "model_type": kind,
        "text_config": {
            **text_section(original.raw, original.language_model),
            "vocab_size": tensors[EMBEDDING].shape[0] if tensors[EMBEDDING].shape else 0,
        },
        "vision_config": tower,
        "image_token_index": 0,
        "vision_feature_layer": -1 if siglip else original.feature_layer,
        "vision_feature_select_strategy": "full" if siglip or original.keeps_cls else "default",
        "projector_hidden_act": original.activation,
        "tephra": {
            "generation": preset.name,
            "connector": original.connector,
            "images": original.images,
            "rounding": preset.rounding,
            "several_images": preset.several_images,
        },
    }
    if original.images == "anyres" and isinstance(tile, int):
        own = generation is None or original.raw.get("image_grid_pinpoints")
        grids = [[down * tile, across * tile] for across, down in preset.grids]
        raw["image_grid_pinpoints"] = original.canvases(tile) if own else grids
    if kind == "llava_onevision":
        raw["vision_aspect_ratio"] = f"anyres_max_{original.max_tiles}"
    config = checked_config(raw, str(directory / "config.json"))
    return config if generation is None else _as_generation(config, preset)


def _generation_of(original: OriginalConfig, *, siglip: bool) -> str:
    if original.images != "anyres":
        return "llava-1.0" if original.connector == "linear" else "llava-1.5"
    return "llava-next-2024-05" if siglip or original.max_tiles is not None else "llava-next-2024-01"


def _as_generation(config: LlavaConfig, preset: Generation) -> LlavaConfig:
    """The preset's way with images, on this checkpoint's towers; canvases that it has already are its own."""
    canvases: tuple[Canvas, ...] = ()
    if preset.images in ("hd", "anyres"):
        tile = config.vision.image_size
        canvases = config.canvases or tuple(Canvas(across * tile, down * tile) for across, down in preset.grids)
    return replace(
        config,
        kind=preset.model_type,
        canvases=canvases,
        image_mode=preset.images,
        rounding=preset.rounding,
        max_tiles=preset.max_tiles,
        several_images=preset.several_images,
        generation=preset.name,
    )


def _base_view(config: LlavaConfig) -> BaseView:
    """How the original makes a square of a whole picture: SigLIP's preprocessor stretches, CLIP's crops."""
    if config.image_mode == "crop":
        return "crop" if config.vision.kind == "clip" else "stretch"
    return "pad" if config.image_mode == "pad" else config.geometry.base


def _stop_ids(home: Path, tokenizer: TokenizerPlan, text: Mapping[str, Any], template: str | None) -> list[int]:
    """Whatever ends an answer: by generation_config.json, by config.json, by the tokenizer, and in the template."""
    told = read_json_if_there(home / "generation_config.json").get("eos_token_id", text.get("eos_token_id"))
    ids = {token for token in (told if isinstance(told, list) else [told]) if type(token) is int}
    ids |= {token for token in (tokenizer.stop_token_id,) if token is not None}
    for stop in STOP_TOKENS:
        if template is not None and stop in template and (found := tokenizer.id_of(stop)) is not None:
            ids.add(found)
    return sorted(ids)
