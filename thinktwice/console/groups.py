"""Groups of options that several commands share: a command takes one frozen dataclass for all of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer: a parameter that is a dataclass becomes one option for each of its fields.

    Raises:
        TypeError: two of the options have one name.
    """
    types = get_type_hints(command, include_extras=True)
    groups: dict[str, list[str]] = {}
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        found = _fields_of(types[name]) if is_dataclass(types[name]) else [parameter.replace(annotation=types[name])]
        if is_dataclass(types[name]):
            groups[name] = [option.name for option in found]
        for option in found:
            if option.name in options:
                raise TypeError(f"the command {command.__name__} has two options {option.name}")
            options[option.name] = option.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {
            name: types[name](**{option: given.pop(option) for option in names}) for name, names in groups.items()
        }
        command(**given, **chosen)

    # typer would read the signature of the command.
    del run.__wrapped__
    run.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: option.annotation for name, option in options.items()}
    return run


def _fields_of(group: Any) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=types[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(group)
    ]
