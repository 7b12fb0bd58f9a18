"""Importing heavy libraries without paying for what this project does not use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_typeguard() -> Iterator[None]:
    """Import within this context without typeguard's run-time checks, where typeguard is installed.

    A library that decorates its classes with ``typechecked`` has each of them parsed and recompiled at import: with a
    feature store's SDK that is half of 8 CPU seconds, in every pipeline step and every server worker.
    """
    try:
        import typeguard
    except ModuleNotFoundError:
        yield
        return
    original = typeguard.typechecked

    def plain(target: Any = None, **_: Any) -> Any:
        return target if target is not None else plain

    typeguard.typechecked = plain
    try:
        yield
    finally:
        typeguard.typechecked = original


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Import within this context as if ``modules`` were not installed; those that are loaded already stay.

    For libraries that a library loads when it finds them and can do without. What is imported here finds out that they are
    missing, as on a machine that lacks them; afterwards they can be imported as ever.
    """
    hidden = [name for name in modules if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
