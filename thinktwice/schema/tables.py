"""Where the side tables of a schema are: relative to the schema file, or in a raw log folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from thinktwice.schema.fields import TABLE_OF, SideTables
from thinktwice.schema.log import LogSchema
from thinktwice.storage.location import as_text, is_remote

Side = Literal["user", "item"]


def raw_name(side: Side) -> str:
    """Name of the file of a side table in a raw log folder."""
    return f"{TABLE_OF[side]}.parquet"


def located(schema: LogSchema, file: Path | str) -> LogSchema:
    """The schema with the paths of its side tables, which are relative to the folder of the schema ``file``, resolved."""
    return _with_paths(
        schema, {side: _located(table.path, as_text(file)) for side, table in schema.side_tables.items()}
    )


def table_paths(schema: LogSchema) -> tuple[str, ...]:
    """The paths of the side tables; :func:`located` resolves them."""
    return tuple(table.path for table in schema.side_tables.values())


def stored_schema(schema: LogSchema) -> LogSchema:
    """The schema beside a raw log folder, whose side tables lie in it."""
    return _with_paths(schema, {side: raw_name(side) for side in schema.side_tables})


def _with_paths(schema: LogSchema, paths: dict[Side, str]) -> LogSchema:
    tables = {
        TABLE_OF[side]: schema.side_tables[side].model_copy(update={"path": path}) for side, path in paths.items()
    }
    return schema.model_copy(update={"tables": SideTables(**tables)}) if tables else schema


def _located(path: str, file: str) -> str:
    if is_remote(path):
        return path
    return f"{file.rpartition('/')[0]}/{path}" if is_remote(file) else str(Path(file).parent / path)
