"""`python -m deploy.demo`: assembles the demo checkpoint and prints its folder."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.demo.assemble import demo_checkpoint
from deploy.demo.errors import DemoError
from deploy.demo.trained_parts import TrainedParts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description="Assembles the demo checkpoint.")
    parser.add_argument("--base-only", action="store_true", help="without our trained parts: what training starts from")
    parser.add_argument("--weights", type=Path, help="folder of other trained parts, with their manifest.json")
    parser.add_argument("--out", type=Path, help="copy the checkpoint to this folder, which must not exist yet")
    given = parser.parse_args(arguments)
    try:
        weights = TrainedParts.read(given.weights) if given.weights else None
        folder = demo_checkpoint(base_only=given.base_only, weights=weights)
        if given.out is not None:
            folder = Path(shutil.copytree(folder, given.out))
    except (DemoError, OSError) as error:
        print(f"tephra: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
