"""Training logs as events: whole columns instead of one event after another, because a log has millions of rows.

Every row is an impression, with a click at the same time if its label says so; counters add the click after its delay. The ids and
values are those that :meth:`serving.feedback.rules.EventRules.event` gives, which checks each distinct value once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from serving.feedback.records import Record
from serving.feedback.rules import EventRules
from thinktwice.data.feature_tables import CLEAN_FILE
from thinktwice.errors import DataError
from thinktwice.records.events import Impression
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID, SCHEMA_FILE, LogSchema, load_schema
from thinktwice.schema.limits import text_is_wrong
from thinktwice.validate.side_tables import read_clean

REQUEST, ITEM, USER = "request_id", "item_id", "user_id"
VALUE = "value:"  # prefix of the column of a value, which may have the name of an id
ROWS = 5_000  # rows whose records are made at once


def is_training_log(source: Path) -> bool:
    return (source / CLEAN_FILE).is_file()


def training_rows(folders: Sequence[Path], rules: EventRules, schema: LogSchema) -> pl.DataFrame:
    """The rows of training logs, as one log in the order of time.

    Columns: ``request_id``, ``item_id``, ``user_id`` and ``value:NAME`` as texts, ``event_time`` in UTC microseconds, ``label``.

    Raises:
        DataError: a log has another schema, or a file is missing.
        ValueError: a value is not valid in an event.
    """
    return pl.concat([_rows_of(folder, rules, schema) for folder in folders]).sort(EVENT_TIME, REQUEST)


def training_records(rows: pl.DataFrame, rules: EventRules, last_at: int) -> Iterator[list[Record]]:
    """The records of the table of :func:`training_rows` in batches, after a log whose last record is of ``last_at``."""
    named = [*rules.fields]
    anonymous = [name for name in named if name not in rules.of_user]
    columns = [REQUEST, ITEM, USER, EVENT_TIME, LABEL, *(VALUE + name for name in named)]
    for part in rows.select(columns).iter_slices(ROWS):
        records = []
        for request, item, user, time, label, *texts in part.iter_rows():
            values = dict(zip(named, texts, strict=True))
            if user is None:
                values = {name: values[name] for name in anonymous}
            last_at = max(last_at, time)
            records.append(Record("impression", last_at, request, item, user, time, values))
            if label == 1:
                records.append(Record("click", last_at, request, item, None, time))
        yield records


def _rows_of(folder: Path, rules: EventRules, schema: LogSchema) -> pl.DataFrame:
    log_schema = load_schema(folder / SCHEMA_FILE)
    if log_schema.to_yaml() != schema.to_yaml():
        raise DataError(
            f"the training log {folder} has another schema than the feature store: pass the log it was made from"
        )
    user, item = schema.key_of("user"), schema.key_of("item")
    columns = [ROW_ID, EVENT_TIME, LABEL, *rules.fields, *(c for c in (user, item) if c)]
    rows = read_clean(folder, log_schema, columns).with_columns(pl.col(EVENT_TIME).dt.epoch("us"))

    def event(request: object = "r", **fields: object) -> Impression:
        shown = {"kind": "impression", "request_id": request, ITEM: None, USER: None, "at": 0.0, **fields}
        found = rules.event(shown, item_needed=False)
        assert isinstance(found, Impression)
        return found

    def id_of(name: str, key: str | None) -> pl.Series:
        if key is None:
            return pl.Series(name, [None], dtype=pl.String).new_from_index(0, rows.height)
        return _spelled(rows[key], lambda value: getattr(event(**{name: value}), name)).alias(name)

    def values_of(name: str) -> pl.Series:
        texts = _spelled(rows[name], lambda value: event(user_id="u", values={name: value}).values[name])
        return texts.alias(VALUE + name)

    if rows.height:
        for at in (rows[EVENT_TIME].min(), rows[EVENT_TIME].max()):
            assert isinstance(at, int)
            event(at=at / 1e6)
    table = pl.DataFrame(
        [
            _requests(rows[ROW_ID], lambda value: event(request=value).request_id).alias(REQUEST),
            id_of(ITEM, item),
            id_of(USER, user),
            rows[EVENT_TIME],
            rows[LABEL].cast(pl.Int8),
            *map(values_of, rules.fields),
        ]
    )
    unknown = [pl.when(pl.col(USER).is_not_null()).then(pl.col(VALUE + n)).alias(VALUE + n) for n in rules.of_user]
    return table.with_columns(unknown)


def _requests(ids: pl.Series, spelled: Callable[[object], str]) -> pl.Series:
    """Row ids, nearly all of them distinct, as request ids. Valid texts are checked as a column."""
    if ids.dtype != pl.String:
        return _spelled(ids, spelled)
    wrong = ids.is_null() | ids.to_frame("text").select((pl.col("text") == "") | text_is_wrong(pl.col("text")))["text"]
    for value in ids.filter(wrong).head(1):
        spelled(value)  # raises the error that names the reason
    return ids


def _spelled(column: pl.Series, spelled: Callable[[object], str | None]) -> pl.Series:
    """Texts of the values of a column; each distinct value is spelled once."""
    distinct = column.drop_nulls().unique()
    texts = pl.Series([spelled(value) for value in distinct], dtype=pl.String)
    return column.replace_strict(distinct, texts, default=None, return_dtype=pl.String)
