"""Backbones of your own, named ``package.module:Class``.

A recipe or the command line may name such a class: whoever trains decides what runs. A bundle never does: it contains the
short name of the class, and a process that opens the bundle must have the class registered, from an entry point of an installed
package or from the environment variable ``THINKTWICE_BACKBONES`` (names separated by commas).
"""

from __future__ import annotations

import os
from importlib import import_module

from thinktwice.errors import reason

VARIABLE = "THINKTWICE_BACKBONES"


def register_class(reference: str) -> str:
    """Import and register a backbone; returns its short name, that of its options.

    Raises:
        ValueError: it cannot be imported, is not a backbone, has no short name, or its name is taken by another class.
    """
    import thinktwice.models.registry  # noqa: F401  (the built-in names are taken)
    from thinktwice.models.backbone import Backbone, register_backbone

    module, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"backbone {reference!r} is not of the form package.module:Class")
    try:
        kind = getattr(import_module(module), name)
    except Exception as error:  # whatever the module raises when it is imported
        raise ValueError(
            f"backbone {reference!r} cannot be imported ({type(error).__name__}: {reason(error)}): install its package, or put "
            "its folder on PYTHONPATH"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Backbone)):
        raise ValueError(f"{reference!r} is not a subclass of thinktwice.models.Backbone")
    short = kind.config_class.model_fields["name"].default
    if not isinstance(short, str) or ":" in short:
        raise ValueError(
            f"backbone {reference!r} has no short name for bundles: declare `name: Literal['...'] = '...'` in its config_class"
        )
    register_backbone(short, kind)
    return short


def register_trusted() -> None:
    """Register the classes that the environment variable names.

    Raises:
        ValueError: one cannot be registered.
    """
    for reference in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        register_class(reference)


def trust(reference: str) -> None:
    """Let this process and those that it starts open models of a class of your own."""
    known = list(filter(None, os.environ.get(VARIABLE, "").split(",")))
    if reference not in known:
        os.environ[VARIABLE] = ",".join([*known, reference])
