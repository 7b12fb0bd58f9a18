"""What every input of a model is and where it comes from, in one sentence per field."""

from __future__ import annotations

from thinktwice.schema.fields import Cross, LogField, Sequence, Vector
from thinktwice.schema.log import LogSchema

KINDS = {
    "categorical": "category",
    "boolean": "truth value (true or false)",
    "numeric": "number",
    "list": "list of categories",
}
RANGES = {"hour": "0 to 23", "weekday": "0 (Monday) to 6"}
FORMATS = {
    "s": "Unix time in seconds",
    "ms": "Unix time in milliseconds",
    "us": "Unix time in microseconds",
    "datetime": "dates or timestamps",
    "yymmddhh": "yymmddhh",
}


def time_words(schema: LogSchema) -> str:
    """The column, format and zone of the impression's time."""
    time = schema.time
    if time.column is None:
        return "the order of the rows, one second apart"
    return f"column {time.column}, {FORMATS[time.format]}, {zone_words(schema)}"


def zone_words(schema: LogSchema) -> str:
    """The time zone of the schema."""
    return f"zone {schema.time.zone}" if schema.time.zone is not None else "zone UTC (none is set)"


def field_words(schema: LogSchema) -> dict[str, str]:
    """Name -> description, of ids, fields, sequences, vectors and statistics, in the order of the schema."""
    found: dict[str, str] = {}
    for entity in ("user", "item"):
        key = getattr(schema.entities, entity)
        if key is not None:
            use = "" if key.as_field else ", no input of the model"
            found[key.key] = f"id of the {entity}, from column {key.source_column}{use}"
    for field in schema.fields:
        found[field.name] = _field(schema, field)
        if field.weights is not None:
            source = _from(schema, field.entity, field.weights.source_column)
            found[field.weights.name] = f"weights of the elements of {field.name}, {_of(field.entity)}, {source}"
    found |= {cross.name: _cross(cross) for cross in schema.crosses}
    found |= {sequence.name: _sequence(sequence) for sequence in schema.sequences}
    found |= {vector.name: _vector(schema, vector) for vector in schema.vectors}
    for entity in ("user", "item"):
        found |= {name: _statistic(name, entity) for name in schema.statistic_names(entity)}  # type: ignore[arg-type]
    return found


def cross_words(schema: LogSchema) -> tuple[str, ...]:
    """One sentence per cross, which begins with its name."""
    return tuple(f"{cross.name}: {_cross(cross)}" for cross in schema.crosses)


def _cross(cross: Cross) -> str:
    return f"pair of {cross.of[0]} and {cross.of[1]}, computed from them; a request sends these, not this field"


def _field(schema: LogSchema, field: LogField) -> str:
    if field.derived is not None:
        return (
            f"category {RANGES[field.derived]}: the {field.derived} of the impression's time ({time_words(schema)}); "
            "a request sends the time, not this field"
        )
    unit = f" in {field.unit}" if field.unit else ""
    return f"{KINDS[field.kind]}{unit}, {_of(field.entity)}, {_from(schema, field.entity, field.source_column)}"


def _sequence(sequence: Sequence) -> str:
    if sequence.column is not None:
        order = (sequence.order or "newest_first").replace("_", " ")
        return f"the {sequence.length} newest values of {sequence.of}, {_of(sequence.entity)}, from column {sequence.column} ({order})"
    what = "clicked" if sequence.clicks_only else "seen"
    return f"the {sequence.length} latest values of {sequence.of} that the user has {what}, computed from earlier impressions"


def _vector(schema: LogSchema, vector: Vector) -> str:
    return f"vector of {vector.dim} numbers, {_of(vector.entity)}, {_from(schema, vector.entity, vector.source_column)}"


def _statistic(name: str, entity: str) -> str:
    _, measure, window = name.rsplit("_", 2)
    what = {"views": "number of impressions", "rate": "click rate"}[measure]
    since = "since the beginning of the log" if window == "all" else f"of the last {window.removesuffix('d')} days"
    return f"{what} of the {entity} {since}, before the day of the impression (days of UTC), computed from the log"


def _of(entity: str) -> str:
    return "context of the impression" if entity == "context" else f"attribute of the {entity}"


def _from(schema: LogSchema, entity: str, column: str) -> str:
    table = f" of the table of {entity}s" if entity in schema.side_tables else ""
    return f"from column {column}{table}"
