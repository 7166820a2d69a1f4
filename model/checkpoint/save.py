"""A model becomes a checkpoint directory again: canonical names, safetensors, written aside and renamed.

What the model does not hold (vision layers behind the chosen feature, tokenizer and processor files) is copied from the
checkpoint that it came from.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from model.checkpoint.files import checked_folder
from model.checkpoint.folder import written_aside
from model.checkpoint.tensors import StoredTensor, stored_tensors
from model.checkpoint.weights import SHARD_BYTES, write_weights

_NOT_COPIED = (".safetensors", ".bin")


def save_checkpoint(
    tensors: Mapping[str, torch.Tensor],
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes `target` with `tensors` (canonical names) laid over those of `source`.

    Raises CheckpointError if `target` exists, if a number is not finite, or if writing fails.
    """
    checked_folder(source)
    given = {name: in_memory(name, tensor) for name, tensor in tensors.items()}
    whole = {name: tensor.cast(dtype) for name, tensor in {**stored_tensors(source), **given}.items()}
    with written_aside(target, sum(tensor.nbytes for tensor in whole.values())) as aside:
        write_weights(whole, aside, shard_bytes=shard_bytes)
        copy_small_files(source, aside)
    return target


def copy_small_files(source: Path, target: Path) -> None:
    """All but the weights, and the manifest, which speaks of the weights that it came with."""
    for file in source.iterdir():
        if (
            file.is_file()
            and file.suffix not in _NOT_COPIED
            and not file.name.endswith((".index.json", "manifest.json"))
        ):
            shutil.copyfile(file, target / file.name)


def in_memory(name: str, tensor: torch.Tensor) -> StoredTensor:
    """A tensor, to be written as if it lay on disk."""
    values = tensor.detach()

    def rows(first: int, last: int) -> torch.Tensor:
        return (values[first:last] if values.dim() else values.reshape(1)).cpu()

    return StoredTensor(Path("memory"), name, tuple(values.shape), values.dtype, rows)
