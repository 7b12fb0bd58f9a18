"""The file of an encoder: fields, bounds and which vocabularies it has."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from thinktwice.schema import ModelField

ENCODER_FILE = "encoder.json"
#: Files without a format number have format 1: float32 values of their logs were widened to float64 before spelling and
#: binning.
FORMAT = 2


class EncoderFile(BaseModel):
    """Content of ``encoder.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Annotated[int, Field(ge=1, le=FORMAT, strict=True)] = 1
    fields: tuple[ModelField, ...]
    user_key: str | None
    vocabulary_fields: tuple[str, ...]
    bounds: dict[str, tuple[float, ...]]

    @model_validator(mode="after")
    def _consistent(self) -> EncoderFile:
        names = [f.name for f in self.fields]
        if len(set(names)) < len(names):
            raise ValueError("two fields have the same name")
        kinds = {kind: [f.name for f in self.fields if f.kind == kind] for kind in ("categorical", "numeric")}
        lists = [f.name for f in self.fields if f.has_own_values]
        if sorted(self.vocabulary_fields) != sorted([*kinds["categorical"], *lists]):
            raise ValueError("'vocabulary_fields' does not name the categorical fields")
        if sorted(self.bounds) != sorted(kinds["numeric"]):
            raise ValueError("'bounds' does not name the numeric fields")
        if invalid := [f.name for f in self.fields if f.kind == "sequence" and f.of not in self.vocabulary_fields]:
            raise ValueError(f"sequence {invalid[0]!r} contains values of a field without a vocabulary")
        if invalid := [f.name for f in self.fields if f.kind == "weights" or (f.weights and not f.has_own_values)]:
            raise ValueError(f"{invalid[0]!r} is not a list that may have weights")
        columns = {f.name for f in self.fields if f.kind == "categorical" and not f.crossed}
        if invalid := [f.name for f in self.fields if (f.origin == "cross") != bool(f.crossed)]:
            raise ValueError(f"{invalid[0]!r} is a cross without two fields")
        if invalid := [f.name for f in self.fields if not columns.issuperset(f.crossed)]:
            raise ValueError(f"{invalid[0]!r} is a cross of fields that are not categorical")
        if invalid := [n for n, b in self.bounds.items() if any(high <= low for low, high in pairwise(b))]:
            raise ValueError(f"the bounds of {invalid[0]!r} are not ascending")
        return self
