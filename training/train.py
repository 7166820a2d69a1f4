"""From a recipe's name to a finished stage."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.errors import ModelError
from training.data.conversations import DataError
from training.parts import PartsError
from training.recipes import RECIPES, Recipe, SeeingRecipe
from training.seeing import SeeingTrainer
from training.trainer import RunPaths, Trainer, TrainingError, process_group

_SETTABLE: dict[str, type] = {
    "batch": int,
    "epochs": float,
    "max_length": int,
    "warmup": float,
    "clip": float,
    "seed": int,
}


class RecipeError(ValueError):
    """No such recipe, or an override that does not fit."""


def find_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe | SeeingRecipe:
    """The recipe with `key=value` overrides laid over it. Raises RecipeError."""
    try:
        recipe = RECIPES[name]
    except KeyError:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}") from None
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key not in _SETTABLE:
            raise RecipeError(f"--set {override}: expected key=value with a key of {', '.join(_SETTABLE)}")
        try:
            values[key] = _SETTABLE[key](value)
        except ValueError:
            raise RecipeError(f"--set {override}: {value!r} is no {_SETTABLE[key].__name__}") from None
    return dataclasses.replace(recipe, **values)


def train(
    recipe: Recipe | SeeingRecipe,
    *,
    base: Path,
    data: Path,
    runs: Path,
    threads: int | None = None,
    loader_workers: int = 1,
) -> None:
    """Runs one stage; its result lies in `runs`/<recipe name>, the stage before is looked for beside it."""
    if threads is not None:
        torch.set_num_threads(threads)
    init_from = runs / recipe.init_from if recipe.init_from else None
    if init_from is not None and not (init_from / "summary.json").is_file():
        raise TrainingError(f"{recipe.name} starts from {recipe.init_from}: run that first (looked in {init_from})")
    output = runs / recipe.name
    with process_group():
        if isinstance(recipe, SeeingRecipe):
            SeeingTrainer(recipe, base, data, output, init_from, loader_workers=loader_workers).run()
        else:
            paths = RunPaths(base=base, data=data, output=output, init_from=init_from)
            Trainer(recipe, paths, loader_workers=loader_workers).run()


def command(arguments: Sequence[str] | None = None) -> None:
    """The command line of `python -m training`."""
    parser = argparse.ArgumentParser(prog="training", description="Runs one stage of training.")
    parser.add_argument("recipe", help=", ".join(RECIPES))
    parser.add_argument("--base", type=Path, required=True, help="checkpoint directory to start from")
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of finished stages")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--threads", type=int, help="CPU threads a process")
    parser.add_argument("--loader-workers", type=int, default=1, help="processes that decode images")
    given = parser.parse_args(arguments)
    try:
        train(
            find_recipe(given.recipe, given.set),
            base=given.base,
            data=given.data,
            runs=given.runs,
            threads=given.threads,
            loader_workers=given.loader_workers,
        )
    except (ModelError, DataError, PartsError, RecipeError, TrainingError) as error:
        sys.exit(f"tephra train: {error}")
