"""Inference of a schema file from a log in any format that is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from thinktwice.data.infer.decide import decide
from thinktwice.data.infer.labels import clicked_of
from thinktwice.data.infer.roles import Roles
from thinktwice.data.infer.side_tables import groups_of, log_and_tables, table_role
from thinktwice.data.infer.write import schema_text
from thinktwice.data.sources.paths import SEPARATOR
from thinktwice.errors import DataError
from thinktwice.schema import LogSchema, parse_schema
from thinktwice.schema.columns import check_columns, check_named, table_columns


class Inferred(NamedTuple):
    """``text`` of the schema file, the schema in it, the decisions, and the paths of the log without its side tables."""

    text: str
    schema: LogSchema
    roles: Roles
    log_paths: tuple[str, ...]


def infer_schema(path: str, *, label: str | None = None, name: str | None = None, base: Path | None = None) -> Inferred:
    """Infer a schema from the log of ``path``, which is read once in blocks of bounded memory.

    Files with the same columns belong together. Of files with different columns one is the log, and the others are its side tables.

    Args:
        path: one path, or several, a line each.
        base: folder of the schema file, to which the paths of side tables are relative; by default the current one.
        label: the label's column; by default the most likely one.
        name: the schema's name; by default from the file's name.

    Raises:
        DataError: the log cannot be read, has no rows, or no column can be the label.
    """
    group, measured, others = log_and_tables(groups_of(path), label)
    reading = group.reading
    roles = decide(measured, label)
    clicked = clicked_of(measured, roles.label)
    for other, facts in others:
        role = table_role(other, facts, measured, roles, clicked, base or Path())
        if any(role.side == known.side for known in roles.tables):
            raise DataError(
                f"{other.reading.where} and another file both have the attributes of the {role.side}s: join them into one file"
            )
        roles.tables.append(role)
    text = schema_text(measured, roles, _shown(reading.where), name or _schema_name(group.path))
    schema = parse_schema(text, where=f"inferred from {reading.where}")
    check_columns(schema, reading.columns, reading.where)
    for role, (other, _) in zip(roles.tables, others, strict=True):
        if role.side in schema.side_tables:
            check_named(table_columns(schema, role.side), schema.name, other.reading.columns, other.reading.where)
    return Inferred(text, schema, roles, tuple((path if not others else group.path).split(SEPARATOR)))


def _schema_name(path: str) -> str:
    stem = Path(path.split("\n", 1)[0]).name.split(".", 1)[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40].strip("-") or "log"


def _shown(where: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in where)
