"""Recipes: sets of settings, selected by name, by file or setting by setting."""

from thinktwice.recipes.choose import from_file, get, resolved
from thinktwice.recipes.named import RECIPES
from thinktwice.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "from_file", "get", "resolved"]
