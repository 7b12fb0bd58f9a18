"""The typed description of one log: its fields, entities, time, label, sequences, scenario, vectors and side tables.

Fields are described only in this room. Validation rules, Feast objects, the encoder, the model and the request codec are
derived from a :class:`LogSchema`. Its parts are in :mod:`thinktwice.schema.fields`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from thinktwice.errors import SchemaError
from thinktwice.schema.fields import (
    TABLE_OF,
    Cross,
    Described,
    Entities,
    Entity,
    EntityKey,
    LabelColumn,
    LogField,
    ModelField,
    Sequence,
    SideTable,
    SideTables,
    TimeColumn,
    Vector,
    fields_of_rows,
)
from thinktwice.schema.statistics import InstantStatistics, Statistics
from thinktwice.schema.times import Zone, zone_named
from thinktwice.storage.location import as_text, is_remote
from thinktwice.storage.open import read_uri
from thinktwice.strict_yaml import MAX_CHARACTERS, first_fault, mapping, read_mapping


class LogSchema(Described):
    """One log, described. Read it with :func:`load_schema`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
    time: TimeColumn
    label: LabelColumn = LabelColumn()
    entities: Entities = Entities()
    fields: tuple[LogField, ...] = ()
    crosses: tuple[Cross, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    vectors: tuple[Vector, ...] = ()
    tables: SideTables = SideTables()
    statistics: Statistics | None = None
    scenario: str | None = None  # name of the categorical field that is the scenario id
    propensity: str | None = None  # source column: probability with which the logging policy showed this item
    truth: str | None = None  # source column: true click probability (simulators only; never a model input)
    weight: str | None = None  # source column: how much a row counts in training, relative to others; at least 0
    quarantine_budget: float = Field(default=0.01, ge=0, le=1)  # maximum share of quarantined rows

    @model_validator(mode="after")
    def _consistent(self) -> LogSchema:
        fields = self.model_fields_in_order()
        names = [f.name for f in fields]
        if not names:
            raise ValueError("the schema describes no field: name at least one under 'fields' or 'entities'")
        names += [f.weights for f in fields if f.weights]
        names += [k.key for k in (self.entities.user, self.entities.item) if k is not None and not k.as_field]
        lower = [n.lower() for n in names]  # the query engine ignores case
        repeated = sorted({n for n in names if lower.count(n.lower()) > 1})
        if repeated:
            raise ValueError(
                "names of fields and entity keys must be different (in more than upper and lower case), "
                f"repeated: {', '.join(repeated)}: choose another"
            )
        dropped = [
            f.name
            for f in (*fields, *self.row_fields())
            if f.entity != "context" and f.origin != "key" and f.name.endswith("_y")
        ]
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
        item_categoricals = {f.name for f in self.fields if f.entity == "item" and f.is_category}
        if self.entities.item is not None and self.entities.item.as_field:
            item_categoricals.add(self.entities.item.key)
        for sequence in self.sequences:
            if self.entities.user is None and sequence.entity == "user":
                raise ValueError(f"sequence {sequence.name!r} needs entities.user")
            if sequence.of not in item_categoricals:
                raise ValueError(
                    f"sequence {sequence.name!r}: 'of' names {sequence.of!r}, which is not a categorical item field"
                )
        if self.statistics is not None and self.statistics.windows_days:
            for entity in self.statistics.entities:
                if getattr(self.entities, entity) is None:
                    raise ValueError(f"statistics name the {entity}, but entities.{entity} is not described")
        self._check_crosses()
        self._check_tables()
        if self.entities.item is not None and self.entities.item.anonymous:
            raise ValueError("entities.item: only users may be anonymous")
        if self.has_anonymous_users:
            required = [f.name for f in self.logged_fields if f.entity == "user" and not f.nullable]
            if required:
                raise ValueError(
                    f"field {required[0]!r}: anonymous users have no attributes, so one cannot be required: omit 'nullable: false'"
                )
        self._check_instant()
        if self.scenario is not None and self.scenario not in {f.name for f in self.fields if f.is_category}:
            raise ValueError(f"scenario names {self.scenario!r}, which is not a categorical field")
        return self

    def _check_crosses(self) -> None:
        known = [key.key for key in (self.entities.user, self.entities.item) if key is not None and key.as_field]
        known += [f.name for f in self.fields if f.is_category]
        pairs: set[frozenset[str]] = set()
        for cross in self.crosses:
            for name in cross.of:
                if name not in known:
                    raise ValueError(
                        f"cross {cross.name!r}: 'of' names {name!r}, which is not a categorical field; these are {', '.join(known) or 'none'}"
                    )
            if frozenset(cross.of) in pairs:
                raise ValueError(f"{cross.of[0]!r} and {cross.of[1]!r} are crossed twice: leave one cross out")
            pairs.add(frozenset(cross.of))

    def _check_tables(self) -> None:
        for entity, table in self.side_tables.items():
            if self.key_of(entity) is None:
                raise ValueError(f"tables.{TABLE_OF[entity]} is given, but entities.{entity} is not described")
            read = (self.table_fields(entity), self.table_vectors(entity), self.table_sequences(entity))
            if not any(read) and self.table_title(entity) is None:
                raise ValueError(
                    f"tables.{TABLE_OF[entity]} is given, but no field or vector belongs to the {entity}: add 'entity: {entity}' to those "
                    "that are read from it, or leave the table out"
                )
            if table.valid_from is not None and table.valid_from.format is None and self.time.format == "order":
                raise ValueError(f"tables.{TABLE_OF[entity]}.valid_from needs a 'format': the time of the log has none")

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
            allowed_names = [f.name for f in self.attributes_of(entity) if f.is_category]
            for name in names or ():
                if name not in allowed_names:
                    raise ValueError(
                        f"statistics.instant: {setting} name {name!r}, which is not a categorical {entity} field; "
                        f"these are {', '.join(allowed_names) or 'none'}"
                    )
                if self.entities.user is None or self.entities.item is None:
                    raise ValueError(f"statistics.instant: {setting} need entities.user and entities.item")

    @property
    def has_anonymous_users(self) -> bool:
        """Whether rows and requests may have no id of the user."""
        return self.entities.user is not None and self.entities.user.anonymous

    @property
    def boolean_fields(self) -> frozenset[str]:
        """Names of the fields of kind boolean."""
        return frozenset(f.name for f in self.fields if f.kind == "boolean")

    @property
    def side_tables(self) -> dict[Literal["user", "item"], SideTable]:
        """The given side tables by entity."""
        tables = {entity: getattr(self.tables, name) for entity, name in TABLE_OF.items()}
        return {entity: table for entity, table in tables.items() if table is not None}

    @property
    def logged_fields(self) -> tuple[LogField, ...]:
        """The fields that are read from the log or derived from its time, and not from a side table."""
        return tuple(f for f in self.fields if f.entity not in self.side_tables)

    @property
    def logged_vectors(self) -> tuple[Vector, ...]:
        """The vectors that are read from the log."""
        return tuple(v for v in self.vectors if v.entity not in self.side_tables)

    @property
    def computed_sequences(self) -> tuple[Sequence, ...]:
        """The sequences that are computed from the log."""
        return tuple(s for s in self.sequences if s.column is None)

    @property
    def logged_sequences(self) -> tuple[Sequence, ...]:
        """The sequences that are read from the log."""
        return tuple(s for s in self.sequences if s.column is not None and s.entity not in self.side_tables)

    def table_sequences(self, entity: Literal["user", "item"]) -> tuple[Sequence, ...]:
        """The sequences that are read from the side table of an entity."""
        if entity not in self.side_tables:
            return ()
        return tuple(s for s in self.sequences if s.column is not None and s.entity == entity)

    @property
    def logged_title(self) -> str | None:
        """The log's column of item titles."""
        item = self.entities.item
        return None if item is None or "item" in self.side_tables else item.title

    def table_fields(self, entity: Literal["user", "item"]) -> tuple[LogField, ...]:
        """The fields that are read from the side table of an entity; empty without one."""
        return self.attributes_of(entity) if entity in self.side_tables else ()

    def table_vectors(self, entity: Literal["user", "item"]) -> tuple[Vector, ...]:
        """The vectors that are read from the side table of an entity."""
        return tuple(v for v in self.vectors if v.entity == entity) if entity in self.side_tables else ()

    def table_title(self, entity: Literal["user", "item"]) -> str | None:
        """The column of titles in the side table of an entity."""
        item = self.entities.item
        return item.title if item is not None and entity == "item" and "item" in self.side_tables else None

    def table_key(self, entity: Literal["user", "item"]) -> str:
        """The column of the id in the side table of an entity, which must have one."""
        key: EntityKey | None = getattr(self.entities, entity)
        assert key is not None
        return self.side_tables[entity].key or key.source_column

    def valid_from(self, entity: Literal["user", "item"]) -> TimeColumn | None:
        """The time of the rows of a side table; None if they are valid at all times."""
        given = self.side_tables[entity].valid_from
        if given is None:
            return None
        return TimeColumn(
            column=given.column, format=given.format or self.time.format, zone=given.zone or self.time.zone
        )

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
            if f.kind == "list":
                continue
            out.append(
                ModelField(
                    name=f.name,
                    kind="numeric" if f.kind == "numeric" else "categorical",
                    entity=f.entity,
                    origin="derived" if f.derived else "attribute",
                    protected=f.is_protected,
                    buckets=f.buckets if f.kind == "numeric" else 0,
                )
            )
        entities = {f.name: f.entity for f in out}
        for cross in self.crosses:
            of = {entities.get(name) for name in cross.of}
            out.append(
                ModelField(
                    name=cross.name,
                    kind="categorical",
                    entity="item" if "item" in of else "user" if "user" in of else "context",
                    origin="cross",
                    protected=True,
                    crossed=cross.of,
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
        for f in self.fields:
            if f.kind == "list":
                out.append(
                    ModelField(
                        name=f.name,
                        kind="sequence",
                        entity=f.entity,
                        origin="attribute",
                        protected=f.is_protected,
                        length=f.max_length,
                        of=f.name,
                        weights="" if f.weights is None else f.weights.name,
                    )
                )
        for s in self.sequences:
            out.append(
                ModelField(
                    name=s.name,
                    kind="sequence",
                    entity=s.entity,
                    origin="sequence" if s.column is None else "attribute",
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

    def row_fields(self) -> tuple[ModelField, ...]:
        """What a row has values of: the inputs of the model without crosses, which the encoder computes, and the weights of lists."""
        return fields_of_rows(self.model_fields_in_order())

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
