"""Prediction log: a sample of the served requests with their features and scores, as parquet.

Writing never delays a request: requests go into a bounded queue, a separate thread converts them to columns and writes them, and
requests that do not fit are dropped and counted. Sampling depends only on the request id, so all replicas sample alike. The log
contains features and, by default, user ids: it is a data store, not a text log.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from serving.telemetry.parts import PartFolder, WhenFull
from thinktwice.errors import ServerError, ThinktwiceError
from thinktwice.frozen import Frozen
from thinktwice.monitor.record import log_schema
from thinktwice.records.answer import REQUEST_LOGGED, Answered, answer_fields
from thinktwice.records.exposure import EXPERIMENT_COLUMNS, NO_EXPOSURE, Exposure
from thinktwice.records.served import UserIds
from thinktwice.schema import LogSchema
from thinktwice.schema.numbers import number
from thinktwice.schema.values import spell

SALT = "THINKTWICE_LOG_SALT"  # environment variable: secret for hashing user ids, the same on every replica
WORK_SLICE_S, YIELD_S = (
    0.0005,
    0.0002,
)  # seconds of work, then of pause, which releases the interpreter to the request threads
BATCH = 8  # requests taken from the queue at once

logger = logging.getLogger(__name__)


class PredictionLogConfig(Frozen):
    """Settings of the prediction log."""

    folder: str = ""  # "": no log
    sample: float = Field(default=0.01, gt=0, le=1)  # share of requests; enrolled ones are always logged
    queue: int = Field(default=1000, ge=1)  # requests that may wait for the writer
    part_rows: int = Field(default=50_000, ge=1)  # rows after which a part is written ...
    part_seconds: float = Field(default=60.0, gt=0)  # ... or seconds, whichever comes first
    max_bytes: int = Field(default=1 << 30, ge=1)  # of all parts together
    when_full: WhenFull = "drop_new"  # drop_old: the oldest parts are removed
    user_ids: UserIds = "raw"  # hashed, none: skew cannot be measured from the log


@dataclass(frozen=True)
class ServedRequest:
    """One answered request, as scored. ``shared`` has the user and context values, ``items`` the values per row.

    ``first_place``: rows of the same HTTP request before it, since a body may contain several requests.
    """

    request_id: str
    at: float  # Unix seconds
    arm: str
    user_id: str | None
    shared: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    answer: Answered
    exposure: Exposure = NO_EXPOSURE
    first_place: int = 0
    instant: int | None = None  # of the request, UTC microseconds


def in_sample(request_id: str, share: float) -> bool:
    """Whether a request is logged; depends only on its id."""
    return xxhash.xxh3_64_intdigest(request_id.encode("utf-8", "backslashreplace")) < share * 2**64


class PredictionLog:
    """Receives requests and writes them from a background thread.

    A folder that is not writable disables the log, not the server: it is logged as an error and reported to ``on_writable``, at the
    start and on every change, and retried every ``part_seconds``.

    Args:
        on_writable: called from the writer's thread with whether the folder is writable.
        answer: class of the answers, whose fields define what is logged.
        counters: names of the counters in ``answer.counter_values``, which are logged too.

    Attributes:
        counts: requests ``offered``, ``sampled``, and of these ``written``, ``dropped`` (full queue or folder, or after
            closing) and ``failed`` (could not be written). After :meth:`close` the last three add up to ``sampled``.

    Raises:
        ServerError: user ids are to be hashed and the secret is not set.
        SchemaError: see :func:`thinktwice.monitor.record.log_schema`.
    """

    def __init__(
        self,
        schema: LogSchema,
        config: PredictionLogConfig,
        on_writable: Callable[[bool], None] = lambda _: None,
        answer: type = Answered,
        counters: tuple[str, ...] = (),
    ) -> None:
        self._config, self._on_writable = config, on_writable
        self._columns = _Columns(schema, config.user_ids, answer, counters)
        self._folder = PartFolder(Path(config.folder), config.max_bytes, config.when_full)
        self._changed = threading.Condition()
        self._queue: deque[ServedRequest] = deque()
        self._ending = False
        self._writable, self._checked = True, 0.0
        self.counts = dict.fromkeys(("offered", "sampled", "written", "dropped", "failed"), 0)
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def offer(self, served: ServedRequest) -> bool:
        """Log a request if it is in the sample or enrolled. Never waits for the disk and never fails. Returns whether it was
        queued."""
        enrolled = bool(served.exposure.enrolled) and not served.exposure.shadow
        sampled = enrolled or in_sample(served.request_id, self._config.sample)
        with self._changed:
            self.counts["offered"] += 1
            if not sampled:
                return False
            self.counts["sampled"] += 1
            if self._ending or len(self._queue) >= self._config.queue:
                self.counts["dropped"] += 1
                return False
            self._queue.append(served)
            self._changed.notify()
        return True

    def close(self, limit: float = 10.0) -> None:
        """Write the queued requests, for at most ``limit`` seconds; the remaining ones are dropped."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(limit)
        with self._changed:
            self.counts["dropped"] += len(self._queue)
            self._queue.clear()

    def _run(self) -> None:
        self._check()  # in this thread, because a hanging network disk must not delay the start of the server
        part: list[pa.RecordBatch] = []
        rows, since, slice_start = 0, 0.0, time.monotonic()
        while True:
            wait_start = since if part else self._checked
            requests, ended = self._next(wait_start + self._config.part_seconds if part or not self._writable else None)
            for served in requests:
                if (batch := self._batch(served)) is not None:
                    since = since if part else time.monotonic()
                    part.append(batch)
                    rows += batch.num_rows
                if rows >= self._config.part_rows:
                    self._write(part)
                    part, rows = [], 0
                if time.monotonic() - slice_start > WORK_SLICE_S:
                    time.sleep(YIELD_S)
                    slice_start = time.monotonic()
            if part and (ended or time.monotonic() - since >= self._config.part_seconds):
                self._write(part)
                part, rows = [], 0
            if ended:
                return
            if not self._writable and time.monotonic() - self._checked >= self._config.part_seconds:
                self._check()

    def _next(self, until: float | None) -> tuple[list[ServedRequest], bool]:
        """The next requests, or none after ``until`` (monotonic); and whether the log is closed and the queue empty."""
        with self._changed:
            while not self._queue and not self._ending:
                remaining = None if until is None else until - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return [], False
                self._changed.wait(remaining)
            requests = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            return requests, not requests

    def _batch(self, served: ServedRequest) -> pa.RecordBatch | None:
        """One request as columns, None if it cannot be converted."""
        try:
            return self._columns.batch(served)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, LookupError, AttributeError) as error:
            self._count("failed", 1)
            logger.error("prediction log: a request cannot be written (%s)", type(error).__name__)
            return None

    def _check(self) -> None:
        """Check whether the folder is writable, without waiting for a part: with a small sample that may take hours."""
        self._checked = time.monotonic()
        try:
            self._folder.check()
        except OSError as error:
            self._set_writable(False, error.strerror or type(error).__name__)
        else:
            self._set_writable(True)

    def _set_writable(self, writable: bool, reason: str = "") -> None:
        changed, self._writable = writable != self._writable, writable
        self._on_writable(writable)
        if changed and writable:
            logger.warning("prediction log: %s can be written again", self._folder.folder)
        elif changed:
            logger.error(
                "prediction log: nothing can be written to %s (%s), so sampled requests are lost: make room there, or let user %d, who "
                "runs this server, write there",
                *(self._folder.folder, reason, os.geteuid()),
            )

    def _write(self, part: list[pa.RecordBatch]) -> None:
        try:
            written = not self._folder.full() and self._folder.write(_parquet(part))
        except (OSError, ThinktwiceError, pa.ArrowException) as error:
            self._count("failed", len(part))
            if not isinstance(error, pa.ArrowException):
                self._set_writable(False, str(error))
            logger.error(
                "prediction log: %d requests were not written to %s (%s)", len(part), self._folder.folder, error
            )
            return
        if written:
            self._set_writable(True)
        self._count("written" if written else "dropped", len(part))

    def _count(self, outcome: str, increase: int) -> None:
        with self._changed:
            self.counts[outcome] += increase


