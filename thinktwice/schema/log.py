"""The typed description of one log: its fields, entities, time, label, sequences, scenario and vectors.

Fields are described only in this module. Validation rules, Feast objects, the encoder, the model and the
request codec are derived from a :class:`LogSchema`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from thinktwice.errors import SchemaError
from thinktwice.schema.statistics import InstantStatistics, Statistics
from thinktwice.schema.times import Derived, Zone, zone_named
from thinktwice.schema.values import spell
from thinktwice.storage.location import as_text, is_remote
from thinktwice.storage.open import read_uri
from thinktwice.strict_yaml import MAX_CHARACTERS, first_fault, mapping, read_mapping

Entity = Literal["user", "item", "context"]

SCHEMA_FILE = "schema.yaml"  # in every folder described by a schema

#: Additional columns of a clean log and of data derived from it. Fields must not have these names.
ROW_ID = "row_id"  # stable 16 hex digits: hash of source name and row ordinal
EVENT_TIME = "event_time"  # timestamp[us, UTC] of the impression
LABEL = "label"  # int8, 1 = click
_CLEAN = {ROW_ID, EVENT_TIME, LABEL, "title", "propensity", "truth", "split", "created_time", "source_row"}
_TABLES = {"event_timestamp", "created_timestamp"}  # of the feature tables
_QUERIES = {"key", "instant", "clicked", "latest_at"}  # columns that queries add to those of the log
_FEAST = {"entity_row_id", "rn"}  # columns that Feast's point-in-time join adds
RESERVED = frozenset(_CLEAN | _TABLES | _QUERIES | _FEAST)
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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogField(_Frozen):
    """One feature of an impression.

    ``column`` is its name in the source file (default: ``name``). ``derived`` computes it from the impression's time.
    ``protected`` values are never masked at test time; by default numeric and derived fields are protected.
    """

    name: Name
    kind: Literal["categorical", "numeric"] = "categorical"
    entity: Entity = "context"
    column: str | None = None
    derived: Derived | None = None  # by the clocks in the zone of ``time``
    nullable: bool = True
    allowed: tuple[Value, ...] | None = None  # categorical: allowed values; others break a rule
    minimum: float | None = None  # numeric bounds, inclusive
    maximum: float | None = None
    buckets: int = Field(default=32, ge=2, le=1024)  # numeric: quantile bins
    protected: bool | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LogField:
        if self.derived and (self.kind != "categorical" or self.entity != "context" or self.column):
            raise ValueError(f"field {self.name!r}: a derived field is a categorical context field without a column")
        if self.kind == "numeric" and self.allowed is not None:
            raise ValueError(f"field {self.name!r}: 'allowed' is for categorical fields; use minimum and maximum")
        if self.kind == "categorical" and (self.minimum is not None or self.maximum is not None):
            raise ValueError(f"field {self.name!r}: minimum and maximum are for numeric fields; use 'allowed'")
        return self

    @property
    def source_column(self) -> str:
        return self.column or self.name

    @property
    def is_protected(self) -> bool:
        return self.protected if self.protected is not None else self.kind == "numeric" or self.derived is not None


class EntityKey(_Frozen):
    """The id of a user or an item. The id is itself a model field, unless ``as_field`` is false."""

    key: KeyName
    column: str | None = None
    as_field: bool = True
    title: str | None = None  # source column with a display name; never a model input

    @property
    def source_column(self) -> str:
        return self.column or self.key


class Entities(_Frozen):
    user: EntityKey | None = None
    item: EntityKey | None = None


class TimeColumn(_Frozen):
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


class LabelColumn(_Frozen):
    """The source of the label. With ``threshold``, a value of at least that is a click; otherwise the value must be 0 or 1."""

    column: str = "label"
    threshold: float | None = None


class Sequence(_Frozen):
    """The user's latest values of an item field, newest first, strictly before the impression.

    Training rows contain every earlier click. An online store contains those up to its last materialization, so a served
    sequence is as old as that: materialize often, or push, if sessions matter.
    """

    name: Name
    of: str
    length: int = Field(default=20, ge=1, le=200)
    clicks_only: bool = True


class Vector(_Frozen):
    """A fixed vector of the item or user, a list column of the source. A missing vector is an unknown value."""

    name: Name
    entity: Literal["user", "item"] = "item"
    column: str | None = None
    dim: int = Field(ge=1, le=4096)

    @property
    def source_column(self) -> str:
        return self.column or self.name


class ModelField(_Frozen):
    """One input position of the model, in model order. Derived from the schema by :meth:`LogSchema.model_fields`."""

    name: str
    kind: Literal["categorical", "numeric", "sequence", "vector"]
    entity: Entity
    origin: Literal["key", "attribute", "derived", "statistic", "sequence", "vector"]
    protected: bool
    buckets: int = 0  # numeric
    length: int = 0  # sequence
    dim: int = 0  # vector
    of: str = ""  # sequence: the categorical field whose vocabulary and table it shares


class LogSchema(_Frozen):
    """One log, described. Read it with :func:`load_schema`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
    time: TimeColumn
    label: LabelColumn = LabelColumn()
    entities: Entities = Entities()
    fields: tuple[LogField, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    vectors: tuple[Vector, ...] = ()
    statistics: Statistics | None = None
    scenario: str | None = None  # name of the categorical field that is the scenario id
    propensity: str | None = None  # source column: probability with which the logging policy showed this item
    truth: str | None = None  # source column: true click probability (simulators only; never a model input)
    quarantine_budget: float = Field(default=0.01, ge=0, le=1)  # maximum share of quarantined rows

    @model_validator(mode="after")
    def _consistent(self) -> LogSchema:
        fields = self.model_fields_in_order()
        names = [f.name for f in fields]
        if not names:
            raise ValueError("the schema describes no field: name at least one under 'fields' or 'entities'")
        names += [k.key for k in (self.entities.user, self.entities.item) if k is not None and not k.as_field]
        lower = [n.lower() for n in names]  # the query engine ignores case
        repeated = sorted({n for n in names if lower.count(n.lower()) > 1})
        if repeated:
            raise ValueError(
                "names of fields and entity keys must be different (in more than upper and lower case), "
                f"repeated: {', '.join(repeated)}: choose another"
            )
        dropped = [f.name for f in fields if f.entity != "context" and f.origin != "key" and f.name.endswith("_y")]
        if dropped:
            raise ValueError(
                f"name {dropped[0]!r} of a user or item field may not end with '_y' "
                "(Feast drops such columns when it joins), choose another"
            )
        for entity in ("user", "item"):
            if getattr(self.entities, entity) is None:
                users = [f.name for f in self.fields if f.entity == entity]
                users += [v.name for v in self.vectors if v.entity == entity]
                if users:
                    raise ValueError(
                        f"field {users[0]!r} belongs to the {entity}, but entities.{entity} is not described"
                    )
        item_categoricals = {f.name for f in self.fields if f.entity == "item" and f.kind == "categorical"}
        if self.entities.item is not None and self.entities.item.as_field:
            item_categoricals.add(self.entities.item.key)
        for sequence in self.sequences:
            if self.entities.user is None:
                raise ValueError(f"sequence {sequence.name!r} needs entities.user")
            if sequence.of not in item_categoricals:
                raise ValueError(
                    f"sequence {sequence.name!r}: 'of' names {sequence.of!r}, which is not a categorical item field"
                )
        if self.statistics is not None and self.statistics.windows_days:
            for entity in self.statistics.entities:
                if getattr(self.entities, entity) is None:
                    raise ValueError(f"statistics name the {entity}, but entities.{entity} is not described")
        self._check_instant()
        if self.scenario is not None and self.scenario not in {f.name for f in self.fields if f.kind == "categorical"}:
            raise ValueError(f"scenario names {self.scenario!r}, which is not a categorical field")
        return self

    def _check_instant(self) -> None:
        instant = self.instant
        if instant is None:
            return
        if self.entities.user is None and self.entities.item is None:
            raise ValueError("statistics.instant needs entities.user or entities.item: there is nothing to count")
        sides: tuple[tuple[str, tuple[str, ...] | None, Entity], ...] = (
            ("topics", instant.topics, "item"),
            ("attributes", instant.attributes, "user"),
        )
        for setting, names, entity in sides:
            allowed_names = [f.name for f in self.attributes_of(entity) if f.kind == "categorical"]
            for name in names or ():
                if name not in allowed_names:
                    raise ValueError(
                        f"statistics.instant: {setting} name {name!r}, which is not a categorical {entity} field; "
                        f"these are {', '.join(allowed_names) or 'none'}"
                    )
                if self.entities.user is None or self.entities.item is None:
                    raise ValueError(f"statistics.instant: {setting} need entities.user and entities.item")

    @property
    def instant(self) -> InstantStatistics | None:
        """The setting ``statistics.instant``; None for a log without such counters."""
        return None if self.statistics is None else self.statistics.instant

    @property
    def zone(self) -> Zone:
        """The zone of times without an offset, and of hour and weekday."""
        return zone_named(self.time.zone or "UTC")

    def model_fields_in_order(self) -> tuple[ModelField, ...]:
        """All inputs of the model, in the order used by encoder, model, counts and bundle."""
        out: list[ModelField] = []
        for entity in ("user", "item"):
            key: EntityKey | None = getattr(self.entities, entity)
            if key is not None and key.as_field:
                out.append(ModelField(name=key.key, kind="categorical", entity=entity, origin="key", protected=False))
        for f in self.fields:
            out.append(
                ModelField(
                    name=f.name,
                    kind=f.kind,
                    entity=f.entity,
                    origin="derived" if f.derived else "attribute",
                    protected=f.is_protected,
                    buckets=f.buckets if f.kind == "numeric" else 0,
                )
            )
        if self.statistics is not None:
            for entity in self.statistics.entities:
                for name in self.statistic_names(entity):
                    out.append(
                        ModelField(
                            name=name,
                            kind="numeric",
                            entity=entity,
                            origin="statistic",
                            protected=True,
                            buckets=self.statistics.buckets,
                        )
                    )
        for s in self.sequences:
            out.append(
                ModelField(
                    name=s.name,
                    kind="sequence",
                    entity="user",
                    origin="sequence",
                    protected=True,
                    length=s.length,
                    of=s.of,
                )
            )
        for v in self.vectors:
            out.append(
                ModelField(name=v.name, kind="vector", entity=v.entity, origin="vector", protected=True, dim=v.dim)
            )
        return tuple(out)

    def statistic_names(self, entity: Literal["user", "item"]) -> tuple[str, ...]:
        """Names of the statistic fields of one entity: ``user_views_7d``, ``user_rate_7d``, ..., ``item_views_all``."""
        if self.statistics is None or entity not in self.statistics.entities:
            return ()
        windows = [f"{w}d" if w else "all" for w in self.statistics.windows_days]
        return tuple(f"{entity}_{measure}_{w}" for w in windows for measure in ("views", "rate"))

    def key_of(self, entity: Literal["user", "item"]) -> str | None:
        """Name of the id column of an entity, or None if the log has no such entity."""
        key: EntityKey | None = getattr(self.entities, entity)
        return None if key is None else key.key

    def attributes_of(self, entity: Entity) -> tuple[LogField, ...]:
        """The described (not computed) fields of an entity, without its id."""
        return tuple(f for f in self.fields if f.entity == entity and f.derived is None)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


def load_schema(path: Path | str) -> LogSchema:
    """Read a schema file, of this machine or at ``s3://``.

    Raises:
        StorageError: the object store does not give the file.
        SchemaError: the file is missing, is not YAML, or breaks a rule; the message names the location in the file.
    """
    uri = as_text(path)
    if is_remote(uri) and not Path(path).exists():
        try:
            return parse_schema(read_uri(uri, MAX_CHARACTERS).decode("utf-8-sig"), where=uri)
        except UnicodeDecodeError as error:
            raise SchemaError(
                f"schema file {uri} is not UTF-8 text (byte {error.start + 1}): save it as UTF-8"
            ) from error
    return _schema_of(read_mapping(path, "schema file", SchemaError), str(path))


def parse_schema(text: str, *, where: str) -> LogSchema:
    """Like :func:`load_schema`, from text; ``where`` names its origin in errors."""
    return _schema_of(mapping(text, f"schema {where}", SchemaError), where)


def _schema_of(value: dict[str, Any], where: str) -> LogSchema:
    if not value:
        raise SchemaError(f"schema {where} is empty: start with 'name:' and 'fields:'")
    try:
        return LogSchema.model_validate(value)
    except ValidationError as error:
        location, message = first_fault(error, LogSchema, "schema")
        raise SchemaError(f"schema {where}, {location}: {message}") from error
