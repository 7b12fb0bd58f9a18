"""The fields of an answer: one list, from which the answers of both protocols, their documentation and the prediction log
are made.

A field is one line of :class:`Answered`: its type, and in :func:`per_row` or :func:`per_request` its form for callers and
in the log. The code that makes answers sets its value; nothing else refers to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa

from thinktwice.records.exposure import EXPERIMENT_COLUMNS

Kind = Literal["number", "integer", "text", "boolean", "texts"]
#: JSON type, datatype of a v2 tensor, and type of a column, by kind. There are no tensors of lists of texts.
JSON: Mapping[Kind, dict[str, Any]] = {
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "text": {"type": "string"},
    "boolean": {"type": "boolean"},
    "texts": {"type": "array", "items": {"type": "string"}},
}
DATATYPES: Mapping[Kind, str] = {"number": "FP64", "integer": "INT64", "text": "BYTES", "boolean": "BOOL"}
COLUMNS: Mapping[Kind, pa.DataType] = {
    "number": pa.float64(),
    "integer": pa.int32(),
    "text": pa.string(),
    "boolean": pa.bool_(),
    "texts": pa.list_(pa.string()),
}


@dataclass(frozen=True)
class AnswerField:
    """Description of one field.

    Attributes:
        name: attribute of an answer; of a field per row it is a tuple, one value for each row of the request.
        kind: type of one value.
        rows: whether each row has a value of its own.
        meaning: for the interface document.
        key: its name in v1 answers, "" if it is not in them. A field per row is in each entry, one per request next to the
            entries.
        looked_up: it is only in v1 answers to candidates, not to raw rows.
        v2: ``tensor``; ``flag``, one of the flags of a request (of booleans per row: how many are true); ``parameter`` of the
            answer; ``tensor`` of a field per request repeats it for each row. None: not in v2 answers.
        repeated: a field per request that is also in each entry.
        column: column of the prediction log, "" if it is not logged.
        limits: JSON Schema keywords of one value beside its type.
    """

    name: str
    kind: Kind
    rows: bool
    meaning: str
    key: str
    looked_up: bool
    v2: tuple[Literal["tensor", "flag", "parameter"], ...]
    repeated: bool
    column: str
    limits: Mapping[str, Any]

    @property
    def json(self) -> dict[str, Any]:
        """The JSON Schema of one value."""
        return {"description": self.meaning, **JSON[self.kind], **self.limits}


def per_row(
    kind: Kind,
    meaning: str,
    *,
    key: str | None = None,
    looked_up: bool = False,
    v2: Literal["tensor", "flag", None] = "tensor",
    column: str = "",
    **limits: Any,
) -> Any:
    """A field with a value for each row; see :class:`AnswerField`. ``key`` is by default its name."""
    return _field(kind, meaning, True, key, looked_up, (v2,) if v2 else (), False, column, limits)


def per_request(
    kind: Kind,
    meaning: str,
    *,
    key: str | None = None,
    looked_up: bool = False,
    v2: tuple[Literal["tensor", "flag", "parameter"], ...] = ("flag",),
    repeated: bool = False,
    column: str = "",
    **limits: Any,
) -> Any:
    """A field with one value for a request; see :class:`AnswerField`. ``key`` is by default its name."""
    return _field(kind, meaning, False, key, looked_up, v2, repeated, column, limits)


def _field(
    kind: Kind,
    meaning: str,
    rows: bool,
    key: str | None,
    looked_up: bool,
    v2: tuple[Any, ...],
    repeated: bool,
    column: str,
    limits: dict[str, Any],
) -> Any:
    metadata = {"kind": kind, "meaning": meaning, "rows": rows, "key": key, "looked_up": looked_up, "v2": v2}
    return field(metadata={**metadata, "repeated": repeated, "column": column, "limits": limits})


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Scores of one request. Tuples have one value for each candidate (or row), in the order of the request.

    ``item_ids`` is None for raw rows. Their entries in v1 have ``row``, the index of the row, instead.
    """

    # fmt: off
    item_ids: tuple[str, ...] | None = per_row("text", "The candidate.", key="item_id", looked_up=True, column="log_item_id")
    probability: tuple[float, ...] = per_row("number", "Probability of a click.", column="log_probability", exclusiveMinimum=0, exclusiveMaximum=1)
    uncertainty: tuple[float, ...] = per_row("number", "Uncertainty of the base pass: 0 certain, 1 even odds.", column="log_uncertainty", minimum=0, maximum=1)
    num_paths: tuple[int, ...] = per_row("integer", "Passes that were scored.", column="log_num_paths", minimum=1)
    rank: tuple[int, ...] = per_row("integer", "1 is the most likely click; equal probabilities keep the order of the request.", minimum=1)
    cold_items: tuple[bool, ...] = per_row("boolean", "The item is not in the feature store.", key="cold", looked_up=True, v2="flag", column="log_cold_item")
    stale_items: tuple[bool, ...] = per_row("boolean", "Features of the item are older than allowed.", key="stale", looked_up=True, v2="flag")
    cold_user: bool = per_request("boolean", "The user is not in the feature store.", looked_up=True, column="log_cold_user")
    stale_user: bool = per_request("boolean", "Features of the user are older than allowed.", looked_up=True)
    stale: bool = per_request("boolean", "Any features are older than allowed.", key="", v2=(), column="log_stale")
    defaulted: tuple[str, ...] = per_request("texts", "Context fields that the request left out.", looked_up=True)
    default_features: tuple[str, ...] = per_request("texts", "Sides that were scored with defaults: their lookup timed out or failed, or their stored features were too large for the model.", looked_up=True, column="log_defaulted", items={"enum": ["user", "item"]})
    paths_capped: bool = per_request("boolean", "More passes were needed than the limit of a request or its deadline allows: the least uncertain of the uncertain rows kept the score of one pass.")
    model_version: str = per_request("text", "The model.", v2=("tensor", "parameter"), repeated=True, column="log_model_version")
    bundle_hash: str = per_request("text", "The bundle, by its hash.", v2=("parameter",), column="log_bundle_hash", pattern="^[0-9a-f]{64}$")
    # fmt: on


