"""Import contexts that avoid the cost of unused parts of heavy libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


SHARED_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")


@contextmanager
def own_metrics() -> Iterator[None]:
    """Import within this context without a change of how this process counts its metrics.

    Feast names a folder for the metrics of several processes in the environment when it is imported. If
    prometheus-client is loaded after that, every counter of this process moves to files that all its registries share,
    and every child process inherits the folder.
    """
    with suppress(ModuleNotFoundError):
        import prometheus_client  # noqa: F401  (reads the environment once, at import)
    before = {name: os.environ.get(name) for name in SHARED_METRICS}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Import within this context as if ``modules`` were not installed; those that are loaded already stay.

    For optional dependencies of a library. Imports within the context behave as on a machine without ``modules``;
    afterwards these can be imported as usual.
    """
    hidden = [name for name in modules if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # marks a module as not installed
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
