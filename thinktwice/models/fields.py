"""The input fields of a model: what a backbone needs to know of the schema and the encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from thinktwice.data.encoded import table_offsets
from thinktwice.data.encoder import Encoder
from thinktwice.schema import LogSchema
from thinktwice.schema.log import Entity

Kind = Literal["categorical", "numeric", "sequence", "vector"]


class FieldSpace(BaseModel):
    """N fields in model order: categorical and numeric ones (columns of ``ids``), then sequences, then vectors.

    ``num_values`` has one entry per column, the unknown index 0 included. ``sequence_of`` names, per sequence, the column whose
    values it contains and whose table rows it shares. ``entities`` names the entity that each field describes: the fields of a
    new entity are all unknown.
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

    @model_validator(mode="after")
    def _consistent(self) -> FieldSpace:
        rank = {"categorical": 0, "numeric": 0, "sequence": 1, "vector": 2}
        ranks = [rank[k] for k in self.kinds]
        if ranks != sorted(ranks):
            raise ValueError("columns come first, then sequences, then vectors")
        sizes = (ranks.count(0), ranks.count(1), ranks.count(1), ranks.count(2))
        counts = (len(self.num_values), len(self.sequence_of), len(self.sequence_lengths), len(self.vector_dims))
        lengths = {len(self.names), len(self.kinds), len(self.entities), len(self.protected)}
        if sizes != counts or len(lengths) > 1:
            raise ValueError(f"field kinds ask for {sizes} value counts, sequences, lengths and dims, got {counts}")
        if unknown := sorted(set(self.sequence_of) - set(self.columns)):
            raise ValueError(f"a sequence contains values of {unknown[0]!r}, which is not a column")
        return self

    @staticmethod
    def of(schema: LogSchema, encoder: Encoder) -> FieldSpace:
        """The fields of a log as its encoder sees them."""
        fields = schema.model_fields_in_order()
        sequences = [f for f in fields if f.kind == "sequence"]
        return FieldSpace(
            names=tuple(f.name for f in fields),
            kinds=tuple(f.kind for f in fields),
            entities=tuple(f.entity for f in fields),
            protected=tuple(f.protected for f in fields),
            num_values=encoder.num_values,
            sequence_of=tuple(f.of for f in sequences),
            sequence_lengths=tuple(f.length for f in sequences),
            vector_dims=tuple(f.dim for f in fields if f.kind == "vector"),
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
    def vectors(self) -> tuple[str, ...]:
        return self.names[self.num_fields - len(self.vector_dims) :] if self.vector_dims else ()

    @property
    def num_rows(self) -> int:
        """Rows of the joint table."""
        return sum(self.num_values)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First row of each column in the joint table."""
        return tuple(int(o) for o in table_offsets(self.num_values))
