"""The small model for all tests of this folder, and what a server logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from serving.telemetry import logs
from tests.serving.small import small

__all__ = ["Lines", "lines", "small"]

LOGGERS = ("serving", "thinktwice")


class Lines:
    """Log lines so far, parsed when they are looked at."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([json.loads(line) for line in self._stream.getvalue().splitlines()])


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """What a server would log to its standard output; the loggers are put back as they were."""
    before = [(list(logging.getLogger(n).handlers), logging.getLogger(n).propagate) for n in LOGGERS]
    stream = io.StringIO()
    configure = logs.configure
    configure(stream)
    monkeypatch.setattr(logs, "configure", lambda: configure(stream))
    yield Lines(stream)
    for name, (handlers, propagate) in zip(LOGGERS, before, strict=True):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(logging.NOTSET)
