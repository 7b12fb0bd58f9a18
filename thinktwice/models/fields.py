"""The input fields of a model: what a backbone needs to know of the schema and the encoder."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from thinktwice.calibration import MAX_MAGNITUDE
from thinktwice.data.encoded import table_offsets
from thinktwice.data.encoder import Encoder
from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.stored import CounterScale
from thinktwice.hashing import Sha256
from thinktwice.schema import LogSchema
from thinktwice.schema.fields import Entity

Number = Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE)]
Position = Annotated[int, Field(ge=0)]
Kind = Literal["categorical", "numeric", "sequence", "vector", "counters"]


class CounterGroup(BaseModel):
    """Counters that are one field of a model. ``columns`` are their positions among all counters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    entity: Entity
    columns: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)


class CounterFields(BaseModel):
    """The K counters that a model reads as numbers, and their groups: counters of the user, of the user and a topic, of the item,
    of the item and an attribute. ``means`` and ``sds`` standardise them; ``definition`` is the hash of what they count."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    definition: Sha256
    means: tuple[Number, ...]
    sds: tuple[Annotated[Number, Field(gt=0)], ...]
    groups: tuple[CounterGroup, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> CounterFields:
        columns = sorted(column for group in self.groups for column in group.columns)
        if len(self.means) != len(self.sds) or columns != list(range(len(self.means))):
            raise ValueError("'groups' must name each counter once, and 'means' and 'sds' have one number per counter")
        return self

    @staticmethod
    def of(definition: Definition, scale: CounterScale) -> CounterFields:
        """All counters of a schema."""
        columns: dict[tuple[str, Entity], list[int]] = {}
        for column, counter in enumerate(definition.counters):
            crossed = "" if not counter.crossed else " by topic" if counter.side == "user" else " by attribute"
            columns.setdefault((f"{counter.side} counters{crossed}", counter.side), []).append(column)
        groups = tuple(CounterGroup(name=n, entity=e, columns=tuple(c)) for (n, e), c in columns.items())
        return CounterFields(definition=scale.definition, means=scale.means, sds=scale.sds, groups=groups)


class FieldSpace(BaseModel):
    """N fields in model order: categorical and numeric ones (columns of ``ids``), then sequences, then vectors.

    ``num_values`` has one entry per column, the unknown index 0 included. ``sequence_of`` names, per sequence, the column whose
    values it contains and whose table rows it shares, or the sequence itself: a list with ``list_values`` values of its own. ``weighted`` names the lists
    whose elements have weights. ``entities`` names the entity that each field describes: the fields of a
    new entity are all unknown. ``crosses`` are columns with the two columns that each is computed from. ``counters`` are further fields, one per group, after the vectors; None for a model without.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    entities: tuple[Entity, ...]
    protected: tuple[bool, ...]
    num_values: tuple[PositiveInt, ...]
    sequence_of: tuple[str, ...] = ()
    sequence_lengths: tuple[PositiveInt, ...] = ()
    vector_dims: tuple[PositiveInt, ...] = ()
    list_values: tuple[PositiveInt, ...] = ()
    weighted: tuple[str, ...] = ()
    crosses: tuple[tuple[Position, Position, Position], ...] = ()
    counters: CounterFields | None = None

    @model_serializer(mode="wrap")
    def _without_absent_counters(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Files of models without counters, lists or weights are those of versions that knew none."""
        written: dict[str, object] = serialize(self)
        absent = {"counters": None, "list_values": (), "weighted": (), "crosses": ()}
        return {key: value for key, value in written.items() if not (key in absent and value in (absent[key], []))}

    @model_validator(mode="after")
    def _consistent(self) -> FieldSpace:
        rank = {"categorical": 0, "numeric": 0, "sequence": 1, "vector": 2, "counters": 3}
        ranks = [rank[k] for k in self.kinds]
        if ranks != sorted(ranks):
            raise ValueError("columns come first, then sequences, then vectors, then counters")
        sizes = (ranks.count(0), ranks.count(1), ranks.count(1), ranks.count(2), ranks.count(3))
        counts = (
            len(self.num_values),
            len(self.sequence_of),
            len(self.sequence_lengths),
            len(self.vector_dims),
            len(self.counter_groups),
        )
        lengths = {len(self.names), len(self.kinds), len(self.entities), len(self.protected)}
        if sizes != counts or len(lengths) > 1:
            raise ValueError(
                f"field kinds ask for {sizes} value counts, sequences, lengths, dims and groups of counters, got {counts}"
            )
        if any(max(cross) >= len(self.num_values) or cross[0] in cross[1:] for cross in self.crosses):
            raise ValueError("a cross names three different columns")
        lists = [name for name, of in zip(self.sequences, self.sequence_of, strict=True) if of == name]
        if len(lists) != len(self.list_values):
            raise ValueError(f"{len(lists)} lists have values of their own, got {len(self.list_values)} value counts")
        if wrong := sorted(set(self.weighted) - set(lists)):
            raise ValueError(f"{wrong[0]!r} has weights, but is not a list with values of its own")
        if unknown := sorted(set(self.sequence_of) - set(self.columns) - set(lists)):
            raise ValueError(f"a sequence contains values of {unknown[0]!r}, which is not a column")
        return self

    @staticmethod
    def of(schema: LogSchema, encoder: Encoder) -> FieldSpace:
        """The fields of a log as its encoder sees them."""
        fields = schema.model_fields_in_order()
        sequences = [f for f in fields if f.kind == "sequence"]
        return FieldSpace(
            names=tuple(f.name for f in fields),
            kinds=cast("tuple[Kind, ...]", tuple(f.kind for f in fields)),
            entities=tuple(f.entity for f in fields),
            protected=tuple(f.protected for f in fields),
            num_values=encoder.num_values,
            sequence_of=tuple(f.of for f in sequences),
            sequence_lengths=tuple(f.length for f in sequences),
            vector_dims=tuple(f.dim for f in fields if f.kind == "vector"),
            list_values=encoder.list_values,
            weighted=tuple(f.name for f in sequences if f.weights),
            crosses=tuple((cross.column, *cross.parents) for cross in encoder.crosses),
        )

    @property
    def num_fields(self) -> int:
        return len(self.names)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the categorical and numeric fields, in the order of ``Batch.ids``."""
        return self.names[: len(self.num_values)]

    @property
    def sequences(self) -> tuple[str, ...]:
        start = len(self.num_values)
        return self.names[start : start + len(self.sequence_of)]

    @property
    def own_lists(self) -> tuple[str, ...]:
        """The sequences with values of their own."""
        return tuple(name for name, of in zip(self.sequences, self.sequence_of, strict=True) if of == name)

    @property
    def values_of_sequences(self) -> tuple[int, ...]:
        """Number of values that each sequence may contain, the index 0 of padding included."""
        sizes = dict(zip(self.columns, self.num_values, strict=True))
        own = iter(self.list_values)
        return tuple(
            next(own) if of == name else sizes[of] for name, of in zip(self.sequences, self.sequence_of, strict=True)
        )

    @property
    def vectors(self) -> tuple[str, ...]:
        start = len(self.num_values) + len(self.sequence_of)
        return self.names[start : start + len(self.vector_dims)]

    @property
    def counter_groups(self) -> tuple[CounterGroup, ...]:
        """The groups of counters; empty for a model that reads none."""
        return () if self.counters is None else self.counters.groups

    def with_counters(self, counters: CounterFields) -> FieldSpace:
        """The same fields and counters. No test-time method masks counters: they are protected."""
        groups = counters.groups
        return FieldSpace.model_validate(
            dict(self)
            | {
                "names": (*self.names, *(g.name for g in groups)),
                "kinds": (*self.kinds, *("counters" for _ in groups)),
                "entities": (*self.entities, *(g.entity for g in groups)),
                "protected": (*self.protected, *(True for _ in groups)),
                "counters": counters,
            }
        )

    def without_counters(self) -> FieldSpace:
        """The fields of the schema alone."""
        if self.counters is None:
            return self
        end = self.num_fields - len(self.counter_groups)
        cut = {name: getattr(self, name)[:end] for name in ("names", "kinds", "entities", "protected")}
        return FieldSpace.model_validate(dict(self) | cut | {"counters": None})

    @property
    def num_rows(self) -> int:
        """Rows of the joint table."""
        return sum(self.num_values)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First row of each column in the joint table."""
        return tuple(int(o) for o in table_offsets(self.num_values))
