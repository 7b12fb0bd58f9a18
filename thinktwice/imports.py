"""Importing heavy libraries without paying for what this project does not use."""

from __future__ import annotations

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
