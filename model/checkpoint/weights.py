"""Writes tensors as safetensors shards, a few rows at a time, and takes their digests on the way.

The header of a shard is known before its tensors are read, so nothing waits in memory. A number that is NaN or infinite
stops the writing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from model.checkpoint.tensors import DTYPES, INTEGERS, StoredTensor
from model.errors import CheckpointError

SHARD_BYTES = 5 * 10**9
Advance = Callable[[int], None]  # bytes done since the last call

_NAMES = {dtype: name for name, dtype in {**DTYPES, **INTEGERS}.items()}


def write_weights(
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    *,
    stem: str = "model",
    shard_bytes: int = SHARD_BYTES,
    advance: Advance | None = None,
) -> dict[str, str]:
    """Fills `folder` with <stem>.safetensors, or with shards and their index. Returns the digest of each tensor.

    Raises CheckpointError for weights that are not finite, OSError when the disk refuses.
    """
    shards = _shards(tensors, shard_bytes)
    digests: dict[str, str] = {}
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        digests |= _write_shard({name: tensors[name] for name in names}, folder / file, advance or (lambda _: None))
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return digests


def tensor_digest(tensor: StoredTensor, advance: Advance) -> str:
    """SHA-256 of dtype, shape and bytes. Raises CheckpointError for numbers that are not finite."""
    digest = _start(tensor)
    for piece in tensor.pieces():
        digest.update(checked_bytes(piece, tensor))
        advance(piece.numel() * piece.element_size())
    return digest.hexdigest()


def checked_bytes(piece: torch.Tensor, tensor: StoredTensor) -> memoryview:
    if not is_finite(piece):
        raise CheckpointError(f"{tensor.file}: {tensor.name} holds NaN or infinite numbers (as {piece.dtype})")
    return piece.contiguous().flatten().view(torch.uint8).numpy().data


def is_finite(piece: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite: both outlive the search for the largest and the smallest."""
    if piece.numel() == 0:
        return True
    low, high = torch.aminmax(piece)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _shards(tensors: Mapping[str, StoredTensor], shard_bytes: int) -> Sequence[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_shard(tensors: Mapping[str, StoredTensor], file: Path, advance: Advance) -> dict[str, str]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers behind it are aligned
    digests = {}
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for name, tensor in tensors.items():
            digest = _start(tensor)
            for piece in tensor.pieces():
                data = checked_bytes(piece, tensor)
                digest.update(data)
                out.write(data)
                advance(len(data))
            digests[name] = digest.hexdigest()
        if out.tell() != 8 + len(text) + offset:
            raise CheckpointError(f"{file}: {out.tell()} bytes were written, {8 + len(text) + offset} expected")
    return digests


def _start(tensor: StoredTensor) -> hashlib._Hash:
    return hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
