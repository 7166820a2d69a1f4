"""A checkpoint that is to be written, known in full before a byte of it is.

Whoever plans has read headers and small files only. Writing streams the tensors, reads them back, and renames.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.configuration import checked_config, read_config
from model.checkpoint.expected import check_tensors
from model.checkpoint.folder import written_aside
from model.checkpoint.lineage import Origin, parent_of
from model.checkpoint.manifest import build_manifest
from model.checkpoint.processor_files import (
    ARCHITECTURES,
    PROCESSORS,
    preprocessor_config,
    processor_config,
    video_preprocessor_config,
)
from model.checkpoint.tensors import StoredTensor, stored_tensors
from model.checkpoint.tokenizer_files import TokenizerPlan, write_tokenizer
from model.checkpoint.weights import SHARD_BYTES, tensor_digest, write_weights
from model.config import LlavaConfig
from model.errors import CheckpointError
from model.geometry import BaseView
from model.prompts import load_prompter

Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all

_DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class CheckpointPlan:
    """Everything that will lie in the directory."""

    layout: str  # what was read, in words
    raw: Mapping[str, Any]  # config.json
    tensors: Mapping[str, StoredTensor]
    tokenizer: TokenizerPlan
    image_token: str
    template: str | None
    stop_token_ids: Sequence[int]
    base: BaseView  # how a whole picture becomes a square
    mean: Sequence[float]
    std: Sequence[float]
    notes: Sequence[str] = ()  # what the user should know, a sentence each
    origins: Sequence[Origin] = ()

    @property
    def config(self) -> LlavaConfig:
        return checked_config(self.raw, "config.json")

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def dtype_name(dtype: torch.dtype) -> str:
    """As config.json writes it. Raises CheckpointError for a dtype that no part of the family is kept in."""
    try:
        return _DTYPE_NAMES[dtype]
    except KeyError:
        raise CheckpointError(f"weights of {dtype}: choose float32, float16 or bfloat16") from None


def write_checkpoint(
    plan: CheckpointPlan,
    target: Path,
    *,
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Writes `target` whole, or nothing. `name` is how its version begins. Raises CheckpointError."""
    check_tensors(plan.config, plan.tensors, "the source")
    total = plan.weights_bytes
    with written_aside(target, total) as aside:
        digests = write_weights(
            plan.tensors, aside, shard_bytes=shard_bytes, advance=counter("writing", total, progress)
        )
        _write_small_files(plan, aside)
        read_back(aside, digests, counter("checking", total, progress))
        config = read_config(aside)
        load_prompter(aside, config)
        manifest = build_manifest(
            aside,
            digests,
            name=name or config.generation or config.kind,
            source=plan.layout,
            parent=parent_of(plan.origins),
            made_from=[origin.as_json() for origin in plan.origins],
        )
        _write_json(aside / "manifest.json", manifest)
    return target


def _write_small_files(plan: CheckpointPlan, folder: Path) -> None:
    config = plan.config
    _write_json(folder / "config.json", {**plan.raw, "architectures": [ARCHITECTURES[config.kind]]})
    images = preprocessor_config(config, plan.base, plan.mean, plan.std)
    _write_json(folder / "preprocessor_config.json", images)
    if config.kind == "llava_onevision":
        _write_json(folder / "video_preprocessor_config.json", video_preprocessor_config(images))
    _write_json(folder / "processor_config.json", processor_config(config, plan.image_token))
    text = plan.raw["text_config"]
    token_ids = {name: text[name] for name in ("bos_token_id", "pad_token_id") if isinstance(text.get(name), int)}
    _write_json(folder / "generation_config.json", {**token_ids, "eos_token_id": list(plan.stop_token_ids)})
    write_tokenizer(plan.tokenizer, folder, processor=PROCESSORS[config.kind])
    if plan.template is not None:
        (folder / "chat_template.jinja").write_text(plan.template, "utf-8")


def read_back(
    folder: Path, digests: Mapping[str, str], advance: Callable[[int], None], *, integers: bool = False
) -> None:
    """Raises CheckpointError where the weights on disk have not those digests."""
    stored = stored_tensors(folder, integers=integers)
    if stored.keys() != digests.keys():
        raise CheckpointError(f"{folder}: what was written is not what was to be written")
    for name, tensor in stored.items():
        if tensor_digest(tensor, advance) != digests[name]:
            raise CheckpointError(f"{tensor.file}: {name} reads back otherwise than it was written; is the disk sound?")


def counter(phase: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(phase, done, total)

    return advance


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
