"""Inference of a schema file from a log in any format that is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from thinktwice.data.infer.measure import measure
from thinktwice.data.infer.roles import Roles, decide
from thinktwice.data.infer.write import schema_text
from thinktwice.data.reading import ADDED
from thinktwice.data.sources.own_log import open_log
from thinktwice.errors import DataError
from thinktwice.schema import LabelColumn, LogField, LogSchema, TimeColumn, parse_schema
from thinktwice.schema.columns import check_columns

#: Opens a log before its schema is known: it names no column that a log is likely to have.
UNKNOWN = LogSchema(
    name="unknown",
    time=TimeColumn(format="order"),
    label=LabelColumn(column="\0label"),
    fields=(LogField(name="x", column="\0field"),),
)


class Inferred(NamedTuple):
    """``text`` of the schema file, the schema in it, and the decisions."""

    text: str
    schema: LogSchema
    roles: Roles


def infer_schema(path: str, *, label: str | None = None, name: str | None = None) -> Inferred:
    """Infer a schema from the log of ``path``, which is read once in blocks of bounded memory.

    Args:
        path: one path, or several, a line each.
        label: the label's column; by default the most likely one.
        name: the schema's name; by default from the file's name.

    Raises:
        DataError: the log cannot be read, has no rows, or no column can be the label.
    """
    reading = open_log(path, 0, 0, UNKNOWN)
    measured = measure(reading)
    if not measured.rows:
        raise DataError(f"{reading.where} contains no rows: give the whole file")
    for added in ADDED:
        measured.facts.pop(added, None)
    roles = decide(measured, label)
    text = schema_text(measured, roles, _shown(reading.where), name or _schema_name(path))
    schema = parse_schema(text, where=f"inferred from {reading.where}")
    check_columns(schema, reading.columns, reading.where)
    return Inferred(text, schema, roles)


def _schema_name(path: str) -> str:
    stem = Path(path.split("\n", 1)[0]).name.split(".", 1)[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40].strip("-") or "log"


def _shown(where: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in where)
