"""What our own training adds to the base weights: files, each with its digest. `merge` says what is done with them.

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.errors import DemoError

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
WHOLE_FILES = ("connector.safetensors", "replaced.safetensors")
LORA_FILES = ("language_lora.safetensors", "vision_lora.safetensors")


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
