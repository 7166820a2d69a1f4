"""Takes what a training run left behind into the repository: `python -m deploy.demo.release RUN_FOLDER RECIPE`.

Copies the trained parts into `weights/`, removes those of the release before, and writes the manifest by which the
assembly checks them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.demo.errors import DemoError
from deploy.demo.trained_parts import LORA_FILES, MANIFEST, WEIGHTS, WHOLE_FILES, TrainedParts

LARGEST = 40_000_000  # bytes in all: they live in the repository


def release(run: Path, recipe: str, weights: Path = WEIGHTS) -> TrainedParts:
    """Raises DemoError when `run` holds no connector or more than may go into the repository."""
    files = [run / name for name in (*WHOLE_FILES, *LORA_FILES) if (run / name).is_file()]
    if run / "connector.safetensors" not in files:
        raise DemoError(f"{run} holds no connector.safetensors")
    total = sum(file.stat().st_size for file in files)
    if total > LARGEST:
        raise DemoError(
            f"{run}: the trained parts take {total / 1e6:.1f} MB; at most {LARGEST / 1e6:.0f} MB are released"
        )
    weights.mkdir(parents=True, exist_ok=True)
    for old in (*weights.glob("*.safetensors"), weights / MANIFEST):
        old.unlink(missing_ok=True)
    for file in files:
        shutil.copyfile(file, weights / file.name)
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (weights / MANIFEST).write_text(json.dumps({"recipe": recipe, "files": digests}, indent=2) + "\n", encoding="utf-8")
    return TrainedParts.read(weights)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.demo.release", description=release.__doc__)
    parser.add_argument("run", type=Path, help="folder of the finished stage")
    parser.add_argument("recipe", help="the recipe's name, for the manifest")
    given = parser.parse_args(arguments)
    try:
        parts = release(given.run, given.recipe)
    except (DemoError, OSError) as error:
        print(f"tephra: {error}", file=sys.stderr)
        return 1
    print(f"{parts.folder}: {', '.join(parts.digests)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
