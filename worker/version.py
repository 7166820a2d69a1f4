"""The name of the weights in a checkpoint directory, as answers report it.

A published checkpoint says it in `manifest.json`. For any other, the name is a digest: of the configuration, tokenizer
and template files whole, and of every weights file's size, header and evenly spread samples. Reading all of a large
model's bytes would take minutes; the samples tell apart weights that share a layout, as fine-tunes of one model do.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from model.errors import CheckpointError

_SAMPLES = 256
_SAMPLE_BYTES = 4096
_SMALL_FILES = ("*.json", "*.jinja")
_MAX_NAME = 128


def checkpoint_version(directory: Path) -> str:
    """Raises CheckpointError when the manifest cannot be read or names no version."""
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        return _digest(directory)
    try:
        version = json.loads(manifest.read_text("utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest}: names no version ({type(error).__name__})") from error
    if not isinstance(version, str) or not version.isprintable() or not 0 < len(version) <= _MAX_NAME:
        raise CheckpointError(f"{manifest}: version must be a printable text of at most {_MAX_NAME} characters")
    return version


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for pattern in _SMALL_FILES:
        for file in sorted(directory.glob(pattern)):
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            digest.update(file.read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        _add_samples(digest, file)
    return f"sha256-{digest.hexdigest()[:16]}"


def _add_samples(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name}:{size}:".encode())
    with file.open("rb") as stream:
        header_bytes = min(int.from_bytes(stream.read(8), "little"), size)
        digest.update(stream.read(header_bytes))
        step = max((size - 8 - header_bytes) // _SAMPLES, 1)
        for offset in range(8 + header_bytes, size, step):
            stream.seek(offset)
            digest.update(stream.read(min(_SAMPLE_BYTES, step)))