#: Why a row got a second look. New user: the model has not seen the user in training. Thin support: values of the row are rare in
#: training. Uncertain score: its probability is near even odds.
REASONS = ("new_user", "thin_support", "uncertain_score")
#: What became of the counters of a request: used; older than allowed; nothing was ever pushed; the store did not respond; its states
#: cannot be read; no time was left.
COUNTERS = ("used", "stale", "without_watermark", "failed", "unreadable", "late")


@dataclass(frozen=True, kw_only=True)
class Escalated(Answered):
    """An answer of a model that gives some rows a second look, or corrects scores."""

    # fmt: off
    base_probability: tuple[float, ...] = per_row("number", "Probability after the base pass alone.", column="log_base_probability", exclusiveMinimum=0, exclusiveMaximum=1)
    reason: tuple[str, ...] = per_row("text", "Why the row got a second look; empty if it got none.", column="log_reason", enum=["", *REASONS])
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class Corrected(Escalated):
    """An answer of a model that reads counters up to the instant of the request."""

    # fmt: off
    corrected: tuple[bool, ...] = per_row("boolean", "Counters of the row are known and were used.", column="log_corrected")
    counters: str = per_request("text", "What became of the counters; without them each row has its score without counters.", looked_up=True, column="log_counters", enum=["", *COUNTERS])
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class Scored(Answered):
    """An answer with ``order``, the positions in the answer: all in request order or, if the request has ``k``, the best
    ``k`` by rank."""

    order: tuple[int, ...]


@lru_cache
def answer_fields(answer: type) -> tuple[AnswerField, ...]:
    """The fields of a class of answers: those of :class:`Answered` and those added by a subclass."""
    out = []
    for field_ in fields(answer):
        if "kind" in field_.metadata:
            key = field_.name if field_.metadata["key"] is None else field_.metadata["key"]
            out.append(AnswerField(name=field_.name, **{**field_.metadata, "key": key}))
    return tuple(out)


#: Columns of the prediction log that are not part of an answer.
REQUEST_LOGGED = (
    ("log_request_id", pa.string()),
    ("log_at", pa.timestamp("us", "UTC")),
    ("log_instant", pa.timestamp("us", "UTC")),  # timestamp of the request, or its arrival; null for raw rows
    ("log_arm", pa.string()),  # arm that served, as named by the server
    ("log_user_id", pa.string()),
    ("log_place", pa.int32()),  # index of the candidate or row in its request
)


def logged_columns(answer: type = Answered) -> dict[str, pa.DataType]:
    """Columns of the prediction log by name, without those of the model's fields."""
    answer_columns = {f.column: COLUMNS[f.kind] for f in answer_fields(answer) if f.column}
    return dict(REQUEST_LOGGED) | {f.name: f.type for f in EXPERIMENT_COLUMNS} | answer_columns
