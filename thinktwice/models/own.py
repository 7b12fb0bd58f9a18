"""Backbones of your own, named ``package.module:Class``.

A recipe or the command line may name such a class: whoever trains decides what runs. A bundle never does: it contains the
short name of the class, and a process that opens the bundle must have the class registered, from an entry point of an installed
package or from the environment variable ``THINKTWICE_BACKBONES`` (names separated by commas).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from thinktwice.errors import reason

VARIABLE = "THINKTWICE_BACKBONES"


def imported(reference: str) -> Any:
    """The class of a backbone by ``package.module:Class``.

    Raises:
        ValueError: it cannot be imported, or is not a backbone.
    """
    module, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"backbone {reference!r} is not of the form package.module:Class")
    try:
        kind = getattr(import_module(module), name)
    except Exception as error:
        raise ValueError(
            f"backbone {reference!r} cannot be imported ({type(error).__name__}: {reason(error)}): install its package, or put "
            "its folder on PYTHONPATH"
        ) from error
    if not (isinstance(kind, type) and hasattr(kind, "config_class") and hasattr(kind, "score_paths")):
        raise ValueError(f"{reference!r} is not a subclass of thinktwice.models.Backbone")
    return kind


def trusted() -> list[str]:
    """The classes that the environment variable names."""
    return list(filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))))


def trust(reference: str) -> None:
    """Let this process and those that it starts open models of a class of your own."""
    known = trusted()
    if reference not in known:
        os.environ[VARIABLE] = ",".join([*known, reference])
