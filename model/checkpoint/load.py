"""A checkpoint directory becomes a model, a preprocessor and a prompter.

Weights are mapped from disk and copied once, straight to their device and dtype, by several threads at a time. Nothing
is unpickled and no code of the checkpoint is run.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint.configuration import check_sizes, read_config
from model.checkpoint.files import checked_folder
from model.checkpoint.quantization import refuse_quantized
from model.checkpoint.tensors import StoredTensor, open_shard, stored_tensors
from model.checkpoint.weights import is_finite
from model.config import LlavaConfig
from model.errors import CheckpointError
from model.images import ImagePreprocessor, read_preprocessor
from model.llava import LlavaModel
from model.prompts import Prompter, load_prompter
from model.rope import Rope, inverse_frequencies

_MOST_THREADS = 8


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
    directory = checked_folder(path)
    config = read_config(directory)
    prompter = load_prompter(directory, config)
    preprocessor = read_preprocessor(directory, config)
    return Checkpoint(directory, config, load_model(directory, config, device, dtype), preprocessor, prompter)


def load_model(directory: Path, config: LlavaConfig, device: str | torch.device, dtype: torch.dtype) -> LlavaModel:
    """The weights alone. Tensors that the model does not use (unused vision layers) stay on disk."""
    check_sizes(config, str(directory / "config.json"))
    refuse_quantized(config, str(directory))
    with torch.device("meta"):
        model = LlavaModel(config)
    wanted = model.state_dict()
    stored = stored_tensors(directory)
    missing = sorted(name for name in wanted if name not in stored)
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} tensors are missing, first {missing[0]}; does config.json fit the weights?"
        )
    for name, like in wanted.items():
        if stored[name].shape != tuple(like.shape):
            raise CheckpointError(
                f"{stored[name].file}: {name} has shape {list(stored[name].shape)}, the model needs {list(like.shape)}"
            )
    tensors = read_tensors({name: stored[name] for name in wanted}, torch.device(device), dtype)
    model.load_state_dict(tensors, assign=True)
    give_angles(model.language_model.model.rope, config, device)
    return model.eval().requires_grad_(False)


def give_angles(rope: Rope, config: LlavaConfig, device: str | torch.device) -> None:
    """What is stored nowhere: a model that was made without memory gets its rotary frequencies."""
    frequencies, _ = inverse_frequencies(config.text.rope, config.text.head_dim)
    rope.register_buffer("inverse_frequencies", frequencies.to(device), persistent=False)


def read_tensors(
    stored: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Copies of the tensors, in `dtype` or as they are. Raises CheckpointError for numbers that are not finite."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(_read_some, part, device, dtype) for part in _shares(stored, threads)]
        return {name: tensor for job in jobs for name, tensor in job.result().items()}


def _shares(stored: Mapping[str, StoredTensor], threads: int) -> list[dict[str, StoredTensor]]:
    """Runs of neighbours in a file, about as many bytes each as one thread's share."""
    share = max(1, sum(tensor.nbytes for tensor in stored.values()) // threads)
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in stored:
        by_file[stored[name].file].append(name)
    shares: list[dict[str, StoredTensor]] = []
    for names in by_file.values():
        taken = share
        for name in names:
            if taken >= share:
                shares.append({})
                taken = 0
            shares[-1][name] = stored[name]
            taken += stored[name].nbytes
    return shares


def _read_some(
    part: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Tensors of one file."""
    tensors = {}
    with open_shard(next(iter(part.values())).file) as shard:
        for name, place in part.items():
            tensor = shard.get_tensor(place.name).to(device=device, dtype=dtype or place.dtype, copy=True)
            if not is_finite(tensor):
                raise CheckpointError(f"{place.file}: {name} holds NaN or infinite numbers (as {tensor.dtype})")
            tensors[name] = tensor
    return tensors
