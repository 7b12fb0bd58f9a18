"""The one form of an error, wherever our code answers."""

from __future__ import annotations

import orjson

JSON = "application/json"


def error_body(message: str, field: str = "") -> bytes:
    """``{"error": ..., "field": ...}``; ``field`` is the place in the request that is wrong, "" where nothing in it is."""
    return orjson.dumps({"error": message, "field": field})
