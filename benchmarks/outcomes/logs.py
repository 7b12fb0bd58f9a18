"""Logs of an experiment of any size: access logs of the gateway, parts of two prediction logs, clicks of the feedback log."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.feedback.event_log import EventLog
from serving.feedback.records import Record
from thinktwice.experiment.assignment import bucket_of, layout_of, places_of
from thinktwice.experiment.file import ExperimentFile, parse_experiment
from thinktwice.monitor.record import log_schema
from thinktwice.parquet import write_table
from thinktwice.schema import LogSchema, parse_schema

ITEMS_A_REQUEST = 10
REQUESTS_A_PART = 50_000
START = 1_767_225_600  # Unix seconds
DAYS = 14
CLICK_RATE = 0.03
LOST, SUPERSEDED = 0.0002, 0.002  # shares of requests
ITEMS = 50_000
SCHEMA: LogSchema = parse_schema(
    """
name: shop
time: {column: shown_at, format: datetime}
entities: {user: {key: user}, item: {key: item}}
fields:
  - {name: device}
  - {name: hour, derived: hour}
  - {name: genre, entity: item}
  - {name: brand, entity: item}
  - {name: price, kind: numeric, entity: item}
  - {name: country, entity: user}
sequences: [{name: history, of: item, length: 5}]
statistics: {windows_days: [7], entities: [item]}
""",
    where="benchmark",
)
FILE: ExperimentFile = parse_experiment(
    """
