"""Tensors that lie on disk or are made from such, read a few rows at a time.

A `StoredTensor` knows its shape and dtype before a byte of it is read, so a whole conversion can be checked first and
then streamed: what is in memory is one piece of rows, whatever the size of the model. Files are mapped, never copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model.checkpoint.files import indexed_files, member
from model.checkpoint.mapped import copied
from model.checkpoint.names import canonical_name
from model.checkpoint.pickles import read_pickled
from model.errors import CheckpointError

Rename = Callable[[str], str | None]
Rows = Callable[[int, int], torch.Tensor]  # rows first..last of the first dimension

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I8": torch.int8}  # of checkpoints that are quantised
PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class StoredTensor:
    """`name` is what the file calls it; `rows` reads it. A scalar counts as one row."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Rows

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def pieces(self) -> Iterator[torch.Tensor]:
        """All rows in order, a few MiB at a time."""
        count = self.shape[0] if self.shape else 1
        step = max(1, PIECE_BYTES // max(1, self.numel // max(count, 1) * 4))
        for first in range(0, count, step):
            yield self.rows(first, min(first + step, count))

    def cast(self, dtype: torch.dtype) -> StoredTensor:
        read = self.rows
        return replace(self, dtype=dtype, rows=lambda first, last: read(first, last).to(dtype))


def stored_tensors(directory: Path, *, integers: bool = False) -> dict[str, StoredTensor]:
    """Canonical name -> tensor, over all safetensors files. Raises CheckpointError for missing or unreadable ones, and
    unless `integers` are expected for those."""
    files, listed = indexed_files(directory, "model", "safetensors")
    if not files:
        files = [member(directory, file.name) for file in sorted(directory.glob("*.safetensors"))]
    if not files:
        raise CheckpointError(f"{directory}: no .safetensors files; pickled weights are not loaded")
    return gathered(directory, files, listed, canonical_name, integers=integers)


def all_tensors(directory: Path, rename: Rename) -> dict[str, StoredTensor]:
    """Like `stored_tensors`, for layouts that may hold `.bin` files instead."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        files, listed = indexed_files(directory, stem, suffix)
        if files:
            return gathered(directory, files, listed, rename)
    raise CheckpointError(f"{directory}: no weights (model.safetensors or pytorch_model.bin, whole or in shards)")


def has_weights(directory: Path) -> bool:
    return any(
        (directory / f"{stem}.{suffix}{ending}").exists()
        for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin"))
        for ending in ("", ".index.json")
    )


def gathered(
    directory: Path, files: Iterable[Path], listed: frozenset[str], rename: Rename, *, integers: bool = False
) -> dict[str, StoredTensor]:
    """All tensors of the files under their new names. Raises CheckpointError for one that comes twice or not at all."""
    tensors: dict[str, StoredTensor] = {}
    seen: set[str] = set()
    for file in files:
        for tensor in tensors_of(file, integers=integers):
            seen.add(tensor.name)
            name = rename(tensor.name)
            if name is None:
                continue
            if name in tensors:
                raise CheckpointError(
                    f"{file}: {tensor.name} is also in {tensors[name].file.name}, under the same name"
                )
            tensors[name] = tensor
    if absent := sorted(listed - seen):
        raise CheckpointError(f"{directory}: the index lists {absent[0]}, but no shard holds it ({len(absent)} so)")
    return tensors


def tensors_of(file: Path, *, integers: bool = False) -> list[StoredTensor]:
    """What a safetensors or a `.bin` file holds. Raises CheckpointError."""
    if file.suffix != ".safetensors":
        return _pickled(file)
    return _safetensors(file, {**DTYPES, **INTEGERS} if integers else DTYPES)


@contextmanager
def open_shard(file: Path) -> Iterator[Any]:
    """A safetensors file by memory map, on the CPU."""
    try:
        with safe_open(str(file), framework="pt", device="cpu") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error


def _safetensors(file: Path, dtypes: Mapping[str, torch.dtype]) -> list[StoredTensor]:
    with open_shard(file) as shard:
        tensors = []
        for name in shard.keys():  # noqa: SIM118  (safe_open has no __iter__)
            described = shard.get_slice(name)
            dtype = dtypes.get(described.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{file}: {name} is stored as {described.get_dtype()}; expected one of {', '.join(dtypes)}"
                )
            tensors.append(StoredTensor(file, name, tuple(described.get_shape()), dtype, _rows_of(file, name)))
        return tensors


def _rows_of(file: Path, name: str) -> Rows:
    def rows(first: int, last: int) -> torch.Tensor:
        with open_shard(file) as shard:
            tensor = shard.get_tensor(name)
            return tensor[first:last] if tensor.dim() else tensor.reshape(1)

    return rows


def _pickled(file: Path) -> list[StoredTensor]:
    def rows_of(tensor: torch.Tensor) -> Rows:
        return lambda first, last: copied(tensor[first:last] if tensor.dim() else tensor.reshape(1))

    return [
        StoredTensor(file, name, tuple(tensor.shape), tensor.dtype, rows_of(tensor))
        for name, tensor in read_pickled(file).items()
    ]
