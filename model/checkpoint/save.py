"""A model becomes a checkpoint directory again: canonical names, safetensors, written aside and renamed.

What the model does not hold (vision layers behind the chosen feature, tokenizer and processor files) is copied from the
checkpoint that it came from.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.checkpoint.files import open_shard, stored_tensors
from model.errors import CheckpointError

_WEIGHTS = "model.safetensors"


def save_checkpoint(
    tensors: Mapping[str, torch.Tensor],
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes `target` with `tensors` (canonical names) laid over those of `source`.

    Raises CheckpointError if `target` exists.
    """
    if target.exists():
        raise CheckpointError(f"{target}: already exists; choose another name")
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        merged = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
        for name, place in stored_tensors(source).items():
            if name not in merged:
                with open_shard(place.file) as shard:
                    merged[name] = shard.get_tensor(place.name).to(dtype)
        save_file(merged, aside / _WEIGHTS, metadata={"format": "pt"})
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != "model.safetensors.index.json":
                shutil.copy2(file, aside / file.name)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target
