"""The parts of a schema file: fields, ids, time, label, sequences, vectors and side tables; and the inputs of a model.

They are put together by :class:`thinktwice.schema.log.LogSchema`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from thinktwice.schema.times import Derived, zone_named
from thinktwice.schema.values import spell

LIST_LENGTH = 20  # categories of a field of kind list
Entity = Literal["user", "item", "context"]

SCHEMA_FILE = "schema.yaml"  # in every folder described by a schema

#: Additional columns of a clean log and of data derived from it. Fields must not have these names.
ROW_ID = "row_id"  # stable 16 hex digits: hash of source name and row ordinal
EVENT_TIME = "event_time"  # timestamp[us, UTC] of the impression
LABEL = "label"  # int8, 1 = click
ROW_WEIGHT = "row_weight"  # float64, how much the row counts in training
_CLEAN = {ROW_ID, EVENT_TIME, LABEL, "title", "propensity", "truth", ROW_WEIGHT, "split", "created_time", "source_row"}
_TABLES = {"event_timestamp", "created_timestamp"}  # of the feature tables
_QUERIES = {"key", "instant", "clicked", "latest_at"}  # columns that queries add to those of the log
_FEAST = {"entity_row_id", "rn"}  # columns that Feast's point-in-time join adds
RESERVED = frozenset(_CLEAN | _TABLES | _QUERIES | _FEAST)
#: The side table of an entity, and the column of a clean side table with the instant from which a row is valid.
TABLE_OF: dict[Literal["user", "item"], Literal["users", "items"]] = {"user": "users", "item": "items"}
VALID_FROM = "event_timestamp"
#: Additional columns of tables with only the keys of users and items. Other fields may have these names.
RESERVED_KEYS = frozenset({"segment", "first_at", "last_at", "seg_user", "seg_item", "tested", "trained", "len"})


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", value):
        raise ValueError(f"name {value!r} must be letters, digits and '_' and start with a letter (at most 63)")
    if value.lower() in RESERVED:  # the query engine ignores case
        raise ValueError(f"name {value!r} is reserved, choose another")
    if "__" in value:
        raise ValueError(f"name {value!r} may not contain '__' (Feast joins view and feature names with it)")
    return value


def _key(value: str) -> str:
    if value.lower() in RESERVED_KEYS:
        raise ValueError(f"name {value!r} is reserved, choose another")
    return value


def _spelled(value: object) -> object:
    """YAML reads 1, 0.5, true and 2024-03-01 as other types than text; they mean the value with that spelling in the log."""
    try:
        return spell(value) or value
    except TypeError:
        return value


Name = Annotated[str, AfterValidator(_name)]
Value = Annotated[str, BeforeValidator(_spelled)]
KeyName = Annotated[Name, AfterValidator(_key)]


class Described(BaseModel):
    """A part of a schema file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ElementWeights(Described):
    """The weights of the elements of a list: a column of lists of numbers of at least 0, or text with the separator of the list, one
    number per element. A row without weights gives every element the weight 1.

    ``column`` is its name in the source file (default: ``name``).
    """

    name: Name
    column: str | None = None

    @property
    def source_column(self) -> str:
        return self.column or self.name


