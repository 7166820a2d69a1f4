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

from model.checkpoint.chat_template import STOP_TOKENS, family_template, own_template
from model.checkpoint.configuration import checked_config
from model.checkpoint.derived import with_rows
from model.checkpoint.files import checked_folder, read_json, read_json_if_there
from model.checkpoint.lineage import Origin, Role, origin
from model.checkpoint.names import EMBEDDING, LM_HEAD, NEWLINE, canonical_name
from model.checkpoint.original import read_original
from model.checkpoint.original_parts import as_generation, may_be_delta, original_config, original_weights
from model.checkpoint.plan import CheckpointPlan, dtype_name
from model.checkpoint.processor_files import NORMALISATION
from model.checkpoint.quantization import refuse_quantized
from model.checkpoint.tensors import StoredTensor, all_tensors
from model.checkpoint.tokenizer_files import IMAGE, VIDEO, TokenizerPlan, has_tokenizer, plan_tokenizer
from model.checkpoint.towers import add_tower, has_tower
from model.config import LlavaConfig
from model.config.llava import MODEL_TYPES
from model.config.original import is_original
from model.config.write import to_hf
from model.errors import CheckpointError
from model.generations import GENERATIONS
from model.geometry import BaseView
from model.images import read_preprocessor
from model.prompts.templates import find_template

_VOCABULARY_MULTIPLE = 64

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
    refuse_quantized(config, str(directory))
    preprocessor = read_preprocessor(directory, config)
    base: BaseView = preprocessor.geometry.base
    if config.kind == "llava":
        config = replace(config, image_mode="pad" if base == "pad" else "crop")
    if options.generation is not None:
        config = as_generation(config, GENERATIONS[options.generation])
        base = _base_view(config)
    tokenizer = plan_tokenizer(directory, ())
    image_token = tokenizer.tokenizer.id_to_token(config.image_token_id)
    if image_token is None:
        raise CheckpointError(f"{directory}: the tokenizer does not know the image token id {config.image_token_id}")
    return _plan(
        f"Hugging Face ({raw.get('model_type')})",
        [origin("source", directory)],
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
    original = read_original(raw, str(directory / "config.json"))
    layout, tensors = original_weights(directory, options.base, delta=options.delta)
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{directory}: no token embeddings among the weights; is this a whole language model?")
    tower = add_tower(directory, original, tensors, options.vision_tower or _tower_in_base(options.base, tensors))
    config = original_config(directory, original, tower.section, tensors, options.generation)
    notes = []
    if may_be_delta(directory) and not options.delta:
        notes.append("The name speaks of a delta: unless --delta and --base are given, weights are taken as they are.")
    if config.image_mode == "anyres" and config.vision.image_size == GENERATIONS["llava-1.5-hd"].vision.image_size:
        notes.append("Tiles of 224 pixels are LLaVA-1.5-HD's; if it is one, import it with --generation llava-1.5-hd.")
    if not config.has_newline and tensors.pop(NEWLINE, None) is not None:
        notes.append("image_newline is left out: images of this checkpoint are one view each.")
    home = directory if has_tokenizer(directory) else options.base
    if home is None:
        raise CheckpointError(f"{directory}: no tokenizer; copy its language model's tokenizer files into it")
    pieces: dict[Role, Path | None] = {
        "source": directory,
        "base": options.base,
        "vision tower": options.vision_tower,
    }
    videos = (VIDEO,) if config.kind == "llava_onevision" else ()
    tokenizer = plan_tokenizer(home, (*original.image_word_tokens, IMAGE, *videos))
    image_id = tokenizer.id_of(IMAGE)
    assert image_id is not None
    template = find_template(options.template) if options.template else family_template(directory, raw, tokenizer)
    return _plan(
        f"original ({raw.get('model_type')}{layout})",
        [origin(role, path) for role, path in pieces.items() if path is not None],
        replace(config, image_token_id=image_id),
        tensors,
        tokenizer,
        IMAGE,
        raw,
        template,
        home,
        _base_view(config),
        tower.normalisation or NORMALISATION[config.vision.kind],
        options.dtype,
        notes,
    )


def _plan(
    layout: str,
    origins: Sequence[Origin],
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
        origins=tuple(origins),
    )


def _tower_in_base(base: Path | None, tensors: Tensors) -> Path | None:
    """The base, where it is a whole LLaVA in Hugging Face layout: its config.json describes the tower in it."""
    if base is None or not has_tower(tensors):
        return None
    raw = read_json(base / "config.json")
    return base if raw.get("model_type") in MODEL_TYPES and not is_original(raw) else None


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
