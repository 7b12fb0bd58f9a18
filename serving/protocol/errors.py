"""The format of error responses."""

from __future__ import annotations

import orjson

JSON = "application/json"


def error_body(message: str, field: str = "") -> bytes:
    """``{"error": ..., "field": ...}``; ``field`` is the path of the invalid part of the request, "" if the request is valid."""
    return orjson.dumps({"error": message, "field": field})