def _named_weights(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


_OF_NUMBERS = set("0123456789.+-eE")


class LogField(Described):
    """One feature of an impression.

    ``column`` is its name in the source file (default: ``name``). ``derived`` computes it from the impression's time.
    ``protected`` values are never masked at test time; by default only categorical fields that are not derived are masked.

    A field of kind ``list`` has several categories in a row: a list column, or text with a ``separator``; its elements may have
    ``weights``. ``min_count`` and ``max_values`` limit the vocabulary: other values count as unknown. ``unit`` is for readers; no number is converted. A field of kind
    ``boolean`` has the categories ``true`` and ``false``, read from every spelling in :mod:`thinktwice.schema.truth`.
    """

    name: Name
    kind: Literal["categorical", "boolean", "numeric", "list"] = "categorical"
    entity: Entity = "context"
    column: str | None = None
    unit: str | None = Field(default=None, min_length=1, max_length=30)  # numeric: of its values, such as EUR
    derived: Derived | None = None  # by the clocks in the zone of ``time``
    nullable: bool = True
    allowed: tuple[Value, ...] | None = None  # categorical: allowed values; others break a rule
    minimum: float | None = None  # numeric bounds, inclusive
    maximum: float | None = None
    buckets: int = Field(default=32, ge=2, le=1024)  # numeric: quantile bins
    boundaries: tuple[float, ...] | None = None  # numeric: bins between these numbers instead of quantiles
    scale: Literal["quantiles", "log"] = "quantiles"  # numeric, log: bins of equal width on a logarithmic scale
    separator: str | None = None  # list: between the categories of a text (default |)
    length: int | None = Field(default=None, ge=1, le=200)  # list: maximum number of categories (default 20)
    weights: Annotated[ElementWeights | None, BeforeValidator(_named_weights)] = None  # list: of its elements
    min_count: int = Field(
        default=1, ge=1
    )  # categorical, list: least number of train rows with a value of the vocabulary
    max_values: int | None = Field(
        default=None, ge=1
    )  # categorical, list: number of most frequent values in the vocabulary
    protected: bool | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LogField:
        if self.derived and (self.kind != "categorical" or self.entity != "context" or self.column):
            raise ValueError(f"field {self.name!r}: a derived field is a categorical context field without a column")
        if self.kind == "numeric" and self.allowed is not None:
            raise ValueError(f"field {self.name!r}: 'allowed' is for categorical fields; use minimum and maximum")
        if self.kind == "boolean" and (self.allowed is not None or self.min_count > 1 or self.max_values is not None):
            raise ValueError(
                f"field {self.name!r}: a boolean has the values true and false; allowed, min_count and max_values are for "
                "categorical fields"
            )
        if self.kind != "numeric" and (self.minimum is not None or self.maximum is not None):
            raise ValueError(f"field {self.name!r}: minimum and maximum are for numeric fields; use 'allowed'")
        if self.unit is not None and (self.kind != "numeric" or not self.unit.isprintable()):
            raise ValueError(f"field {self.name!r}: a unit is a word for the values of a numeric field, such as EUR")
        if self.kind != "numeric" and (self.boundaries is not None or self.scale != "quantiles"):
            raise ValueError(f"field {self.name!r}: boundaries and scale are for numeric fields")
        if self.kind == "numeric" and (self.min_count > 1 or self.max_values is not None):
            raise ValueError(
                f"field {self.name!r}: min_count and max_values are for categories; use buckets or boundaries"
            )
        if self.kind != "list" and (self.separator is not None or self.length is not None):
            raise ValueError(f"field {self.name!r}: separator and length are for fields of kind list")
        if self.separator == "":
            raise ValueError(f"field {self.name!r}: the separator is empty: give the text between two categories")
        if self.weights is not None and self.kind != "list":
            raise ValueError(f"field {self.name!r}: weights are for fields of kind list")
        if self.weights is not None and self.separator is not None and set(self.separator) <= _OF_NUMBERS:
            raise ValueError(
                f"field {self.name!r}: the separator {self.separator!r} may be a part of a number, so its weights cannot be read from "
                "text: choose another separator"
            )
        if self.boundaries is not None:
            if self.scale == "log":
                raise ValueError(f"field {self.name!r}: give boundaries or scale: log, not both")
            if not self.boundaries or any(b <= a for a, b in pairwise(self.boundaries)):
                raise ValueError(f"field {self.name!r}: boundaries are numbers in ascending order")
        return self

    @property
    def separated_by(self) -> str:
        """The separator of a text of several categories."""
        return self.separator or "|"

    @property
    def max_length(self) -> int:
        """The maximum number of categories of a field of kind list."""
        return self.length or LIST_LENGTH

    @property
    def source_column(self) -> str:
        return self.column or self.name

    @property
    def is_category(self) -> bool:
        """Whether a row has one category."""
        return self.kind in ("categorical", "boolean")

    @property
    def is_protected(self) -> bool:
        return self.protected if self.protected is not None else not self.is_category or self.derived is not None


def columns_of(fields: Iterable[LogField]) -> list[str]:
    """Names of the columns of a clean log or side table for these fields: each field and the weights of its elements."""
    return [name for f in fields for name in ([f.name] if f.weights is None else [f.name, f.weights.name])]


class EntityKey(Described):
    """The id of a user or an item. The id is itself a model field, unless ``as_field`` is false.

    With ``anonymous`` rows and requests may have no id of the user. They have the vector of an unknown user, which these rows
    train, and no attributes, statistics or sequences of a user.
    """

    key: KeyName
    column: str | None = None
    as_field: bool = True
    title: str | None = None  # source column with a display name; never a model input
    anonymous: bool = False  # of the user: rows without an id are allowed

    @property
    def source_column(self) -> str:
        return self.column or self.key


class Entities(Described):
    user: EntityKey | None = None
    item: EntityKey | None = None


class TimeColumn(Described):
    """When the impression happened. ``format`` is how the source writes it; ``order`` uses the row order, one second per row.

    ``zone`` is an IANA time zone, such as Asia/Tokyo. Times without an offset are local times of that zone, in the log and
    in requests, and hour and weekday are local. The default is UTC. See :mod:`thinktwice.schema.times` for local times at a
    change of the clocks.
    """

    column: str | None = None
    format: Literal["s", "ms", "us", "datetime", "yymmddhh", "order"] = "s"
    zone: str | None = None

    @field_validator("zone")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            zone_named(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TimeColumn:
        if (self.format == "order") != (self.column is None):
            raise ValueError("time: 'column' is required for every format but 'order', which takes none")
        if self.format == "order" and self.zone is not None:
            raise ValueError("time: format 'order' has no clock: omit 'zone'")
        return self


class LabelColumn(Described):
    """The source of the label. With ``threshold``, a value of at least that is a click; otherwise the value must be 0 or 1."""

    column: str = "label"
    threshold: float | None = None


class Sequence(Described):
    """The user's latest values of an item field, newest first, strictly before the impression; or, with ``column``, a list of such
    values that the log has in each row (or the side table of users in each of its rows). With ``entity: context`` the column is one of
    the log also beside a side table, and requests send the values, as they are known per impression.

    Training rows contain every earlier click. An online store contains those up to its last materialization, so a served
    sequence is as old as that: materialize often, or push, if sessions matter.
    """

    name: Name
    of: str
    length: int = Field(default=20, ge=1, le=200)
    clicks_only: bool = True
    entity: Literal["user", "context"] = "user"
    column: str | None = None  # a list column, or text with a separator
    separator: str | None = None  # of the column, if it is text (default |)
    order: Literal["newest_first", "newest_last"] | None = None  # of the column's values (default newest_first)

    @model_validator(mode="after")
    def _consistent(self) -> Sequence:
        if self.column is None and (self.separator is not None or self.order is not None):
            raise ValueError(f"sequence {self.name!r}: separator and order are for a sequence with a column")
        if self.column is None and self.entity == "context":
            raise ValueError(
                f"sequence {self.name!r}: entity: context is for a sequence with a column, which the log has in each row"
            )
        if self.column is not None and not self.clicks_only:
            raise ValueError(
                f"sequence {self.name!r}: clicks_only is for a sequence without a column, which is computed from the log"
            )
        if self.separator == "":
            raise ValueError(f"sequence {self.name!r}: the separator is empty: give the text between two values")
        return self

    @property
    def separated_by(self) -> str:
        """The separator of a text of several values."""
        return self.separator or "|"


class Cross(Described):
    """A pair of two categorical fields as a category of its own. It is computed from them; logs and requests do not have it.

    A pair that occurs in fewer than ``min_count`` training rows, or is not among the ``max_values`` most frequent ones, is unknown, as is
    a pair with an unknown value. The order of the fields has no meaning. A cross is never masked at test time.
    """

    name: Name
    of: tuple[str, str]
    min_count: int = Field(default=2, ge=1)
    max_values: int = Field(default=100_000, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """``[a, b]`` is short for ``{name: a_x_b, of: [a, b]}``."""
        value = {"of": value} if isinstance(value, (list, tuple)) else value
        if isinstance(value, dict) and "name" not in value:
            of = value.get("of")
            if isinstance(of, (list, tuple)) and len(of) == 2:
                return {"name": f"{of[0]}_x_{of[1]}", **value}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Cross:
        if self.of[0] == self.of[1]:
            raise ValueError(f"cross {self.name!r}: {self.of[0]!r} is crossed with itself, give two different fields")
        return self


class Vector(Described):
    """A fixed vector of the item or user, a list column of the source. A missing vector is an unknown value."""

    name: Name
    entity: Literal["user", "item"] = "item"
    column: str | None = None
    dim: int = Field(ge=1, le=4096)

    @property
    def source_column(self) -> str:
        return self.column or self.name


class ValidFrom(Described):
    """The column of a side table with the time from which a row is valid, until the next row of the same key.

    ``format`` and ``zone`` as in :class:`TimeColumn`; by default those of the log's own time.
    """

    column: str
    format: Literal["s", "ms", "us", "datetime", "yymmddhh"] | None = None
    zone: str | None = None

    @field_validator("zone")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            zone_named(value)
        return value


def _named_column(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


class SideTable(Described):
    """A table with the attributes of the users or the items: their fields and vectors, and the title, are read from it and not
    from the log. It has one row per key or, with ``valid_from``, one per key and time.

    ``path`` is relative to the folder of the schema file. ``key`` is the column of the id (default: the log's column).
    """

    path: Annotated[str, Field(min_length=1)]
    key: str | None = None
    valid_from: Annotated[ValidFrom | None, BeforeValidator(_named_column)] = None


class SideTables(Described):
    """The side tables of a log."""

    users: SideTable | None = None
    items: SideTable | None = None


class ModelField(Described):
    """One input position of the model, in model order. Derived from the schema by :meth:`LogSchema.model_fields_in_order`.

    The weights of the elements of a list (kind ``weights``) are read from rows and are no input position of their own.
    """

    name: str
    kind: Literal["categorical", "numeric", "sequence", "vector", "weights"]
    entity: Entity
    origin: Literal["key", "attribute", "derived", "cross", "statistic", "sequence", "vector"]
    protected: bool
    buckets: int = 0  # numeric
    length: int = 0  # sequence, weights
    dim: int = 0  # vector
    of: str = ""  # sequence: the categorical field whose vocabulary and table it shares, or its own name: it has its own; weights: the list
    weights: str = ""  # sequence: the name of the weights of its elements

    crossed: tuple[str, str] | tuple[()] = ()  # cross: the two fields that it is computed from

    @model_serializer(mode="wrap")
    def _without_absent_parts(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Files of models without crosses or weights are those of versions that knew none."""
        written: dict[str, object] = serialize(self)
        return {key: value for key, value in written.items() if key not in ("crossed", "weights") or value}

    @property
    def has_own_values(self) -> bool:
        """Whether it is a list with a vocabulary of its own, and not that of a column."""
        return self.kind == "sequence" and self.of == self.name

    def of_weights(self) -> ModelField | None:
        """The weights of the elements of a list, as rows have them; None without."""
        if not self.weights:
            return None
        return ModelField(
            name=self.weights,
            kind="weights",
            entity=self.entity,
            origin="attribute",
            protected=True,
            length=self.length,
            of=self.name,
        )


def fields_of_rows(fields: tuple[ModelField, ...]) -> tuple[ModelField, ...]:
    """What a row has values of, given the inputs of a model: without crosses, which the encoder computes, and with the weights of
    lists."""
    weights = [found for f in fields if (found := f.of_weights()) is not None]
    return (*(f for f in fields if f.origin != "cross"), *weights)
