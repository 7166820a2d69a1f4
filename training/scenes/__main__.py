"""`python -m training.scenes`: write a data set of scenes, or a contact sheet of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.scenes.assets import MissingAssetError, require_all
from training.scenes.backgrounds import SPLITS
from training.scenes.catalogue import full_catalogue
from training.scenes.compose import Composer
from training.scenes.contact_sheet import contact_sheet
from training.scenes.dataset import DatasetError, write_dataset
from training.scenes.mix import MIXES


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set, or PNG file of the sheet")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, required=True, help="how many scenes")
    parser.add_argument("--mix", choices=tuple(MIXES), default="instruct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--drawn-only", action="store_true", help="use no installed package: shapes and words only")
    parser.add_argument("--sheet", action="store_true", help="write one contact sheet instead of a data set")
    options = parser.parse_args(arguments)
    try:
        if options.sheet:
            require_all()
            composer = Composer(full_catalogue(), options.split, options.seed, MIXES[options.mix])
            contact_sheet([composer.scene(index) for index in range(options.count)]).save(options.out)
            return 0
        summary = write_dataset(
            options.out,
            options.split,
            options.count,
            options.seed,
            options.mix,
            processes=options.processes,
            drawn_only=options.drawn_only,
        )
    except (MissingAssetError, DatasetError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{summary.scenes} scenes in {summary.file}; turns: {summary.turns}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
