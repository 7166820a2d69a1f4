"""What our own training adds to the base weights, and how it is merged.

The folder `weights/` beside this file holds what training released:
- `connector.safetensors`: `multi_modal_projector.linear_1|linear_2.weight|bias` and `image_newline`, whole tensors;
- `language_lora.safetensors`, `vision_lora.safetensors`: for a Linear named M, `M.lora_A` [r, in] and `M.lora_B`
  [out, r], with `alpha` and `rank` in the file's metadata: the merged weight is W + (alpha / rank) * B @ A;
- `replaced.safetensors` (optional): whole tensors that stand in for the base's;
- `manifest.json`: {"recipe": its name, "files": {file name: sha256}}; a file whose digest differs is refused, one that
  is not listed is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from deploy.demo.errors import DemoError

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
WHOLE_FILES = ("connector.safetensors", "replaced.safetensors")
LORA_FILES = ("language_lora.safetensors", "vision_lora.safetensors")
CONNECTOR_NAMES = (
    "multi_modal_projector.linear_1.weight",
    "multi_modal_projector.linear_1.bias",
    "multi_modal_projector.linear_2.weight",
    "multi_modal_projector.linear_2.bias",
    "image_newline",
)


@dataclass(frozen=True)
class TrainedParts:
    """A folder of released files, their digests checked."""

    folder: Path
    recipe: str
    digests: Mapping[str, str]  # file name -> sha256

    @classmethod
    def read(cls, folder: Path = WEIGHTS) -> TrainedParts:
        """Checks `folder` against its manifest. Raises DemoError that names the file at fault."""
        manifest = folder / MANIFEST
        try:
            stated = json.loads(manifest.read_bytes())
            recipe, listed = str(stated["recipe"]), dict(stated["files"])
        except FileNotFoundError:
            raise DemoError(f"the demo's trained parts are missing: there is no {manifest}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DemoError(f"{manifest} does not name a recipe and files with digests ({error!r})") from error
        if unknown := sorted(set(listed) - {*WHOLE_FILES, *LORA_FILES}):
            raise DemoError(f"{manifest} lists {', '.join(unknown)}, which the assembly does not know")
        for name, expected in listed.items():
            try:
                found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            except FileNotFoundError:
                raise DemoError(f"the demo's trained parts are incomplete: {folder / name} is missing") from None
            if found != expected:
                raise DemoError(f"{folder / name} has sha256 {found}, its manifest says {expected}")
        return cls(folder, recipe, listed)

    def merge_into(self, tensors: MutableMapping[str, torch.Tensor]) -> None:
        """Puts the trained parts into the base's float32 `tensors`: whole tensors first, then what is added to them."""
        for name in WHOLE_FILES:
            if name in self.digests:
                replace(tensors, self.folder / name)
        for name in LORA_FILES:
            if name in self.digests:
                merge_lora(tensors, self.folder / name)


def merge_lora(tensors: MutableMapping[str, torch.Tensor], file: Path) -> None:
    """W + (alpha / rank) * B @ A for every Linear in `file`, in float64: every machine rounds to the same bits."""
    stored, metadata = _read(file)
    try:
        scale = float(metadata["alpha"]) / float(metadata["rank"])
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise DemoError(f"{file} does not say its alpha and rank in its metadata") from error
    for module in sorted({key.rpartition(".lora_")[0] for key in stored}):
        weight = tensors.get(f"{module}.weight")
        a, b = stored.get(f"{module}.lora_A"), stored.get(f"{module}.lora_B")
        if weight is None or a is None or b is None:
            raise DemoError(f"{file}: {module!r} needs a lora_A, a lora_B, and a Linear of that name in the base")
        if (b.shape[0], a.shape[1]) != weight.shape or a.shape[0] != b.shape[1]:
            raise DemoError(
                f"{file}: {module}: B {list(b.shape)} @ A {list(a.shape)} does not fit the weight {list(weight.shape)}"
            )
        tensors[f"{module}.weight"] = (weight.double() + scale * (b.double() @ a.double())).float()


def replace(tensors: MutableMapping[str, torch.Tensor], file: Path) -> None:
    """Whole tensors in place of the base's. The base has no connector, so the connector's are new."""
    stored, _ = _read(file)
    for name, values in stored.items():
        base = tensors.get(name)
        if base is None and name not in CONNECTOR_NAMES:
            raise DemoError(f"{file}: {name} is no tensor of the demo")
        if base is not None and base.shape != values.shape:
            raise DemoError(f"{file}: {name} is {list(values.shape)}, the base has {list(base.shape)}")
        tensors[name] = values.float()


def _read(file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    try:
        with safe_open(file, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise DemoError(f"{file} is not a readable safetensors file ({error})") from error
