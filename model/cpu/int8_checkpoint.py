"""int8 weights in a checkpoint: found once, written beside all else that the checkpoint holds, loaded as they are.

Stored is the model of `model.cpu.int8` before it is packed, each tensor under its name there: int8 weights with a scale
for each output channel, what the factors of `model.cpu.smoothing` and the mixing made of norms and weights, and the
rest in bfloat16. A head that shares the embedding's weights is found when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from model.checkpoint.configuration import check_sizes, read_config
from model.checkpoint.files import checked_folder, read_json
from model.checkpoint.folder import written_aside
from model.checkpoint.lineage import origin
from model.checkpoint.load import Checkpoint, give_angles, load_model, read_tensors
from model.checkpoint.manifest import MANIFEST, build_manifest
from model.checkpoint.plan import Progress, counter, read_back
from model.checkpoint.quantization import int8_section, is_int8
from model.checkpoint.save import copy_small_files, in_memory
from model.checkpoint.tensors import StoredTensor, stored_tensors
from model.checkpoint.weights import SHARD_BYTES, write_weights
from model.config import LlavaConfig
from model.cpu.int8 import Int8Head, check_int8, pack, quantized
from model.cpu.smoothing import LayerFactors, smoothing_factors
from model.errors import CheckpointError
from model.images import read_preprocessor
from model.llava import LlavaModel
from model.prompts import load_prompter
from model.rope import HalfRope

_STEM = "int8"  # of the files: transformers warns of a quantisation that it does not know, but finds no weights then
_HEAD = "language_model.scorer."


def write_int8(
    source: str | Path, target: Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> Path:
    """Quantises the checkpoint `source` and writes `target`. Raises ModelError where int8 cannot be computed,
    CheckpointError for a source that cannot be loaded and a target that cannot be written."""
    check_int8("cpu", torch.bfloat16)
    directory = checked_folder(source)
    config = read_config(directory)
    model = load_model(directory, config, "cpu", torch.bfloat16)
    model = quantized(model, smoothing_factors(model))
    kept = _stored_part(model.state_dict(), config)
    tensors = {name: in_memory(name, tensor) for name, tensor in kept.items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    made_from = origin("source", directory)
    with written_aside(target, total) as aside:
        advance = counter("writing", total, progress)
        digests = write_weights(tensors, aside, stem=_STEM, shard_bytes=shard_bytes, advance=advance)
        copy_small_files(directory, aside)
        raw = {**read_json(directory / "config.json"), **int8_section(), "torch_dtype": "bfloat16"}
        _write_json(aside / "config.json", raw)
        read_back(aside, digests, counter("checking", total, progress), integers=True)
        manifest = build_manifest(
            aside,
            digests,
            name=f"{config.generation or config.kind}-int8",
            source="weights quantised to int8: evened out, mixed by a Hadamard matrix, scaled by output channel",
            parent=made_from.identity,
            made_from=[made_from.as_json()],
        )
        _write_json(aside / MANIFEST, manifest)
    return target


def is_stored_in_int8(path: str | Path) -> bool:
    """Raises CheckpointError for a directory without a configuration that can be read."""
    directory = checked_folder(path)
    return is_int8(read_config(directory), str(directory))


def load_int8_checkpoint(path: str | Path) -> Checkpoint:
    """Like `load_checkpoint`, of one that `write_int8` wrote. Raises ModelError where int8 cannot be computed."""
    directory = checked_folder(path)
    config = read_config(directory)
    prompter = load_prompter(directory, config)
    preprocessor = read_preprocessor(directory, config)
    return Checkpoint(directory, config, _load_model(directory, config), preprocessor, prompter)


def int8_faults(config: LlavaConfig, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Sentences about tensors that are missing, unexpected, or of another dtype or shape; empty when all is well."""
    wanted = _stored_part(_frame(config).state_dict(), config)
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    faults += [f"{name} is unexpected" for name in sorted(tensors.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & tensors.keys()):
        found, like = tensors[name], wanted[name]
        if found.dtype != like.dtype:
            faults.append(f"{found.file.name}: {name} is stored as {_told(found.dtype)}, expected {_told(like.dtype)}")
        if found.shape != tuple(like.shape):
            faults.append(f"{found.file.name}: {name} has shape {list(found.shape)}, expected {list(like.shape)}")
    return faults


def _load_model(directory: Path, config: LlavaConfig) -> LlavaModel:
    check_int8("cpu", torch.bfloat16)
    check_sizes(config, str(directory / "config.json"))
    stored = stored_tensors(directory, integers=True)
    if faults := int8_faults(config, stored):
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise CheckpointError(f"{directory}: {faults[0]}{more}")
    model = _frame(config)
    language = model.language_model
    tensors = read_tensors(stored, torch.device("cpu"), None)
    if config.text.tied_embeddings:
        language.scorer = None
    model.load_state_dict(tensors, assign=True)
    if config.text.tied_embeddings:
        language.scorer = Int8Head(language.model.embed_tokens.weight, exact=True)
    rope = language.model.rope
    assert isinstance(rope, HalfRope)
    give_angles(rope.rope, config, "cpu")
    return pack(model).eval().requires_grad_(False)


def _frame(config: LlavaConfig) -> LlavaModel:
    """The model in int8 without any memory: names, dtypes and shapes."""
    with torch.device("meta"):
        model = LlavaModel(config).to(torch.bfloat16)
        return quantized(model, [LayerFactors.ones(config.text, "meta")] * config.text.layers)


def _stored_part(state: Mapping[str, torch.Tensor], config: LlavaConfig) -> dict[str, torch.Tensor]:
    tied = config.text.tied_embeddings
    return {name: tensor for name, tensor in state.items() if not (tied and name.startswith(_HEAD))}


def _told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
