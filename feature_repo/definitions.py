"""Feast objects of one log, derived from its schema.

One entity per user and item, one file source and one feature view per feature table, and one feature service per feature
version (a snapshot, its schema and the code) that lists every feature a model of this log reads. A log with instant statistics also has
push sources, and views of states that only the feedback service fills; these are not in a feature service.
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
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.pushed_views import (
    DEFINITION_TAG,
    LOG_ENTITY,
    STATE,
    WATERMARK,
    InstantView,
    instant_views,
    push_source_name,
)
from thinktwice.schema import LogSchema

if TYPE_CHECKING:
    from feast import Entity, FeatureService, FeatureView, FileSource, PushSource
    from feast.types import ComplexFeastType, PrimitiveFeastType

OWNER = "thinktwice"
VIEW_TEXT = {
    "attributes": "What is known about the {entity}: described fields and vectors, valid from the impression that first carries them.",
    "statistics": "Impressions and smoothed click rate of the {entity} over trailing windows of whole days, closed at midnight UTC.",
    "sequences": "The latest values of the {entity}, newest first, valid from one microsecond after the click that enters them.",
    "instant": "Counters of the {entity} up to this instant, pushed by the feedback service.",
}


@dataclass(frozen=True)
class Definitions:
    """All Feast objects of one store; ``service`` is None for a log without entities.

    ``views`` are those of the feature tables, ``pushed`` those of instant statistics.
    """

    entities: tuple[Entity, ...]
    sources: tuple[FileSource | PushSource, ...]
    views: tuple[FeatureView, ...]
    service: FeatureService | None
    pushed: tuple[FeatureView, ...] = ()

    def objects(self) -> list[Any]:
        """All objects, for ``FeatureStore.apply``."""
        service = () if self.service is None else (self.service,)
        return [*self.entities, *self.sources, *self.views, *self.pushed, *service]


def project_name(schema: LogSchema, feature_version: str) -> str:
    """Name of the Feast project, which separates the rows of different feature versions in a shared online store."""
    return re.sub(r"[^0-9A-Za-z]", "_", f"{schema.name}_{feature_version}")


def define(schema: LogSchema, specs: Sequence[TableSpec], feature_version: str, data_dir: PurePath) -> Definitions:
    """Build the Feast objects over the tables ``specs``; the sources read ``<data_dir>/<table>.parquet``."""
    load_sdk()
    from feast import Entity, FeatureService, ValueType

    states = instant_views(schema)
    if not specs and not states:
        return Definitions((), (), (), None)
    tags = {"schema": schema.name, "feature_version": feature_version}
    keys: dict[str, str] = {spec.entity: spec.key for spec in specs} | {view.entity: view.key for view in states}
    entities = {
        entity: Entity(
            name=entity,
            join_keys=[key],
            value_type=ValueType.STRING,
            description=_entity_text(entity),
            owner=OWNER,
            tags=tags,
        )
        for entity, key in keys.items()
    }
    files = {spec.name: _source(spec.name, spec.entity, spec.kind, data_dir, tags) for spec in specs}
    files |= {view.name: _source(view.name, view.entity, "instant", data_dir, tags) for view in states}
    pushes = {
        name: _push_source(name, file, tags)
        for name, file in files.items()
        if states and not name.endswith("_attributes")
    }
    source = {**files, **pushes}
    views = tuple(_view(spec, entities[spec.entity], source[spec.name], tags) for spec in specs)
    definition = definition_of(schema)
    state_tags = {**tags, "kind": "instant", DEFINITION_TAG: definition.hash if definition else ""}
    pushed = tuple(_instant_view(view, entities[view.entity], source[view.name], state_tags) for view in states)
    service = FeatureService(
        name=service_name(feature_version),
        features=list(views),
        description=f"Every feature that a click model of the log {schema.name} reads, version {feature_version}.",
        owner=OWNER,
        tags=tags,
    )
    return Definitions(
        tuple(entities.values()),
        (*files.values(), *pushes.values()),
        views,
        service if views else None,
        pushed,
    )


def _entity_text(entity: str) -> str:
    if entity == LOG_ENTITY:
        return "The log as a whole, by the name of its schema."
    return f"The {entity} of an impression, by its id in the log."


def _push_source(view: str, file: FileSource, tags: dict[str, str]) -> PushSource:
    from feast import PushSource

    return PushSource(
        name=push_source_name(view),
        batch_source=file,
        description=f"Rows of {view} as the feedback service knows them.",
        owner=OWNER,
        tags=tags,
    )


def _instant_view(view: InstantView, entity: Entity, source: Any, tags: dict[str, str]) -> FeatureView:
    from datetime import timedelta

    from feast import FeatureView, Field
    from feast.types import Bytes, Int64, String

    fields = [Field(name=view.key, dtype=String), Field(name=STATE, dtype=Bytes, description="A state of counters.")]
    if view.kind == "log":
        text = "Microseconds of UTC before which every known outcome is in the states."
        fields.append(Field(name=WATERMARK, dtype=Int64, description=text))
    return FeatureView(
        name=view.name,
        entities=[entity],
        ttl=timedelta(0),
        schema=fields,
        source=source,
        online=True,
        description=VIEW_TEXT["instant"].format(entity=view.entity),
        owner=OWNER,
        tags=tags,
    )


def _source(name: str, entity: str, kind: str, data_dir: PurePath, tags: dict[str, str]) -> FileSource:
    from feast import FileSource
    from feast.data_format import ParquetFormat

    return FileSource(
        name=f"{name}_table",
        path=str(data_dir / f"{name}.parquet"),
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_TIMESTAMP,
        description=f"Change points of the {entity} {kind}.",
        owner=OWNER,
        tags={**tags, "kind": kind},
    )


def _view(spec: TableSpec, entity: Entity, source: Any, tags: dict[str, str]) -> FeatureView:
    from datetime import timedelta

    from feast import FeatureView, Field
    from feast.types import String

    return FeatureView(
        name=spec.name,
        entities=[entity],
        # 0: a value is valid until the next one, at any age; the tables have a row when a window becomes empty.
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
        "numbers": Array(Float64),
    }
    return types[kind]
