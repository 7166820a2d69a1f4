"""`tephra eval int8`: whether a checkpoint can be served in int8."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from model.errors import ModelError
from training.data.conversations import Conversation, DataError, read_conversations
from training.evaluation.agreement import measure_agreement
from training.scenes.assets import MissingAssetError
from training.scenes.dataset import write_dataset

_SCENES = 60  # held-out scenes of the demo, where no data is given
_SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0: they agree as often as asked; 1: it could not be measured; 2: they do not."""
    parser = argparse.ArgumentParser(prog="tephra eval int8", description=__doc__)
    parser.add_argument("model", type=Path, help="checkpoint directory in Hugging Face layout")
    parser.add_argument("--data", type=Path, help="rows in LLaVA's conversation format; default: held-out demo scenes")
    parser.add_argument("--images", type=Path, help="folder of the rows' images; default: that of the data")
    parser.add_argument("--samples", type=int, default=_SCENES, help="rows, drawn with a fixed seed (%(default)s)")
    parser.add_argument("--least", type=float, default=0.99, help="share of tokens that must agree (%(default)s)")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as scratch, Progress(console=console) as progress:
            rows = _rows(options.data, options.images, max(1, options.samples), Path(scratch))
            bar = progress.add_task("rows", total=len(rows))
            found = measure_agreement(options.model, rows, lambda: progress.advance(bar))
    except (ModelError, DataError, MissingAssetError, OSError) as error:
        print(f"tephra: {error}", file=sys.stderr)
        return 1
    enough = found.share >= options.least
    own = found.greedy
    console.print(
        f"int8 says bfloat16's next token {found.share:.2%} of the time ({found.agreed} of {found.tokens}, {len(rows)} "
        f"rows; {options.least:.0%} asked); along bfloat16's own answers {own.share:.2%} ({own.agreed} of {own.tokens})"
        f". Divergence {found.divergence:.4f} nats; loss {found.losses[0]:.4f} -> {found.losses[1]:.4f}. "
        f"{'Good to serve in int8.' if enough else 'Not close enough: serve it in bfloat16.'}"
    )
    return 0 if enough else 2


def _rows(data: Path | None, images: Path | None, samples: int, scratch: Path) -> list[Conversation]:
    if data is None:
        data = write_dataset(scratch, "test", samples, _SEED, "anyres", show_progress=False).file
        images = scratch
    rows = read_conversations(data, images or data.parent)
    return random.Random(_SEED).sample(rows, min(samples, len(rows)))
