"""Scoring requests, parsed and checked against the schema of the model; the wire formats live in the codecs.

A request is one JSON object (one element of ``instances``), in one of two forms:

* ``{"user_id": "42", "candidates": ["1", "7"], "context": {...}, "k": 10, "deadline_ms": 50}``: the predictor looks the
  features of the user and the items up. ``context`` holds the context fields of the log and ``timestamp``.
* ``{"rows": [{"field": value, ...}]}``: rows with all their features; a field that is absent or null is a missing value.

``timestamp`` is Unix seconds or a text as :mod:`thinktwice.schema.times` reads it; one without an offset is local time in the zone of
the schema. The derived fields (hour, weekday) come from it. Without one it is now.

Ids, categories and numbers are read as in training (:mod:`thinktwice.schema.values`, :mod:`thinktwice.schema.numbers`), within the
same limits (:mod:`thinktwice.schema.limits`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from thinktwice.errors import RequestError
from thinktwice.schema import LogSchema, ModelField
from thinktwice.schema.limits import (
    FLOAT32_LIMIT,
    INTEGERS,
    MAX_SEQUENCE,
    MAX_TEXT,
    NUMBER_LIMIT,
    is_inexact,
    text_problem,
)
from thinktwice.schema.numbers import number
from thinktwice.schema.times import FORMS, derive, in_window, instant_of
from thinktwice.schema.values import spell

MAX_CANDIDATES = 1000  # candidates or rows of one request
MAX_REQUESTS = 100  # requests of one body
MAX_ROWS = 5000  # rows of one body
NUMBERS = (int, float, np.number)
TIMES = (str, date, np.datetime64)  # values of a timestamp that are not Unix seconds
OPTIONAL = ("rows", "candidates", "user_id", "context", "k", "deadline_ms")  # null is the same as absent


@dataclass(frozen=True)
class Request:
    """One checked request. ``rows`` is None when the features are to be looked up for ``candidates``."""

    user_id: str | None
    candidates: tuple[str, ...]
    context: Mapping[str, Any]  # canonical values of context fields, derived ones included
    rows: tuple[Mapping[str, Any], ...] | None
    k: int | None
    deadline_ms: float | None
    missing: tuple[str, ...]  # context fields the caller left out

    @property
    def num_rows(self) -> int:
        return len(self.candidates) if self.rows is None else len(self.rows)


class RequestParser:
    """Checks requests against one schema; built once per model.

    Args:
        schema: the schema in the bundle.
        online: whether features can be looked up; without, only raw rows are accepted.
        clock: gives the current Unix seconds, for requests without a timestamp.
        widens: as the encoder of the model says; the codecs then widen float32 values.
    """

    def __init__(
        self, schema: LogSchema, *, online: bool, clock: Callable[[], float] = time.time, widens: bool = False
    ) -> None:
        fields = schema.model_fields_in_order()
        self._user_key, self._item_key = schema.key_of("user"), schema.key_of("item")
        self._online = online
        self._clock = clock
        self._zone = schema.zone
        self.widens = widens
        self.vectors = frozenset(f.name for f in fields if f.kind == "vector")
        self._derived = {f.name: f.derived for f in schema.fields if f.derived}
        self._fields = {f.name: f for f in fields}
        self._context = {f.name: f for f in fields if f.entity == "context" and f.origin == "attribute"}
        # A log may have a field called timestamp of its own; the reserved name event_time then says when.
        self._time = "event_time" if "timestamp" in self._fields else "timestamp"

    def parse_all(self, values: Any, path: str) -> list[Request]:
        """Parse the requests of one body.

        Raises:
            RequestError: naming the first field that is wrong.
        """
        if not isinstance(values, list):
            raise RequestError(f"{path} must be a list of requests, not {_kind(values)}", field=path)
        if not 1 <= len(values) <= MAX_REQUESTS:
            raise RequestError(f"{path} must hold 1 to {MAX_REQUESTS} requests, not {len(values)}", field=path)
        requests = [self.parse(value, f"{path}[{i}]") for i, value in enumerate(values)]
        if (total := sum(r.num_rows for r in requests)) > MAX_ROWS:
            raise RequestError(
                f"{path} contains {total} rows in all, at most {MAX_ROWS} are scored at once", field=path
            )
        return requests

    def parse(self, value: Any, path: str) -> Request:
        """Parse one request.

        Raises:
            RequestError: naming the first field that is wrong.
        """
        if not isinstance(value, dict):
            raise RequestError(f"{path} must be an object, not {_kind(value)}", field=path)
        if any([v is None for v in value.values()]):
            value = {name: v for name, v in value.items() if v is not None or name not in OPTIONAL}
        if "rows" in value:
            return self._parse_rows(value, path)
        return self._parse_candidates(value, path)

    def _parse_candidates(self, value: dict[str, Any], path: str) -> Request:
        if not self._online:
            raise RequestError(
                f"{path}.rows is missing: this model has no features to look up, give rows with all their fields",
                field=f"{path}.rows",
            )
        allowed = {"user_id", "candidates", "context", "k", "deadline_ms"}
        _refuse_unknown(value, allowed, path)
        user_id = None
        if self._user_key is not None:
            if "user_id" not in value:
                raise RequestError(f"{path}.user_id is missing: give the id of the user", field=f"{path}.user_id")
            user_id = _identifier(value["user_id"], f"{path}.user_id")
        elif "user_id" in value:
            raise RequestError(f"{path}.user_id: this model knows no users, leave it out", field=f"{path}.user_id")
        candidates = self._parse_items(value, path)
        k = _optional(value, "k", path, _positive_int)
        deadline = _optional(value, "deadline_ms", path, _positive_number)
        context, missing = self._parse_context(value.get("context"), f"{path}.context")
        return Request(user_id, candidates, context, None, k, deadline, missing)

    def _parse_items(self, value: dict[str, Any], path: str) -> tuple[str, ...]:
        place = f"{path}.candidates"
        if self._item_key is None:
            raise RequestError(f"{place}: this model knows no items, give rows with all their fields", field=place)
        items = value.get("candidates")
        if not isinstance(items, list):
            found = _kind(items) if "candidates" in value else "missing"
            raise RequestError(f"{place} must be a list of item ids, not {found}", field=place)
        if not 1 <= len(items) <= MAX_CANDIDATES:
            raise RequestError(f"{place} must hold 1 to {MAX_CANDIDATES} item ids, not {len(items)}", field=place)
        if _plain(items):
            return tuple(items)
        return tuple(_identifier(item, f"{place}[{i}]") for i, item in enumerate(items))

    def _parse_context(self, value: Any, path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise RequestError(f"{path} must be an object, not {_kind(value)}", field=path)
        _refuse_unknown(value, {*self._context, self._time}, path, self._elsewhere)
        out = self._derive(value.get(self._time), f"{path}.{self._time}")
        for name, field in self._context.items():
            out[name] = _field_value(field, value.get(name), f"{path}.{name}")
        return out, tuple(name for name in self._context if out[name] is None or out[name] == "")

    def _elsewhere(self, name: str) -> str:
        """Where the value of a field that is no part of the context comes from; "" for what is no field at all."""
        if name in self._derived:
            return f"it comes from {self._time}, give that"
        if name in self._fields:
            entity = self._fields[name].entity
            return f"a field of the {entity}, it is looked up by the id" if entity != "context" else ""
        return ""

    def _parse_rows(self, value: dict[str, Any], path: str) -> Request:
        _refuse_unknown(value, {"rows", "k", "deadline_ms"}, path)
        place, rows = f"{path}.rows", value["rows"]
        if not isinstance(rows, list):
            raise RequestError(f"{place} must be a list of objects, not {_kind(rows)}", field=place)
        if not 1 <= len(rows) <= MAX_CANDIDATES:
            raise RequestError(f"{place} must hold 1 to {MAX_CANDIDATES} rows, not {len(rows)}", field=place)
        parsed = tuple(self._parse_row(row, f"{place}[{i}]") for i, row in enumerate(rows))
        k = _optional(value, "k", path, _positive_int)
        deadline = _optional(value, "deadline_ms", path, _positive_number)
        return Request(None, (), {}, parsed, k, deadline, ())

    def _parse_row(self, row: Any, path: str) -> dict[str, Any]:
        if not isinstance(row, dict):
            raise RequestError(f"{path} must be an object, not {_kind(row)}", field=path)
        _refuse_unknown(row, {*self._fields, self._time}, path)
        # A raw row is complete in itself: it gets no time of now behind the caller's back.
        out = self._derive(row[self._time], f"{path}.{self._time}") if row.get(self._time) is not None else {}
        for name, value in row.items():
            if name != self._time:
                out[name] = _field_value(self._fields[name], value, f"{path}.{name}")
        return out

    def _derive(self, timestamp: Any, path: str) -> dict[str, Any]:
        instant = round(self._clock() * 1_000_000) if timestamp is None else self._instant(timestamp, path)
        local = self._zone.local(instant)
        return {name: str(derive(what, local)) for name, what in self._derived.items()}

    def _instant(self, value: Any, path: str) -> int:
        """Microseconds since the epoch."""
        if isinstance(value, (bool, np.bool_)):  # the times of a log are not truth values either
            raise RequestError(f"{path} must be Unix seconds or a text, not {_kind(value)}", field=path)
        if not isinstance(value, TIMES):
            instant = round(_number(value, path) * 1_000_000)
        else:
            try:
                instant = instant_of(value, self._zone)
            except ValueError:
                shown = value[:40] if isinstance(value, str) else value
                raise RequestError(
                    f"{path} {shown!r} is not a time: give Unix seconds, or {FORMS}", field=path
                ) from None
        if not in_window(instant):
            raise RequestError(f"{path} must be Unix seconds or an ISO 8601 time between 1970 and 2100", field=path)
        return instant


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _refuse_unknown(
    value: Mapping[str, Any], allowed: set[str], path: str, elsewhere: Callable[[str], str] = lambda name: ""
) -> None:
    for name in value:
        if name not in allowed:
            shown = name if len(name) <= 64 else name[:64] + "..."
            known = ", ".join(sorted(allowed))
            hint = f" ({found})" if (found := elsewhere(name)) else ""
            raise RequestError(f"{path} has an unknown key {shown!r}{hint}: known are {known}", field=f"{path}.{shown}")


def _optional(value: Mapping[str, Any], name: str, path: str, check: Callable[[Any, str], Any]) -> Any:
    return None if value.get(name) is None else check(value[name], f"{path}.{name}")


def _positive_int(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"{path} must be an integer of at least 1", field=path)
    return value


def _positive_number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise RequestError(f"{path} must be a number above 0", field=path)
    return float(value)


def _identifier(value: Any, path: str) -> str:
    text = _text(value, path)
    if not text:
        raise RequestError(f"{path} must not be empty", field=path)
    return text


def _plain(values: list[Any]) -> bool:
    """Whether all values are ids that :func:`_identifier` would return as they are: told at once, as nearly all lists are."""
    try:
        joined = "\n".join(values)
    except TypeError:  # not all are texts
        return False
    return joined.isascii() and "\x00" not in joined and all(values) and max(map(len, values)) <= MAX_TEXT


def _text(value: Any, path: str) -> str:
    """The one spelling of an id or a category, empty for a missing one."""
    if type(value) is str:
        text = value
    else:
        _refuse_inexact(value, path)
        try:
            text = spell(value) or ""
        except TypeError:
            raise RequestError(f"{path} must be a string or a number, not {_kind(value)}", field=path) from None
    if (problem := text_problem(text)) is not None:
        raise RequestError(f"{path} {problem}", field=path)
    return text


def _refuse_inexact(value: Any, path: str) -> None:
    """Numbers that stand for several ids. JSON readers make floats of whole numbers beyond 64 bits."""
    if value is None:
        raise RequestError(f"{path} must be a string or a number, not null", field=path)
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        raise RequestError(f"{path} must be a finite number", field=path)
    if is_inexact(value):
        raise RequestError(
            f"{path} {value!s} is a float too large to represent integers exactly: ids beyond 64 bits must be strings, "
            "smaller ones strings or integers",
            field=path,
        )
    if isinstance(value, int) and not INTEGERS[0] <= value <= INTEGERS[1]:
        raise RequestError(f"{path} is an integer of more than 64 bits: ids beyond 64 bits must be strings", field=path)


def _number(value: Any, path: str) -> float:
    found = _number_or_none(value, path)
    if found is None:
        raise RequestError(f"{path} must be a number, not {_kind(value)}", field=path)
    return found


def _number_or_none(value: Any, path: str) -> float | None:
    if (type(value) is float or type(value) is int) and -NUMBER_LIMIT < value < NUMBER_LIMIT:  # as nearly all are
        return float(value)
    try:
        found = number(value)
    except ValueError as error:
        limits = str(error).partition("a number")[2]  # empty where it is not a number at all
        found_instead = repr(value[:40]) if isinstance(value, str) else _kind(value)
        raise RequestError(f"{path} must be a number{limits or f', not {found_instead}'}", field=path) from None
    if found is None and isinstance(value, NUMBERS):  # NaN
        raise RequestError(f"{path} must be a finite number", field=path)
    return found


def _float32(value: Any, path: str) -> float:
    found = _number(value, path)
    if abs(found) >= FLOAT32_LIMIT:
        raise RequestError(f"{path} must be a number of at most 3.4e+38 in size", field=path)
    return found


def _field_value(field: ModelField, value: Any, path: str) -> Any:
    if value is None:
        return None
    if field.kind == "numeric":
        return _number_or_none(value, path)
    if field.kind == "categorical":
        return _text(value, path)
    if not isinstance(value, list):
        raise RequestError(f"{path} must be a list, not {_kind(value)}", field=path)
    if field.kind == "sequence":
        if len(value) > MAX_SEQUENCE:
            raise RequestError(f"{path} contains {len(value)} values, at most {MAX_SEQUENCE} are accepted", field=path)
        return [_text(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if len(value) != field.dim:
        raise RequestError(f"{path} must hold {field.dim} numbers, not {len(value)}", field=path)
    return [_float32(v, f"{path}[{i}]") for i, v in enumerate(value)]
