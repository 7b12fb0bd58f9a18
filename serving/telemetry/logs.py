"""Structured logs: one JSON object per line, with request and trace ids, without users, candidates or features."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import IO, Any

import orjson

EXTRA = "fields"  # `logger.info("...", extra={EXTRA: {...}})` adds these to the message


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        value: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, EXTRA, {}),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(value, default=str).decode()


def configure(stream: IO[str] | None = None, level: int = logging.INFO, others: Sequence[str] = ()) -> None:
    """Make all loggers below ``serving`` and ``thinktwice`` write JSON lines to ``stream`` (default: standard output).

    Args:
        others: loggers of libraries whose warnings and errors are also written.
    """
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonLines())
    levels = {"serving": level, "thinktwice": level, **dict.fromkeys(others, logging.WARNING)}
    for name, minimum in levels.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(minimum)
        logger.propagate = False
