"""A recipe from what a user gives: a name or the text of a recipe file, a backbone, a kind of pre-training, single settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from thinktwice.choices import RecipeName, listed
from thinktwice.errors import PipelineError, guessed, reason
from thinktwice.models.config import BackboneConfig, backbone_config
from thinktwice.recipes.named import RECIPES
from thinktwice.recipes.recipe import Recipe
from thinktwice.strict_yaml import mapping, parse_yaml, read_mapping

BASE = "base"  # key of a recipe file: the named recipe whose settings it changes
SHARED = ("dim", "hidden", "dropout", "init_sd")  # options that another backbone takes over from the recipe


def get(recipe: str) -> Recipe:
    """The recipe of that name, or of the text of a recipe file, which has several lines or starts with a brace.

    Raises:
        PipelineError: it does not exist, or a setting does; the message lists the recipes, or names the setting.
    """
    if recipe.lstrip().startswith("{") or "\n" in recipe.strip() or ": " in recipe:
        return _from_mapping(mapping(recipe, "the recipe", PipelineError), "the recipe")
    for known, make in RECIPES.items():
        if recipe == known:
            return make()
    close = difflib.get_close_matches(recipe, get_args(RecipeName), n=1)
    choose = guessed(close, f"choose one of {listed(RecipeName)}, or give a recipe file")
    raise PipelineError(f"recipe {recipe!r} is unknown: {choose}")


def from_file(path: Path | str) -> Recipe:
    """The recipe of a YAML file: the sections of a recipe with the settings to change, and ``base``, the recipe they change
    (``default`` without it).

    Raises:
        PipelineError: the file cannot be read, or a setting is unknown or has a wrong value.
    """
    where = f"recipe file {path}"
    return _from_mapping(read_mapping(path, "recipe file", PipelineError), where)


def resolved(recipe: str, *, backbone: str = "", pretraining: str = "", settings: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or text with changes, in this order.

    Args:
        backbone: name, or ``package.module:Class`` of your own; it keeps the sizes that the recipe states. "": the recipe's.
        pretraining: ``none``, ``dgenctr`` or ``hetegenctr``; "": the recipe's.
        settings: single settings, such as ``finetune.rate=0.002``.

    Raises:
        PipelineError: something is unknown or has a wrong value; the message suggests what was meant.
    """
    found = get(recipe)
    changes: dict[str, Any] = {}
    if backbone:
        changes["model"] = _with_backbone(found, backbone, "--backbone")
    if pretraining:
        changes["pretraining"] = pretraining
    if changes:
        found = _checked(dict(found) | changes, "the recipe")
    for setting in settings:
        found = _with_setting(found, setting)
    return found


def _with_backbone(recipe: Recipe, name: str, where: str) -> BackboneConfig:
    if name == recipe.model.name:
        return recipe.model
    kept = {key: getattr(recipe.model, key) for key in SHARED if key in recipe.model.model_fields_set}
    try:
        return backbone_config(name, **kept)
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{where} {name}: {reason(error)}") from error


def _with_setting(recipe: Recipe, setting: str) -> Recipe:
    path, equals, text = (part.strip() for part in setting.partition("="))
    if not equals:
        raise PipelineError(f"--set {setting!r} has no value: write it as section.name=value")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise PipelineError(f"--set {path}: the value {text!r} cannot be read ({reason(error)})") from error
    keys = path.split(".")
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    return _changed(recipe, nested, f"--set {path}")


def _from_mapping(content: Mapping[str, Any], where: str) -> Recipe:
    base = content.get(BASE, "default")
    if base not in RECIPES:
        raise PipelineError(f"{where}: the base {base!r} is unknown: choose one of {listed(RecipeName)}")
    return _changed(get(base), {key: value for key, value in content.items() if key != BASE}, where)


def _changed(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with the settings of a nested mapping."""
    merged: dict[str, Any] = dict(recipe)
    for section, change in changes.items():
        current = merged.get(section)
        if section not in Recipe.model_fields:
            inner = f".{next(iter(change))}" if isinstance(change, Mapping) and change else ""
            raise PipelineError(_unknown(recipe, section + inner, where))
        if not isinstance(current, BaseModel):
            merged[section] = change
            continue
        if not isinstance(change, Mapping):
            raise PipelineError(
                f"{where}: {section} is a section: name a setting in it, such as {_example(section, current)}"
            )
        if section == "model" and "name" in change and change["name"] != recipe.model.name:
            current = _with_backbone(recipe, str(change["name"]), f"{where}: model.name")
            change = {key: value for key, value in change.items() if key != "name"}
        known = type(current).model_fields
        for key in change:
            if key not in known:
                raise PipelineError(_unknown(recipe.model_copy(update={section: current}), f"{section}.{key}", where))
        listed_values = {
            key: value if isinstance(value, list) or get_origin(known[key].annotation) is not tuple else [value]
            for key, value in change.items()
        }
        merged[section] = current.model_dump(exclude_unset=section == "model") | listed_values
        if section == "model":
            merged[section]["name"] = dict(current)["name"]
    return _checked(merged, where)


def _checked(values: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise PipelineError(f"{where}: {reason(error)}") from error


def _unknown(recipe: Recipe, path: str, where: str) -> str:
    """Message about an unknown setting, with the nearest known one: by its path, else by its last word."""
    known = list(_paths(recipe))
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    if not close:
        by_word = {name.rpartition(".")[2]: name for name in known}
        close = [by_word[w] for w in difflib.get_close_matches(path.rpartition(".")[2], by_word, n=1)]
    section = path.partition(".")[0]
    among = [name for name in known if name.startswith(f"{section}.")] or list(Recipe.model_fields)
    then = f"known are {', '.join(among)}"
    return f"{where}: there is no setting {path!r}; {guessed(close, then)}"


def _paths(recipe: Recipe) -> Iterator[str]:
    for section, value in recipe:
        if isinstance(value, BaseModel):
            yield from (f"{section}.{name}" for name in type(value).model_fields)
        else:
            yield section


def _example(section: str, value: BaseModel) -> str:
    return f"{section}.{next(iter(type(value).model_fields))}"
