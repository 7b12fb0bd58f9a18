"""Feast objects of one log, all of them derived from its schema.

One entity per user and item, one file source and one feature view per feature table, and one feature service per feature
version (a snapshot, its schema and the code) that names every feature a model of this log reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from feature_repo.sdk import load_sdk
from thinktwice.data.feature_tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ColumnKind,
    TableSpec,
    service_name,
)
from thinktwice.schema import LogSchema

if TYPE_CHECKING:
    from feast import Entity, FeatureService, FeatureView, FileSource
    from feast.types import ComplexFeastType, PrimitiveFeastType

OWNER = "thinktwice"
VIEW_TEXT = {
    "attributes": "What is known about the {entity}: described fields and vectors, valid from the impression that first carries them.",
    "statistics": "Impressions and smoothed click rate of the {entity} over trailing windows of whole days, closed at midnight UTC.",
    "sequences": "The latest values of the {entity}, newest first, valid from one microsecond after the click that enters them.",
}


@dataclass(frozen=True)
class Definitions:
    """All Feast objects of one store; ``service`` is None for a log without entities."""

    entities: tuple[Entity, ...]
    sources: tuple[FileSource, ...]
    views: tuple[FeatureView, ...]
    service: FeatureService | None

    def objects(self) -> list[Any]:
        """Everything ``FeatureStore.apply`` takes."""
        service = () if self.service is None else (self.service,)
        return [*self.entities, *self.sources, *self.views, *service]


def project_name(schema: LogSchema, feature_version: str) -> str:
    """The Feast project. A shared online store keeps the rows of different feature versions apart by it."""
    return re.sub(r"[^0-9A-Za-z]", "_", f"{schema.name}_{feature_version}")


def define(schema: LogSchema, specs: Sequence[TableSpec], feature_version: str, data_dir: PurePath) -> Definitions:
    """Build the Feast objects over the tables ``specs``; the sources read ``<data_dir>/<table>.parquet``."""
    load_sdk()
    from feast import Entity, FeatureService, ValueType

    if not specs:
        return Definitions((), (), (), None)
    tags = {"schema": schema.name, "feature_version": feature_version}
    entities = {
        spec.entity: Entity(
            name=spec.entity,
            join_keys=[spec.key],
            value_type=ValueType.STRING,
            description=f"The {spec.entity} of an impression, by its id in the log.",
            owner=OWNER,
            tags=tags,
        )
        for spec in specs
    }
    sources = tuple(_source(spec, data_dir, tags) for spec in specs)
    views = tuple(_view(spec, entities[spec.entity], source, tags) for spec, source in zip(specs, sources, strict=True))
    service = FeatureService(
        name=service_name(feature_version),
        features=list(views),
        description=f"Every feature that a click model of the log {schema.name} reads, version {feature_version}.",
        owner=OWNER,
        tags=tags,
    )
    return Definitions(tuple(entities.values()), sources, views, service)


def _source(spec: TableSpec, data_dir: PurePath, tags: dict[str, str]) -> FileSource:
    from feast import FileSource
    from feast.data_format import ParquetFormat

    return FileSource(
        name=f"{spec.name}_table",
        path=str(data_dir / f"{spec.name}.parquet"),
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_TIMESTAMP,
        description=f"Change points of the {spec.entity} {spec.kind}.",
        owner=OWNER,
        tags={**tags, "kind": spec.kind},
    )


def _view(spec: TableSpec, entity: Entity, source: FileSource, tags: dict[str, str]) -> FeatureView:
    from datetime import timedelta

    from feast import FeatureView, Field
    from feast.types import String

    return FeatureView(
        name=spec.name,
        entities=[entity],
        # 0 = a value holds until the next one, however old it is; the tables write a row when a window empties.
        ttl=timedelta(0),
        schema=[
            Field(name=spec.key, dtype=String, description=f"Id of the {spec.entity}."),
            *(
                Field(name=name, dtype=_dtype(kind), description=f"Model field {name!r}.", tags={"kind": kind})
                for name, kind in spec.columns
            ),
        ],
        source=source,
        online=True,
        description=VIEW_TEXT[spec.kind].format(entity=spec.entity),
        owner=OWNER,
        tags={**tags, "kind": spec.kind},
    )


def _dtype(kind: ColumnKind) -> PrimitiveFeastType | ComplexFeastType:
    from feast.types import Array, Float32, Float64, String

    types: dict[ColumnKind, PrimitiveFeastType | ComplexFeastType] = {
        "string": String,
        "number": Float64,
        "strings": Array(String),
        "vector": Array(Float32),
    }
    return types[kind]
