"""What is sent and when."""

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

MOMENT = 1_767_225_600  # fixed timestamp of made-up requests (2026-01-01): the same request is the same question


def poisson(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Moments [n] in seconds at which independent callers send, ``rate`` a second on average, in order, below ``seconds``."""
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate and seconds must be above 0, not {rate} and {seconds}")
    rng = np.random.default_rng(seed)
    found = rng.exponential(1 / rate, size=int(rate * seconds + 6 * (rate * seconds) ** 0.5) + 10).cumsum()
    return found[found < seconds]


def read_requests(path: Path) -> list[dict[str, Any]]:
    """Requests of a file with one JSON object a line, each as it stands in ``instances``.

    Raises:
        DataError: the file is missing or empty.
        RequestError: a line is no JSON object.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"requests {path} cannot be read ({error.strerror}): correct the path") from error
    if not lines:
        raise DataError(f"requests {path} is empty: give one JSON object a line")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"{path} line {number} is not JSON ({error})", field=f"line {number}") from None
        if not isinstance(value, dict):
            raise RequestError(f"{path} line {number} is not a JSON object", field=f"line {number}")
        found.append(value)
    return found


def requests_of(
    store: Path,
    schema: LogSchema,
    *,
    count: int,
    candidates: int,
    seed: int,
    contexts: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Made-up requests of real users for real items, drawn evenly from the tables of a feature store folder.

    Args:
        contexts: the context of each request [count], see :func:`serving.load.context.typical_contexts`; none gives
            requests without a context.

    Raises:
        DataError: the log has no users or items, or the folder has no tables.
    """
    keys = {entity: schema.key_of(entity) for entity in ("user", "item")}
    if keys["item"] is None:
        raise DataError(f"log {schema.name} has no items: give requests with --requests")
    ids: dict[str, list[str]] = {}
    for entity, key in keys.items():
        tables = [store / "data" / f"{s.name}.parquet" for s in table_specs(schema) if s.entity == entity]
        there = [table for table in tables if table.is_file()]
        if key is not None and there:
            frames = [scan_frame(table).select(key).unique() for table in there]
            ids[entity] = pl.concat(frames).unique().sort(key).collect()[key].to_list()
    if not ids.get("item"):
        raise DataError(f"{store} has no tables of items: give requests with --requests")
    rng = np.random.default_rng(seed)
    out: list[dict[str, Any]] = []
    for number in range(count):
        chosen = rng.choice(len(ids["item"]), size=candidates, replace=candidates > len(ids["item"]))
        request: dict[str, Any] = {
            "candidates": [ids["item"][i] for i in chosen],
            "context": {"timestamp": MOMENT} | (contexts[number] if contexts else {}),
        }
        if "user" in ids:
            request["user_id"] = ids["user"][rng.integers(len(ids["user"]))]
        out.append(request)
    return out


def body_of(request: dict[str, Any], protocol: str) -> bytes:
    """The HTTP body that asks one request."""
    if protocol == "v1":
        return orjson.dumps({"instances": [request]})
    tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [json.dumps(request)]}
    return orjson.dumps({"inputs": [tensor]})


def asked(request: dict[str, Any]) -> int:
    """Rows that the answer must hold."""
    rows: Sequence[Any] = request.get("rows") or request.get("candidates") or ()
    k = request.get("k")
    return len(rows) if k is None else min(k, len(rows))