class _Columns:
    """Converts requests to record batches, one at a time: converting a whole part would block the interpreter for 0.1 s."""

    def __init__(self, schema: LogSchema, user_ids: UserIds, answer: type, counters: tuple[str, ...]) -> None:
        self._schema = log_schema(schema, user_ids, answer, counters)
        self._counters = counters
        self._answered = tuple((f, self._schema.field(f.column).type) for f in answer_fields(answer) if f.column)
        self._fields = tuple((f.name, f.kind, f.entity == "item") for f in schema.row_fields())
        self._user_key, self._item_key, self._user_ids = schema.key_of("user"), schema.key_of("item"), user_ids
        self._salt = os.environ.get(SALT, "").encode()
        if user_ids == "hashed" and not self._salt:
            raise ServerError(
                f"prediction_log.user_ids is 'hashed' and {SALT} is not set: set it to the same secret on every replica"
            )

    def batch(self, r: ServedRequest) -> pa.RecordBatch:
        answer = r.answer
        rows, item_ids = len(answer.probability), answer.item_ids
        request_values = (r.request_id, round(r.at * 1e6), r.instant, r.arm, self._user(r.user_id))
        arrays = [
            pa.repeat(pa.scalar(value, kind), rows)
            for value, (_, kind) in zip(request_values, REQUEST_LOGGED[:-1], strict=True)
        ]
        arrays.append(pa.array(range(r.first_place, r.first_place + rows), REQUEST_LOGGED[-1][1]))
        decided = zip(r.exposure.values(), EXPERIMENT_COLUMNS.types, strict=True)
        arrays += [pa.repeat(pa.scalar(value, kind), rows) for value, kind in decided]
        for logged, kind in self._answered:
            value = getattr(answer, logged.name)
            if logged.rows and value:
                arrays.append(pa.array(value, kind))
            elif logged.kind == "texts":
                arrays.append(pa.array([value] * rows, kind))
            elif not logged.rows:
                arrays.append(pa.repeat(pa.scalar(value, kind), rows))
            else:  # raw rows were not looked up
                arrays.append(pa.repeat(pa.scalar(False if logged.kind == "boolean" else None, kind), rows))
        for name, kind, of_item in self._fields:
            field_type = self._schema.field(name).type
            if item_ids is not None and name == self._item_key:
                arrays.append(pa.array(item_ids, field_type))
            elif item_ids is not None and name == self._user_key:
                arrays.append(pa.repeat(pa.scalar(self._user(r.user_id), field_type), rows))
            elif item_ids is not None and not of_item:
                value = self._value(name, kind, r.shared.get(name))
                arrays.append(pa.repeat(pa.scalar(value, field_type), rows))
            else:
                values = [self._value(name, kind, row.get(name, r.shared.get(name))) for row in r.items]
                arrays.append(pa.array(values, field_type))
        if self._counters:
            counters = getattr(answer, "counter_values", None)
            for position in range(len(self._counters)):
                column = pa.nulls(rows, pa.float32()) if counters is None else counters[:, position]
                arrays.append(pa.array(column, pa.float32(), from_pandas=True))  # NaN is null
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _value(self, name: str, kind: str, value: Any) -> Any:
        if value is None:
            return None
        if kind == "categorical":
            text = spell(value)
            return self._user(text) if name == self._user_key else text
        return number(value) if kind == "numeric" else value

    def _user(self, user_id: str | None) -> str | None:
        if not user_id or self._user_ids == "none":
            return None
        if self._user_ids == "raw":
            return user_id
        return hashlib.blake2b(user_id.encode(), key=hashlib.sha256(self._salt).digest(), digest_size=12).hexdigest()


def _parquet(part: list[pa.RecordBatch]) -> memoryview:
    """A part file in memory, so that its size is known before room is made for it."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches(part).combine_chunks(), sink, compression="zstd")
    return memoryview(sink.getvalue())
