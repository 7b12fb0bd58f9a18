"""Load plan: requests and their sending times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from thinktwice.data.feature_tables import table_specs
from thinktwice.errors import DataError, RequestError
from thinktwice.parquet import scan_frame
from thinktwice.schema import LogSchema

MOMENT = (
    1_767_225_600  # fixed timestamp of generated requests (2026-01-01), so that equal requests have equal responses
)


def poisson(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Sending times [n] in seconds of independent callers (Poisson process), ``rate`` per second on average, ascending, below ``seconds``."""
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate and seconds must be above 0, not {rate} and {seconds}")
    rng = np.random.default_rng(seed)
    times = rng.exponential(1 / rate, size=int(rate * seconds + 6 * (rate * seconds) ** 0.5) + 10).cumsum()
    return times[times < seconds]


def read_requests(path: Path) -> list[dict[str, Any]]:
    """Read requests from a file with one JSON object per line, each in the format of ``instances``.

    Raises:
        DataError: the file is missing or empty.
        RequestError: a line is not a JSON object.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"requests {path} cannot be read ({error.strerror}): correct the path") from error
    if not lines:
        raise DataError(f"requests {path} is empty: write one JSON object per line")
    requests = []
    for number, line in enumerate(lines, 1):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"{path} line {number} is not JSON ({error})", field=f"line {number}") from None
        if not isinstance(value, dict):
            raise RequestError(f"{path} line {number} is not a JSON object", field=f"line {number}")
        requests.append(value)
    return requests


def requests_of(
    store: Path,
    schema: LogSchema,
    *,
    count: int,
    candidates: int,
    seed: int,
    contexts: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Generate requests with users and items drawn uniformly from the tables of a feature store folder.

    Args:
        contexts: the context of each request [count], see :func:`serving.load.context.typical_contexts`; if empty,
            requests have only a timestamp.

    Raises:
        DataError: the log has no users or items, or the folder has no tables.
    """
    keys = {entity: schema.key_of(entity) for entity in ("user", "item")}
    if keys["item"] is None:
        raise DataError(f"log {schema.name} has no items: set --requests")
    ids: dict[str, list[str]] = {}
    for entity, key in keys.items():
        tables = [store / "data" / f"{s.name}.parquet" for s in table_specs(schema) if s.entity == entity]
        existing = [table for table in tables if table.is_file()]
        if key is not None and existing:
            frames = [scan_frame(table).select(key).unique() for table in existing]
            ids[entity] = pl.concat(frames).unique().sort(key).collect()[key].to_list()
    if not ids.get("item"):
        raise DataError(f"{store} has no tables of items: set --requests")
    rng = np.random.default_rng(seed)
    out: list[dict[str, Any]] = []
    for index in range(count):
        positions = rng.choice(len(ids["item"]), size=candidates, replace=candidates > len(ids["item"]))
        request: dict[str, Any] = {
            "candidates": [ids["item"][i] for i in positions],
            "context": {"timestamp": MOMENT} | (contexts[index] if contexts else {}),
        }
        if "user" in ids:
            request["user_id"] = ids["user"][rng.integers(len(ids["user"]))]
        out.append(request)
    return out


def body_of(request: dict[str, Any], protocol: str) -> bytes:
    """The HTTP body of one request."""
    if protocol == "v1":
        return orjson.dumps({"instances": [request]})
    tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [json.dumps(request)]}
    return orjson.dumps({"inputs": [tensor]})


def asked(request: dict[str, Any]) -> int:
    """Number of rows in a valid response."""
    rows: Sequence[Any] = request.get("rows") or request.get("candidates") or ()
    k = request.get("k")
    return len(rows) if k is None else min(k, len(rows))
