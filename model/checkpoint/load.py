"""A checkpoint directory becomes a model, a preprocessor and a prompter.

Weights are mapped from disk and copied once, straight to their device and dtype. Nothing is unpickled and no code of
the checkpoint is run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint.files import StoredTensor, open_shard, read_json, stored_tensors
from model.config import LlavaConfig
from model.errors import CheckpointError
from model.images import ImagePreprocessor, read_preprocessor
from model.llava import LlavaModel
from model.prompts import Prompter, load_prompter
from model.rope import inverse_frequencies


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a directory holds, ready for use."""

    path: Path
    config: LlavaConfig
    model: LlavaModel
    preprocessor: ImagePreprocessor
    prompter: Prompter


def load_checkpoint(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> Checkpoint:
    """Loads a Hugging Face layout directory. Raises CheckpointError that says what is missing or does not fit."""
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    config = LlavaConfig.from_hf(read_json(directory / "config.json"))
    prompter = load_prompter(directory, config)
    preprocessor = read_preprocessor(directory, config)
    return Checkpoint(directory, config, load_model(directory, config, device, dtype), preprocessor, prompter)


def load_model(directory: Path, config: LlavaConfig, device: str | torch.device, dtype: torch.dtype) -> LlavaModel:
    """The weights alone. Tensors that the model does not use (unused vision layers) stay on disk."""
    with torch.device("meta"):
        model = LlavaModel(config)
    wanted = model.state_dict()
    stored = stored_tensors(directory)
    missing = sorted(name for name in wanted if name not in stored)
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} tensors are missing, first {missing[0]}; does config.json fit the weights?"
        )
    tensors = _read(wanted, stored, torch.device(device), dtype)
    model.load_state_dict(tensors, assign=True)
    rope = model.language_model.model.rope
    frequencies, _ = inverse_frequencies(config.text.rope, config.text.head_dim)
    rope.register_buffer("inverse_frequencies", frequencies.to(device), persistent=False)
    return model.eval().requires_grad_(False)


def _read(
    wanted: dict[str, torch.Tensor], stored: dict[str, StoredTensor], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in wanted:
        by_file[stored[name].file].append(name)
    tensors: dict[str, torch.Tensor] = {}
    for file, names in by_file.items():
        with open_shard(file) as shard:
            for name in names:
                tensor = shard.get_tensor(stored[name].name)
                if tensor.shape != wanted[name].shape:
                    raise CheckpointError(
                        f"{file}: {name} has shape {list(tensor.shape)}, the model needs {list(wanted[name].shape)}"
                    )
                tensors[name] = tensor.to(device=device, dtype=dtype, copy=True)
    return tensors
