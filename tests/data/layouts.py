"""Generated logs in the layout of a schema file: every column that the schema names, drawn with the entity and the kind it has there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.schema import LogSchema

START_S = 1_650_000_000


def generated(schema: LogSchema, rows: int, seed: int = 0, users: int = 400, items: int = 250) -> pl.DataFrame:
    """A log of ``rows`` rows over ten days in the layout of ``schema``."""
    draw = np.random.default_rng(seed)
    ids = {"user": draw.zipf(1.3, rows) % users, "item": draw.zipf(1.2, rows) % items}
    sizes = {"user": users, "item": items}
    columns: dict[str, object] = {}
    for entity, key in (("user", schema.entities.user), ("item", schema.entities.item)):
        if key is not None:
            columns[key.source_column] = 1000 + ids[entity] * 7
    for number, field in enumerate(schema.fields):
        if field.derived is not None:
            continue
        size = sizes.get(field.entity, rows)
        if field.kind == "numeric":
            values: np.ndarray = draw.negative_binomial(1, 0.02 + 0.02 * (number % 7), size)
        elif field.name.startswith("is_"):
            values = draw.integers(0, 2, size)
        elif field.name.endswith(("_id", "tab")):  # codes without order
            values = draw.integers(0, 15 if field.name == "tab" else 90, size)
        elif number % 3 == 0:
            values = draw.choice([f"{field.name}{n}" for n in range(3 + number % 5)], size)
        else:
            values = np.array([f"{h:08x}" for h in draw.zipf(1.5, size) % 500 * 2654435761 % 2**32])
        column = values[ids[field.entity]] if field.entity in ids else values
        columns[field.source_column] = column
    logit = draw.normal(size=rows) + 0.5 * (ids["item"] % 3 - 1)
    columns[schema.label.column] = (logit > 1).astype(np.int64)
    if schema.time.column is not None:
        unit = {"s": 1, "ms": 1000, "us": 10**6}[schema.time.format]
        columns[schema.time.column] = (START_S + np.sort(draw.integers(0, 10 * 86_400, rows))) * unit
    return pl.DataFrame(columns)


def differences(schema: LogSchema, inferred: LogSchema) -> list[str]:
    """What an inferred schema says differently about keys, time, label, kinds and entities."""
    out = []
    for name, ours, theirs in (
        ("time", inferred.time.model_dump(), schema.time.model_dump()),
        ("label", inferred.label.model_dump(), schema.label.model_dump()),
        *(
            (
                entity,
                *(
                    getattr(s.entities, entity) and getattr(s.entities, entity).source_column
                    for s in (inferred, schema)
                ),
            )
            for entity in ("user", "item")
        ),
    ):
        if ours != theirs:
            out.append(f"{name}: {ours} instead of {theirs}")
    ours, theirs = (
        {f.source_column if f.derived is None else f.name: (f.kind, f.entity, f.derived) for f in s.fields}
        for s in (inferred, schema)
    )
    for column in sorted({*ours, *theirs}):
        if ours.get(column) != theirs.get(column):
            out.append(f"{column}: {ours.get(column)} instead of {theirs.get(column)}")
    return out


def write(log: pl.DataFrame, folder: Path, ending: str) -> Path:
    path = folder / f"log.{ending}"
    {"csv": log.write_csv, "parquet": log.write_parquet, "jsonl": log.write_ndjson}[ending](path)  # type: ignore[operator]
    return path
