"""Joined exposures as an ordinary log, from which the next model is trained."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from thinktwice.errors import DataError
from thinktwice.files import atomic_file
from thinktwice.frozen import Frozen
from thinktwice.parquet import num_rows, read_schema
from thinktwice.query import engine, literal, one_row, quoted, source, written
from thinktwice.records.exposure import ASSIGNED, ENROLLED, EXPERIMENT
from thinktwice.records.served import ARM, AT, BUNDLE, ITEM, LABEL, REQUEST, USER, VERSION
from thinktwice.schema import LogSchema
from thinktwice.schema.fields import LabelColumn, LogField, Sequence, SideTables, TimeColumn, Vector

LOG = "log.parquet"
KEPT = (REQUEST, ARM, ASSIGNED, EXPERIMENT, ENROLLED, VERSION, BUNDLE)  # beside the columns of the schema


class LogCounts(Frozen):
    """``rows + running + without_ids`` are all outcomes.

    Attributes:
        rows: written.
        running: left out: enrolled in an experiment that runs, whose arms would otherwise train each other's models.
        without_ids: left out: raw rows, and rows whose user was not logged.
    """

    rows: int
    running: int
    without_ids: int

    def __add__(self, other: LogCounts) -> LogCounts:
        """Counts of different outcomes."""
        return LogCounts(
            rows=self.rows + other.rows,
            running=self.running + other.running,
            without_ids=self.without_ids + other.without_ids,
        )


def schema_of_outcomes(schema: LogSchema) -> LogSchema:
    """The schema of :func:`write_outcome_log`: that of the model's log, but for how time and label are written, and without the
    columns that serving does not know."""
    time = TimeColumn(column=schema.time.column or AT, format="datetime", zone=schema.time.zone)
    entities = schema.entities
    plain = entities.model_copy(
        update={
            side: key.model_copy(update={"title": None})
            for side in ("user", "item")
            if (key := getattr(entities, side)) is not None
        }
    )
    label = LabelColumn(column=schema.label.column)
    # Outcomes have the attributes as they were served, so no side table is needed.
    served: dict[str, tuple[LogField, ...] | tuple[Vector, ...] | tuple[Sequence, ...]] = {
        "fields": tuple(_served_field(f) if f.entity in schema.side_tables else f for f in schema.fields),
        "vectors": tuple(
            v.model_copy(update={"column": None}) if v.entity in schema.side_tables else v for v in schema.vectors
        ),
        "sequences": tuple(_served_sequence(s, schema) for s in schema.sequences),
    }
    changes = {"time": time, "label": label, "entities": plain, "propensity": None, "truth": None, "weight": None}
    return schema.model_copy(update=changes | served | {"tables": SideTables()})


def _served_field(field: LogField) -> LogField:
    """A field of a side table as it was served, under its own name."""
    weights = None if field.weights is None else field.weights.model_copy(update={"column": None})
    return field.model_copy(update={"column": None, "weights": weights})


def _served_sequence(sequence: Sequence, schema: LogSchema) -> Sequence:
    """A precomputed sequence as it was served: newest first, and under its own name if a side table has it."""
    if sequence.column is None:
        return sequence
    column = sequence.name if sequence.entity in schema.side_tables else sequence.column
    return sequence.model_copy(update={"column": column, "order": None})


def write_outcome_log(
    outcomes: Path,
    schema: LogSchema,
    target: Path,
    *,
    ended: Collection[str] = (),
    include_running: bool = False,
    memory: str = "2GB",
    like: Path | None = None,
) -> LogCounts:
    """Write outcomes as a log with the columns of a schema, features as they were served, and the arms.

    Args:
        outcomes: rows of the outcome join.
        schema: of the model that served them.
        ended: experiments that have ended; all others run.
        include_running: keep the rows of experiments that run.
        like: a table without rows that has all columns; those that the outcomes lack are null.

    Raises:
        DataError: the rows lack a field of the schema.
        ResourceError: memory and disk are too small.
    """
    columns = _columns(schema)
    present = read_schema(like or outcomes).names
    if missing := sorted({name for name in columns.values() if name not in present}):
        raise DataError(
            f"the outcomes have no column {missing[0]!r}, which the schema {schema.name} needs: another model served them, "
            "pass its schema with --schema"
        )
    selected = ", ".join(f"{quoted(name)} AS {quoted(column)}" for column, name in columns.items())
    kept = ", ".join(quoted(name) for name in KEPT if name not in columns)
    without = [c for c, side in ((USER, "user"), (ITEM, "item")) if schema.key_of(side)]  # type: ignore[arg-type]
    no_id = " OR ".join(f"{name} IS NULL" for name in without) or "false"
    names = ", ".join(map(literal, sorted(ended))) or "''"
    running = "false" if include_running else f"coalesce({ENROLLED} AND {EXPERIMENT} NOT IN ({names}), false)"
    rows = source(*([outcomes, like] if like else [outcomes]), options=", union_by_name = true")
    with engine(target.parent, memory, ordered=False) as db:
        with atomic_file(target) as temporary:
            db.execute(
                f"COPY (SELECT {selected}, {kept} FROM {rows} WHERE NOT ({no_id}) AND NOT {running}) "  # noqa: S608
                f"TO {written(temporary)} (FORMAT parquet, COMPRESSION zstd)"
            )
        counted = f"SELECT count(*) FILTER ({no_id}), count(*) FILTER (NOT ({no_id}) AND {running}) FROM {rows}"  # noqa: S608
        without_ids, left_out = one_row(db, counted)
    return LogCounts(rows=num_rows(target), running=left_out, without_ids=without_ids)


def _columns(schema: LogSchema) -> dict[str, str]:
    """Column of the outcomes for each column of the log."""
    outcome_schema = schema_of_outcomes(schema)
    columns = {outcome_schema.time.column or AT: AT, schema.label.column: LABEL}
    for key, name in ((schema.entities.user, USER), (schema.entities.item, ITEM)):
        if key is not None:
            columns[key.source_column] = name
    named = [(f.source_column, f.name) for f in outcome_schema.fields if f.derived is None]
    named += [(f.weights.source_column, f.weights.name) for f in outcome_schema.fields if f.weights is not None]
    named += [(s.column, s.name) for s in outcome_schema.sequences if s.column is not None]
    for column, name in (*named, *((v.source_column, v.name) for v in outcome_schema.vectors)):
        columns.setdefault(column, name)
    return columns
