"""Compiling costs what it costs outside of pytest."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


def callers() -> list[tuple[None, str, int, str]]:
    """``inspect.stack`` without frames and source lines: file, line and function of every caller."""
    here = inspect.currentframe()
    found, frame = [], here.f_back if here is not None else None
    while frame is not None:
        found.append((None, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


@pytest.fixture(scope="package", autouse=True)
def stack_without_source_lines() -> Iterator[None]:
    """KFP asks for the whole call stack with its source lines for every setting of a task, to read the name of one function.
    The search for the lines visits all loaded modules, and pytest has loaded thousands: a compilation would take seconds instead
    of a fifth of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kfp.dsl.pipeline_task.inspect", SimpleNamespace(stack=callers))
        yield
