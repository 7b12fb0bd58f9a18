"""What was served, for whoever asks later: a sample of requests with their features and scores, as parquet.

Writing never holds a request up: requests go into a bounded queue, a thread of its own writes them, and what does not fit is dropped
and counted. A request is in the sample or not by its id, on every replica alike. Parts are written aside and renamed, so a
kill at any moment leaves whole parts only. The log holds user ids and features: it is a data store, not a text log.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from thinktwice.errors import ThinktwiceError
from thinktwice.files import atomic_file
from thinktwice.schema import LogSchema

PART = "served-*.parquet"
USER, ITEM = "log_user_id", "log_item_id"

logger = logging.getLogger(__name__)


class PredictionLogConfig(BaseModel):
    """Where predictions are logged and how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = ""  # "" logs nothing
    sample: float = Field(default=0.01, gt=0, le=1)  # share of requests
    queue: int = Field(default=1000, ge=1)  # requests that may wait to be written
    part_rows: int = Field(default=50_000, ge=1)  # rows after which a part is written ...
    part_seconds: float = Field(default=60.0, gt=0)  # ... or seconds, whichever comes first
    max_bytes: int = Field(default=1 << 30, ge=1)  # of all parts together
    when_full: Literal["stop", "forget"] = "stop"  # forget: the oldest parts go


@dataclass(frozen=True)
class Served:
    """One answered request, as it was scored; ``shared`` are user and context values, ``items`` values per row."""

    request_id: str
    at: float  # Unix seconds
    arm: str
    model_version: str
    bundle_hash: str
    user_id: str | None
    item_ids: tuple[str, ...] | None  # None for raw rows
    shared: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    probability: tuple[float, ...]
    uncertainty: tuple[float, ...]
    num_paths: tuple[int, ...]
    cold_user: bool
    cold_items: tuple[bool, ...]
    stale: bool
    defaulted: tuple[str, ...]


def log_schema(schema: LogSchema) -> pa.Schema:
    """The columns of the log: what identifies a row, its scores and flags, and every field of the model."""
    types = {
        "categorical": pa.string(),
        "numeric": pa.float64(),
        "sequence": pa.list_(pa.string()),
        "vector": pa.list_(pa.float32()),
    }
    columns = [
        ("log_request_id", pa.string()),
        ("log_at", pa.timestamp("us", "UTC")),
        ("log_arm", pa.string()),
        ("log_model_version", pa.string()),
        ("log_bundle_hash", pa.string()),
        (USER, pa.string()),
        (ITEM, pa.string()),
        ("log_place", pa.int32()),
        ("log_probability", pa.float64()),
        ("log_uncertainty", pa.float64()),
        ("log_num_paths", pa.int32()),
        ("log_cold_user", pa.bool_()),
        ("log_cold_item", pa.bool_()),
        ("log_stale", pa.bool_()),
        ("log_defaulted", pa.list_(pa.string())),
    ]
    return pa.schema([*columns, *((f.name, types[f.kind]) for f in schema.model_fields_in_order())])


def in_sample(request_id: str, share: float) -> bool:
    """Whether a request is logged: a matter of its id alone."""
    return xxhash.xxh3_64_intdigest(request_id.encode()) < share * 2**64


class PredictionLog:
    """Takes requests and writes them from a thread of its own.

    Attributes:
        counts: requests ``sampled``, ``written``, ``dropped`` (for a full queue or folder) and ``failed`` (could not be written).
    """

    def __init__(self, schema: LogSchema, config: PredictionLogConfig) -> None:
        self._config, self._folder = config, Path(config.folder)
        self._columns = log_schema(schema)
        self._kinds = {f.name: f.kind for f in schema.model_fields_in_order()}
        self._queue: queue.Queue[Served | None] = queue.Queue(config.queue)
        self.counts = dict.fromkeys(("sampled", "written", "dropped", "failed"), 0)
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def offer(self, served: Served) -> bool:
        """Log a request if it is in the sample; never waits and never fails. True when it was taken."""
        if not in_sample(served.request_id, self._config.sample):
            return False
        self.counts["sampled"] += 1
        try:
            self._queue.put_nowait(served)
        except queue.Full:
            self.counts["dropped"] += 1
            return False
        return True

    def close(self, limit: float = 10.0) -> None:
        """Write what waits, for at most ``limit`` seconds."""
        try:
            self._queue.put(None, timeout=limit)
        except queue.Full:
            return
        self._thread.join(limit)

    def _run(self) -> None:
        waiting: list[Served] = []
        rows, since = 0, time.monotonic()
        while True:
            left = self._config.part_seconds - (time.monotonic() - since)
            try:
                served = self._queue.get(timeout=max(left, 0.01) if waiting else None)
            except queue.Empty:
                served = None
                ended = False
            else:
                ended = served is None
            if served is not None:
                if not waiting:
                    since = time.monotonic()
                waiting.append(served)
                rows += len(served.probability)
            due = rows >= self._config.part_rows or time.monotonic() - since >= self._config.part_seconds
            if waiting and (ended or due):
                self._write(waiting)
                waiting, rows = [], 0
            if ended:
                return

    def _write(self, requests: list[Served]) -> None:
        try:
            if not self._room():
                self.counts["dropped"] += len(requests)
                return
            table = pa.Table.from_pylist([row for r in requests for row in self._rows(r)], self._columns)
            self._number += 1
            name = f"served-{time.time_ns():020d}-{os.getpid()}-{self._number}.parquet"
            with atomic_file(self._folder / name) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        except (OSError, ThinktwiceError, pa.ArrowException, TypeError, ValueError) as error:
            self.counts["failed"] += len(requests)
            logger.error("prediction log: %d requests were not written to %s (%s)", len(requests), self._folder, error)
            return
        self.counts["written"] += len(requests)

    def _room(self) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = sorted(self._folder.glob(PART))
        sizes = [part.stat().st_size for part in parts]
        total = sum(sizes)
        if self._config.when_full == "forget":
            for part, size in zip(parts, sizes, strict=True):
                if total < self._config.max_bytes:
                    break
                part.unlink(missing_ok=True)
                total -= size
        return total < self._config.max_bytes

    def _rows(self, r: Served) -> list[dict[str, Any]]:
        shared = {name: self._typed(name, value) for name, value in r.shared.items() if name in self._kinds}
        head = {
            "log_request_id": r.request_id,
            "log_at": int(r.at * 1e6),
            "log_arm": r.arm,
            "log_model_version": r.model_version,
            "log_bundle_hash": r.bundle_hash,
            "log_cold_user": r.cold_user,
            "log_stale": r.stale,
            "log_defaulted": list(r.defaulted),
        }
        out = []
        for place, values in enumerate(r.items):
            own = {name: self._typed(name, value) for name, value in values.items() if name in self._kinds}
            row = {**head, **shared, **own}
            row |= {
                USER: r.user_id,
                ITEM: None if r.item_ids is None else r.item_ids[place],
                "log_place": place,
                "log_probability": r.probability[place],
                "log_uncertainty": r.uncertainty[place],
                "log_num_paths": r.num_paths[place],
                "log_cold_item": bool(r.cold_items[place]) if r.cold_items else False,
            }
            out.append(row)
        return out

    def _typed(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        kind = self._kinds[name]
        if kind == "categorical":
            return str(value)
        if kind == "numeric":
            return float(value)
        return [str(v) for v in value] if kind == "sequence" else [float(v) for v in value]
