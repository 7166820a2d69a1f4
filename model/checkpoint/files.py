"""The safetensors files of a checkpoint directory and the tensors in them, read by memory map."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from model.checkpoint.names import canonical_name
from model.errors import CheckpointError


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies."""

    file: Path
    name: str  # as written in the file


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError that names the file."""
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is this a checkpoint in Hugging Face layout?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return raw


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Canonical name -> place, over all shards. Raises CheckpointError for missing or unreadable files."""
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(directory):
        with open_shard(file) as shard:
            for name in shard.keys():  # noqa: SIM118  (safe_open has no __iter__)
                canonical = canonical_name(name)
                if canonical is not None:
                    tensors[canonical] = StoredTensor(file, name)
    return tensors


@contextmanager
def open_shard(file: Path) -> Iterator[Any]:
    """A safetensors file by memory map, on the CPU."""
    try:
        with safe_open(str(file), framework="pt", device="cpu") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: no weight_map")
        files = [_inside(directory, name) for name in sorted(set(map(str, weight_map.values())))]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory}: no .safetensors files; pickled weights are not loaded")
    return files


def _inside(directory: Path, name: str) -> Path:
    file = directory / name
    if Path(name).name != name:
        raise CheckpointError(f"{directory}: the index names {name!r}, which lies outside the checkpoint")
    if not file.is_file():
        raise CheckpointError(f"{directory}: shard {name} is missing")
    return file
