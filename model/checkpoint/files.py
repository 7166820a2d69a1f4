"""The files of a checkpoint directory, opened with care: they may come from anywhere.

A file is read only if it lies in the directory, is a file, and is no larger than a file of its kind can sensibly be.
Links are followed inside the directory and into the blobs of a Hugging Face cache, nowhere else. Knows no names of
tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.errors import CheckpointError

MIB = 1 << 20
_MAX_JSON = 16 * MIB
_MAX_INDEX = 64 * MIB
_MAX_TOKENIZER = 256 * MIB
_MAX_TEMPLATE = 1 * MIB
_SMALL = {
    ".json": _MAX_JSON,
    ".jinja": _MAX_TEMPLATE,
    ".model": _MAX_TOKENIZER,
    ".txt": _MAX_TOKENIZER,
    ".md": _MAX_JSON,
}
_LARGE = {"tokenizer.json": _MAX_TOKENIZER, "vocab.json": _MAX_TOKENIZER, "manifest.json": _MAX_INDEX}


def checked_folder(path: str | Path) -> Path:
    """The directory, when everything that any reader would open in it can be opened safely. Raises CheckpointError."""
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    for entry in sorted(directory.iterdir()):
        limit = _limit(entry.name)
        if limit is not None or entry.suffix in (".safetensors", ".bin"):
            member(directory, entry.name, limit)
    return directory


def member(directory: Path, name: str, limit: int | None = None) -> Path:
    """A file of the directory. Raises CheckpointError if it is elsewhere, no file, or over `limit` bytes."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{directory}: the index names {name!r}, which lies outside the checkpoint")
    file = directory / name
    try:
        real = file.resolve(strict=True)
        size = real.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: {name} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise CheckpointError(f"{file}: cannot be opened ({type(error).__name__})") from error
    if not _is_within(real, directory.resolve()):
        raise CheckpointError(f"{file}: links to a file outside the checkpoint")
    if not real.is_file():
        raise CheckpointError(f"{file}: not a file")
    if limit is not None and size > limit:
        raise CheckpointError(f"{file}: {size} bytes; a file of this kind has at most {limit}")
    return file


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError that names the file."""
    try:
        if path.stat().st_size > (limit := _limit(path.name) or _MAX_JSON):
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes; a file of this kind has at most {limit}")
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is this a checkpoint in Hugging Face layout?") from None
    except RecursionError:
        raise CheckpointError(f"{path}: cannot be read as JSON (nested too deeply)") from None
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return raw


def read_json_if_there(path: Path) -> dict[str, Any]:
    """An empty dictionary where there is no such file."""
    return read_json(path) if path.exists() else {}


def indexed_files(directory: Path, stem: str, suffix: str) -> tuple[list[Path], frozenset[str]]:
    """The shards that `<stem>.<suffix>.index.json` lists, with the tensors that it puts in them; else the whole file.

    Both are empty when there is neither. Raises CheckpointError for an index that names no files of this directory.
    """
    index = directory / f"{stem}.{suffix}.index.json"
    if not index.exists():
        whole = directory / f"{stem}.{suffix}"
        return ([member(directory, whole.name)] if whole.exists() else []), frozenset()
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map")
    names = set()
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{index}: weight_map of {tensor} is no file name but {type(name).__name__}")
        if "/" not in name and not name.endswith(f".{suffix}"):
            raise CheckpointError(f"{index}: weight_map names {name!r}, which is no .{suffix} file")
        names.add(name)
    return [member(directory, name) for name in sorted(names)], frozenset(weight_map)


def _limit(name: str) -> int | None:
    if name.endswith(".index.json"):
        return _MAX_INDEX
    return _LARGE.get(name, _SMALL.get(Path(name).suffix))


def _is_within(real: Path, directory: Path) -> bool:
    if real.parent == directory:
        return True
    # A Hugging Face cache: <repository>/snapshots/<revision>/<file> links to <repository>/blobs/<digest>.
    return directory.parent.name == "snapshots" and real.parent == directory.parent.parent / "blobs"