version: 1
name: big
salt: big
coverage: 1.0
arms: [{name: control, bundle: a}, {name: treatment, bundle: b}]
horizon: {days: 14, looks: 14}
""",
    "benchmark",
)


@dataclass(frozen=True)
class Size:
    """Size of a world: rows that are shown, and users."""

    exposures: int
    users: int

    @property
    def requests(self) -> int:
        return self.exposures // ITEMS_A_REQUEST


def write_logs(folder: Path, size: Size) -> None:
    """``gateway/``, ``served-control/``, ``served-treatment/`` and ``events/``; nothing if they are there already."""
    done = folder / "done"
    if done.exists() and done.read_text() == repr(size):
        return
    rng = np.random.default_rng(0)
    layout = layout_of([FILE])
    buckets = np.array([bucket_of(FILE.salt, f"user-{n}") for n in range(size.users)], np.int16)
    treated = places_of(layout, buckets) == 1
    keys = rng.integers(0, 2**63, size.users, dtype=np.uint64)
    activity = np.exp(rng.normal(0, 1.0, size.users)).cumsum()
    for name in ("gateway", "served-control", "served-treatment"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    log = EventLog(folder / "events")
    for part, first in enumerate(range(0, size.requests, REQUESTS_A_PART)):
        count = min(REQUESTS_A_PART, size.requests - first)
        user = np.searchsorted(activity, rng.random(count) * activity[-1])
        at = START + DAYS * 86_400 * (first + np.sort(rng.random(count)) * count) / size.requests
        ids = [uuid.UUID(bytes=bytes(row)) for row in rng.integers(0, 256, (count, 16), dtype=np.uint8)]
        ids_text = [str(found) for found in ids]
        arm = treated[user]
        moved = arm & (rng.random(count) < SUPERSEDED)  # the treatment was slow, control answered
        lines = _lines(ids_text, at, arm, moved, rng)
        (folder / "gateway" / f"access-{part:06}.log").write_text("".join(lines), encoding="utf-8")
        kept = rng.random(count) >= LOST
        for name, of_arm in (("control", ~arm | moved), ("treatment", arm)):
            chosen = np.flatnonzero(of_arm & kept)
            table = _rows(name, first, ids_text, at, arm, user, keys, buckets, chosen, rng)
            write_table(table, folder / f"served-{name}" / f"served-{part:06}.parquet", compression="zstd")
        for records in _clicks(first, ids_text, at, rng):
            log.append(records)
    log.append([Record("tick", (START + (DAYS + 2) * 86_400) * 10**6)])
    log.close()
    done.write_text(repr(size))


def _lines(
    ids: list[str], at: np.ndarray, arm: np.ndarray, moved: np.ndarray, rng: np.random.Generator
) -> Iterator[str]:
    ms = rng.lognormal(3, 0.5, len(ids))
    for request, time, treated, fell, duration in zip(ids, at, arm, moved, ms, strict=True):
        assigned = "treatment" if treated else "control"
        served = "control" if fell else assigned
        yield (
            f'{{"assigned":"{assigned}","attempts":{1 + int(fell)},"code":200,"details":"via_upstream","enrolled":"1","experiment":"big",'
            f'"flags":"-","host":"127.0.0.1:8081","ms":{duration:.0f},"request_id":"{request}","route":"split","served":"{served}",'
            f'"ts":"{time:.6f}","up_ms":"{duration:.0f}","upstream":"{served}"}}\n'
        )


def _rows(
    name: str, first: int, ids: list[str], at: np.ndarray, arm: np.ndarray, user: np.ndarray, keys: np.ndarray, buckets: np.ndarray,
    chosen: np.ndarray, rng: np.random.Generator,
) -> pa.Table:  # fmt: skip
    rows = np.repeat(chosen, ITEMS_A_REQUEST)
    count = len(rows)
    place = np.tile(np.arange(ITEMS_A_REQUEST), len(chosen))
    users = pa.array([f"user-{n}" for n in user])
    assigned = pa.array(np.where(arm, "treatment", "control"))
    item = pa.array([f"item-{n}" for n in range(ITEMS)]).take(pa.array(_item(first + rows, place)))
    columns: dict[str, pa.Array] = {
        "log_request_id": pa.array(ids).take(rows), "log_at": pa.array(((at + 0.02) * 1e6).astype(np.int64)).take(rows),
        "log_arm": pa.repeat(pa.scalar(name), count), "log_user_id": users.take(rows), "log_place": pa.array(place),
        "log_experiment": pa.repeat(pa.scalar("big"), count), "log_assigned_arm": assigned.take(rows),
        "log_enrolled": pa.repeat(pa.scalar(True), count), "log_unit": pa.array(keys[user]).take(rows),
        "log_bucket": pa.array(buckets[user]).take(rows), "log_attempt": pa.repeat(pa.scalar(1), count),
        "log_shadow": pa.repeat(pa.scalar(False), count), "log_item_id": item, "item": item, "user": users.take(rows),
        "log_probability": pa.array(rng.random(count)), "log_uncertainty": pa.array(rng.random(count)),
        "log_num_paths": pa.array(np.where(rng.random(count) < 0.1, 8, 1)), "log_model_version": pa.repeat(pa.scalar(name), count),
        "log_bundle_hash": pa.repeat(pa.scalar(name * 8), count), "price": pa.array(rng.random(count).round(2)),
    }  # fmt: skip
    clicked = pa.array(rng.integers(0, ITEMS, 5 * count).astype(str))
    for field in log_schema(SCHEMA):
        if pa.types.is_list(field.type) and field.name == "history":
            columns[field.name] = pa.ListArray.from_arrays(
                pa.array(np.arange(0, 5 * count + 1, 5), pa.int32()), clicked
            )
        elif field.name not in columns and pa.types.is_string(field.type):
            columns[field.name] = _texts(field.name, 50, count, rng)
        elif field.name not in columns and pa.types.is_floating(field.type):
            columns[field.name] = pa.array(rng.integers(0, 100, count).astype(float))
        elif field.name not in columns:
            columns[field.name] = pa.nulls(count, field.type)
    arrays = [columns[f.name].cast(f.type) for f in log_schema(SCHEMA)]
    return pa.Table.from_arrays(arrays, schema=log_schema(SCHEMA))


def _item(request: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The item at a place of a request; different ones in one request."""
    return (request * 7919 + place * 4729) % ITEMS


def _texts(name: str, kinds: int, count: int, rng: np.random.Generator) -> pa.Array:
    words = pa.array([f"{name}-{n}" for n in range(kinds)])
    return words.take(pa.array(rng.integers(0, kinds, count)))


def _clicks(first: int, ids: list[str], at: np.ndarray, rng: np.random.Generator) -> Iterator[list[Record]]:
    """Clicks on items of these requests, most of them within a minute."""
    number = int(len(ids) * ITEMS_A_REQUEST * CLICK_RATE)
    chosen = np.sort(rng.integers(0, len(ids), number))
    when = ((at[chosen] + rng.exponential(30, number)) * 1e6).astype(np.int64)
    items = _item(first + chosen, rng.integers(0, ITEMS_A_REQUEST, number))
    records = [
        Record("click", int(time), ids[request], f"item-{item}", None, int(time))
        for request, time, item in zip(chosen, np.maximum.accumulate(when), items, strict=True)
    ]
    for start in range(0, number, 5_000):
        yield records[start : start + 5_000]
