"""Every recipe by its name."""

from training.recipes.demo import DEMO_RECIPES
from training.recipes.recipe import Recipe, SeeingRecipe

RECIPES: dict[str, Recipe | SeeingRecipe] = {recipe.name: recipe for recipe in DEMO_RECIPES}

__all__ = ["RECIPES", "Recipe", "SeeingRecipe"]
