"""Scoring requests: a model made from the schema of the log, used for validation and for the OpenAPI document.

A request is one JSON object (one element of ``instances``), in one of two forms:

* ``{"user_id": "42", "candidates": ["1", "7"], "context": {...}, "k": 10, "deadline_ms": 50}``: the predictor looks up
  the features of the user and the items. ``context`` has the context fields of the log and ``timestamp``.
* ``{"rows": [{"field": value, ...}]}``: rows with all their features; a field that is absent or null is a missing value.

``timestamp`` is Unix seconds or a text as :mod:`thinktwice.schema.times` reads it; a text without an offset is local time in the
zone of the schema. The derived fields (hour, weekday) are computed from it. The default is the current time. Null is the same as
absent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, create_model
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from serving.protocol.faults import Checked, Fault, Words, custom, json_path
from serving.protocol.values import Id, ids, time_of, type_of
from thinktwice.errors import Location
from thinktwice.schema import LogSchema
from thinktwice.schema.times import derive

MAX_CANDIDATES = 1000  # candidates or rows of one request
MAX_REQUESTS = 100  # requests of one body
MAX_ROWS = 5000  # rows of one body


@dataclass(frozen=True)
class Request:
    """One checked request. ``rows`` is None if features are looked up for ``candidates``."""

    user_id: str | None
    candidates: tuple[str, ...]
    context: Mapping[str, Any]  # canonical values of context fields, derived ones included
    rows: tuple[Mapping[str, Any], ...] | None
    k: int | None
    deadline_ms: float | None
    missing: tuple[str, ...]  # context fields that the caller omitted
    instant: int | None = None  # of the request, UTC microseconds: its timestamp or its arrival; None for raw rows

    @property
    def num_rows(self) -> int:
        return len(self.candidates) if self.rows is None else len(self.rows)


class Strict(BaseModel):
    """Objects of a body: no other keys, and no value is made to fit."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Limits(Strict):
    """What both forms may have."""

    k: int | None = Field(default=None, ge=1, description="Answer with the best k only, best first.")
    deadline_ms: float | None = Field(
        default=None, gt=0, lt=1e9, description="Milliseconds from the sending within which the answer is of use."
    )


class RequestModel:
    """The model of requests for one schema.

    Args:
        schema: the schema in the bundle.
        online: whether features can be looked up; if not, only raw rows are accepted.

    Attributes:
        requests: the type of a list of requests, of which ``CandidatesRequest`` and ``RowsRequest`` are the two forms.
        time: the key of the timestamp: ``event_time`` if the log has its own field named timestamp.
    """

    def __init__(self, schema: LogSchema, *, online: bool) -> None:
        fields = schema.row_fields()
        self.time = "event_time" if any(f.name == "timestamp" for f in fields) else "timestamp"
        truths = schema.boolean_fields
        types = {f.name: type_of(f, is_truth=f.name in truths) for f in fields}
        self.context = {f.name: types[f.name] for f in fields if f.entity == "context" and f.origin == "attribute"}
        when = {self.time: time_of(schema.zone)}
        self.row = types | when
        user, item = schema.key_of("user") is not None, schema.key_of("item") is not None
        id_of_user = (Id | None, None) if schema.has_anonymous_users else (Id, ...)
        absent: dict[str, Any] = {name: (None, None) for name in ("rows", "user_id", "candidates", "context")}
        context = _object("Context", self.context | when)
        looked_up = {
            "user_id": id_of_user if user else (None, None),
            "candidates": (ids(MAX_CANDIDATES), ...),
            "context": (context | None, None),
        }
        row = _object("Row", self.row)
        rows = Annotated[list[row], Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True)]  # type: ignore[valid-type]
        by_row: Any = create_model("RowsRequest", __base__=Limits, **absent | {"rows": (rows, ...)})
        form: Any = by_row
        if online and item:
            by_id = create_model("CandidatesRequest", __base__=Limits, **absent | looked_up)
            form = Annotated[Annotated[by_id, Tag("candidates")] | Annotated[by_row, Tag("rows")], Discriminator(_form)]
        self.requests: Any = Annotated[
            list[form],
            Field(min_length=1, max_length=MAX_REQUESTS, fail_fast=True),
            AfterValidator(_not_too_many_rows),
        ]
        why = "this model knows no items" if online else "this model has no features to look up"
        entity_fields = [f for f in fields if f.entity != "context"]
        self.words = Words(
            missing={
                "user_id": "send the id of the user",
                "candidates": "send a list of item ids",
                "rows": "" if form is not by_row else f"{why}, send rows with all their fields",
            },
            unknown={
                **{f.name: f"a field of the {f.entity}, it is looked up by the id" for f in entity_fields},
                **{f.name: f"it is computed from {self.time}, send that" for f in schema.fields if f.derived},
                **{c.name: f"it is computed from {c.of[0]} and {c.of[1]}, leave it out" for c in schema.crosses},
                "user_id": "rows have all their fields" if user else "this model knows no users, leave it out",
                "candidates": "send either candidates or rows",
                "context": "rows have all their fields",
            },
            elements={"candidates": "item ids", "rows": "rows", "instances": "requests", "": "requests"},
        )


