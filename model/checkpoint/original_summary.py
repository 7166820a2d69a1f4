"""What a directory in the original layout is, and what its import would make of it. Reads headers and small files only.

It judges nothing and needs nothing besides: what is missing (the vision tower, the base of a piece) is said in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.adapters import ADAPTER_CONFIG, lora_pairs, projector, trained_beside
from model.checkpoint.chat_template import family_template_name
from model.checkpoint.files import checked_folder, read_json
from model.checkpoint.names import PARTS, from_original, part_of
from model.checkpoint.original import OriginalConfig, known_tower, read_original, told_by_export
from model.checkpoint.original_parts import Piece, generation_of, may_be_delta, piece_of
from model.checkpoint.summary import PartSummary, summarise_part
from model.checkpoint.tensors import StoredTensor, all_tensors
from model.checkpoint.tokenizer_files import has_tokenizer, plan_tokenizer
from model.checkpoint.towers import has_tower
from model.config.original import is_original
from model.prompts.templates import MARKED_IMAGE

_TILE = 336  # of a tower whose sizes are not known; canvases are only counted

_HOLDS: Mapping[Piece, str] = {
    "whole": "whole weights",
    "adapter": "a LoRA adapter and what was trained beside it",
    "projector": "a projector alone",
}


@dataclass(frozen=True)
class OriginalSummary:
    """`generation` and `template` are what an import would choose; `missing` and `command`, what it asks for."""

    path: str
    layout: str
    holds: str
    generation: str
    images: str
    vision_tower: str
    context_length: int | None
    template: str
    parts: tuple[PartSummary, ...]
    missing: tuple[str, ...]
    command: str

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)


def in_original_layout(path: str | Path) -> bool:
    """Raises CheckpointError for a directory that is no checkpoint."""
    return is_original(read_json(checked_folder(path) / "config.json"))


def summarise_original(path: str | Path) -> OriginalSummary:
    """Raises CheckpointError."""
    directory = checked_folder(path)
    raw = read_json(directory / "config.json")
    original = read_original(raw, str(directory / "config.json"))
    piece = piece_of(directory)
    tensors = _tensors(directory, piece)
    missing = dict(_missing(directory, original, piece, tensors))
    options = "".join(f" {option} FOLDER" for option in missing if option)
    context = raw.get("max_position_embeddings")
    return OriginalSummary(
        path=str(directory),
        layout=f"original ({raw.get('model_type')})",
        holds=_HOLDS[piece] + (", perhaps a delta, by its name" if may_be_delta(directory) else ""),
        generation=str(told_by_export(raw).get("generation") or generation_of(original, siglip=_is_siglip(original))),
        images=_images(original),
        vision_tower=original.tower + (", inside" if has_tower(tensors) else ""),
        context_length=context if isinstance(context, int) else None,
        template=_template(directory, raw),
        parts=tuple(_parts(directory, original, piece, tensors)),
        missing=tuple(missing.values()),
        command=f"tephra checkpoint import {directory} TARGET{options}",
    )


def _tensors(directory: Path, piece: Piece) -> dict[str, StoredTensor]:
    if piece == "adapter":
        return trained_beside(directory)
    return projector(directory) if piece == "projector" else all_tensors(directory, from_original)


def _parts(
    directory: Path, original: OriginalConfig, piece: Piece, tensors: Mapping[str, StoredTensor]
) -> Iterator[PartSummary]:
    raw = original.raw
    described = {
        "vision_tower": original.tower,
        "connector": original.connector + (f", {original.activation}" if original.connector == "mlp" else ""),
        "language_model": f"{original.language_model}, {raw.get('num_hidden_layers')} layers, "
        f"width {raw.get('hidden_size')}",
    }
    for name in PARTS:
        held = [tensor for tensor_name, tensor in tensors.items() if part_of(tensor_name) == name]
        yield summarise_part(name, described[name] if held else f"not here: {described[name]}", held)
    if piece == "adapter":
        pairs = lora_pairs(directory)
        ranks = sorted({a.shape[0] for a, _ in pairs.values()})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        matrices = [matrix for pair in pairs.values() for matrix in pair]
        weights = f"{len(pairs)} weight{'s' if len(pairs) > 1 else ''}"
        yield summarise_part("adapter", f"LoRA, {rank}, of {weights}", matrices)


def _missing(
    directory: Path, original: OriginalConfig, piece: Piece, tensors: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, str]]:
    """The option of `tephra checkpoint import` that brings it, and what it is."""
    if piece == "adapter":
        named = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
        yield "--base", f"the model that it adapts, {named} (--base)" if named else "the model that it adapts (--base)"
    elif piece == "projector":
        yield "--base", "the language model that it belongs to (--base)"
    elif may_be_delta(directory):
        yield "--delta --base", "the model that it is to be added to, if it is a delta (--delta --base)"
    if not has_tower(tensors):
        unless = "" if piece == "whole" else ", unless the base holds it"
        yield "--vision-tower", f"the vision tower {original.tower} (--vision-tower){unless}"
    elif known_tower(original.tower) is None:
        yield "--vision-tower", f"the sizes of the vision tower {original.tower} (--vision-tower)"
    if piece == "whole" and not has_tokenizer(directory):
        yield "", "the tokenizer: its language model's files, to be copied into the directory"


def _is_siglip(original: OriginalConfig) -> bool:
    """Of a tower that is not known, its name tells."""
    section = known_tower(original.tower)
    return section["model_type"] == "siglip_vision_model" if section else "siglip" in original.tower.lower()


def _images(original: OriginalConfig) -> str:
    if original.images != "anyres":
        return original.images
    mode = "hd" if told_by_export(original.raw).get("images") == "hd" else "anyres"
    section = known_tower(original.tower) or {}
    limit = f", at most {original.max_tiles} tiles' features" if original.max_tiles is not None else ""
    return f"{mode}, {len(original.canvases(section.get('image_size', _TILE)))} canvases{limit}"


def _template(directory: Path, raw: Mapping[str, Any]) -> str:
    special: set[str] = set()
    if has_tokenizer(directory):
        decoder = plan_tokenizer(directory, ()).tokenizer.get_added_tokens_decoder()
        special = {token.content for token in decoder.values()}
    name = family_template_name(directory, raw, special)
    return f"{name}, with {MARKED_IMAGE}" if raw.get("mm_use_im_start_end", False) else name
