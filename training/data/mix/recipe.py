"""A mix as a YAML file: which files, how many rows of each, and below which folder their images lie.

    name: my-mix
    datasets:
      - {name: captions, path: captions.jsonl, sampling: "random:1000", images: coco/train2017}
      - {name: questions, path: vqa.json, rows: 82783}

LLaVA-NeXT's own files (`json_path`, `sampling_strategy`) are read too. With `total`, that many rows are shared out by
`weight`; what a source lacks comes from the others, as no row is written twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from training.data.errors import DataError
from training.data.mix.sampling import Sampling

_MEMBERS = {"name", "about", "total", "datasets"}
_DATASET = {"name", "path", "sampling", "rows", "images", "weight", "optional", "json_path", "sampling_strategy"}


@dataclass(frozen=True)
class Dataset:
    """One source. `rows`: as many are published; another number is an error unless it is allowed."""

    name: str
    path: str
    sampling: Sampling
    drawn: str  # the sampling in the recipe's words
    rows: int | None = None
    images: str = ""
    weight: float = 1.0
    optional: bool = False


@dataclass(frozen=True)
class Recipe:
    name: str
    about: str
    datasets: tuple[Dataset, ...]
    total: int | None = None


def recipe_names() -> list[str]:
    """Of the recipes that come with Tephra."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def read_recipe(name_or_file: str) -> Recipe:
    """A recipe that comes with Tephra, or a YAML file. Raises DataError."""
    if name_or_file in recipe_names():
        where, text = name_or_file, (_folder() / f"{name_or_file}.yaml").read_text("utf-8")
    else:
        where = name_or_file
        try:
            text = Path(name_or_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            names = ", ".join(recipe_names())
            raise DataError(f"{name_or_file}: neither a readable file nor a recipe ({names}): {error}") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    return _recipe(where, raw)


def _folder() -> Any:
    return resources.files("training.data.mix") / "recipes"


def _recipe(where: str, raw: Any) -> Recipe:
    if not isinstance(raw, dict) or not isinstance(raw.get("datasets"), list) or not raw["datasets"]:
        raise DataError(f"{where}: expected an object with a list of datasets")
    if unknown := sorted(map(str, raw.keys() - _MEMBERS)):
        raise DataError(f"{where}: expected {', '.join(sorted(_MEMBERS))}, found {', '.join(unknown)}")
    total = raw.get("total")
    if total is not None and (not isinstance(total, int) or isinstance(total, bool) or total < 1):
        raise DataError(f"{where}: total: expected a number of rows, found {total!r}")
    datasets = tuple(_dataset(f"{where}: dataset {n}", value, total) for n, value in enumerate(raw["datasets"], 1))
    names = [dataset.name for dataset in datasets]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{where}: more than one dataset is called {', '.join(sorted(twice))}")
    return Recipe(str(raw.get("name") or Path(where).stem), str(raw.get("about", "")), datasets, total)


def _dataset(where: str, raw: Any, total: int | None) -> Dataset:
    if not isinstance(raw, dict):
        raise DataError(f"{where}: expected an object, found {type(raw).__name__}")
    if unknown := sorted(map(str, raw.keys() - _DATASET)):
        raise DataError(f"{where}: expected {', '.join(sorted(_DATASET))}, found {', '.join(unknown)}")
    path = raw.get("path", raw.get("json_path"))
    if not isinstance(path, str) or not path:
        raise DataError(f"{where}: path: expected a file's name, found {path!r}")
    drawn = str(raw.get("sampling", raw.get("sampling_strategy", "all")))
    rows, weight = raw.get("rows"), raw.get("weight", 1.0)
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool)):
        raise DataError(f"{where}: rows: expected a number, found {rows!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise DataError(f"{where}: weight: expected a number from 0, found {weight!r}")
    if "weight" in raw and total is None:
        raise DataError(f"{where}: a weight shares out the recipe's total, and there is none")
    images = raw.get("images", "")
    if not isinstance(images, str):
        raise DataError(f"{where}: images: expected a folder, found {images!r}")
    try:
        sampling = Sampling.parse(drawn)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    name = str(raw.get("name") or Path(path).stem)
    return Dataset(name, path, sampling, drawn, rows, images, float(weight), raw.get("optional") is True)