class RequestParser:
    """Checks requests against one schema; built once per model.

    Args:
        schema: the schema in the bundle.
        online: whether features can be looked up; if not, only raw rows are accepted.
        clock: returns the current Unix seconds, for requests without a timestamp.
        widens: from the encoder of the model; if True, the codecs widen float32 values.
    """

    def __init__(
        self, schema: LogSchema, *, online: bool, clock: Callable[[], float] = time.time, widens: bool = False
    ) -> None:
        self.model = RequestModel(schema, online=online)
        self.widens = widens
        fields = schema.row_fields()
        self.vectors = frozenset(f.name for f in fields if f.kind == "vector")
        self.weights = frozenset(f.name for f in fields if f.kind == "weights")
        self.context_lists = frozenset(
            f.name for f in fields if f.kind in ("sequence", "weights") and f.entity == "context"
        )
        #: Names of lists and of the weights of their elements.
        self._weighted = tuple((f.of, f.name) for f in fields if f.kind == "weights")
        self._checked: Checked[list[Any]] = Checked(self.model.requests, self.model.words)
        self._clock, self._zone, self._time = clock, schema.zone, self.model.time
        self._derived = {f.name: f.derived for f in schema.fields if f.derived}
        self._context = tuple(self.model.context)
        self._expected = tuple(name for name in self._context if name not in self.weights)

    def parse_all(self, values: Any, path: str) -> list[Request]:
        """Parse the requests of one body.

        Raises:
            RequestError: names the first invalid field, below ``path``.
        """
        try:
            return self.read(values)
        except Fault as fault:
            raise fault.error(json_path(path)) from None

    def parse(self, value: Any, path: str) -> Request:
        """Parse one request.

        Raises:
            RequestError: names the first invalid field, below ``path``.
        """
        try:
            (request,) = self.read([value])
        except Fault as fault:
            raise fault.error(lambda loc: json_path(path)(loc[1:])) from None
        return request

    def read(self, values: Any) -> list[Request]:
        """Parse the requests of one body.

        Raises:
            Fault: the first invalid field.
        """
        return self.of_forms(self._checked.read(values))

    def of_forms(self, forms: list[Any]) -> list[Request]:
        """Convert validated forms to requests.

        Raises:
            Fault: the first field that does not fit another one, by the index of its form.
        """
        if self._weighted:
            for index, form in enumerate(forms):
                self._check_weights(form, index)
        return [self._request(form) for form in forms]

    def _check_weights(self, form: Any, index: int) -> None:
        """Refuse weights whose number is not that of the elements of their list."""
        parts: list[tuple[Location, Any]] = [(("context",), form.context or {})]
        if form.rows is not None:
            parts = [(("rows", row), values) for row, values in enumerate(form.rows)]
        for loc, values in parts:
            for lists, name in self._weighted:
                weights, elements = values.get(name), values.get(lists) or ()
                if weights and len(weights) != len(elements):
                    reason = f"has {len(weights)} weights for {len(elements)} elements of {lists!r}: send one for each element, or none"
                    raise Fault((index, *loc, name), reason, weights, kind="uneven_weights")

    def _request(self, form: Any) -> Request:
        if form.rows is not None:
            # A raw row is complete: the current time is not filled in.
            rows = tuple([self._row(row) if self._time in row else row for row in form.rows])
            return Request(None, (), {}, rows, form.k, form.deadline_ms, ())
        values = form.context or {}
        instant = values.get(self._time)
        if instant is None:
            instant = round(self._clock() * 1_000_000)
        context = self._derive(instant)
        for name in self._context:
            context[name] = values.get(name)
        missing = tuple([name for name in self._expected if context[name] is None or context[name] in ("", [])])
        return Request(form.user_id, tuple(form.candidates), context, None, form.k, form.deadline_ms, missing, instant)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        instant = row.pop(self._time)
        return row if instant is None else {**self._derive(instant), **row}

    def _derive(self, instant: int) -> dict[str, Any]:
        local = self._zone.local(instant)
        return {name: str(derive(part, local)) for name, part in self._derived.items()}


def _object(name: str, fields: dict[str, Any]) -> Any:
    """The type of objects with these keys, all optional."""
    typed_dict = TypedDict(name, fields, total=False)  # type: ignore[misc]
    typed_dict.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    return typed_dict


def _form(value: Any) -> str:
    return "rows" if isinstance(value, dict) and value.get("rows") is not None else "candidates"


def _not_too_many_rows(requests: list[Any]) -> list[Any]:
    if len(requests) * MAX_CANDIDATES <= MAX_ROWS:
        return requests
    rows = sum([len(r.candidates) if r.rows is None else len(r.rows) for r in requests])
    if rows > MAX_ROWS:
        raise custom("too_many_rows", f"contains {rows} rows in all, at most {MAX_ROWS} are scored at once")
    return requests
