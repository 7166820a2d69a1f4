"""Files of rows mixed by a recipe: so many of each, in an order that the seed alone decides, no row twice."""

from training.data.mix.recipe import Dataset, Recipe, read_recipe, recipe_names
from training.data.mix.run import Drawn, Duplicates, MixReport, mix
from training.data.mix.sampling import Sampling

__all__ = [
    "Dataset",
    "Drawn",
    "Duplicates",
    "MixReport",
    "Recipe",
    "Sampling",
    "mix",
    "read_recipe",
    "recipe_names",
]
