"""Side tables (users, items) of a log: one row per key, and every line that did not become a row."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from thinktwice.data.reading import SIDE_LINES, SideLosses
from thinktwice.data.sources.text import Opener, read_table
from thinktwice.errors import DataError

_FILE, _LINE = "!file", "!line"  # cannot clash with columns of a file: the caller names the columns


@dataclass(frozen=True)
class SideFile:
    """One file of a side table. ``name`` is its name for display, ``where`` its location in messages."""

    name: str
    where: str
    open_stream: Opener
    columns: tuple[str, ...]  # in file order
    delimiter: str
    header: bool
    encoding: str = "utf-8"
    quotes: bool = False


def read_side_table(files: list[SideFile], key: str) -> tuple[pl.DataFrame, SideLosses]:
    """All files as one frame of strings with unique, present keys, and the lines that are not in it.

    The first line of a key counts. Broken lines, lines without a key and later lines of a key are returned as losses.

    Raises:
        DataError: no line of the files became a row.
    """
    frames: list[pl.DataFrame] = []
    lost: list[pl.DataFrame] = []
    unparsable = {file.name: 0 for file in files}
    for file in files:
        for chunk in read_table(
            file.open_stream,
            file.where,
            list(file.columns),
            file.delimiter,
            header=file.header,
            encoding=file.encoding,
            quotes=file.quotes,
        ):
            lines = pl.Series(chunk.ordinals, dtype=pl.Int64) + 1 + int(file.header)
            frame = pl.DataFrame(chunk.table).with_columns(pl.lit(file.name).alias(_FILE), lines.alias(_LINE))
            nameless = frame.filter(pl.col(key).is_null())
            frames.append(frame.filter(pl.col(key).is_not_null()))
            lost.append(_lines(nameless, file, pl.lit(f"it has no {key}")))
            broken = [(file.name, u.ordinal + 1 + int(file.header), u.raw, u.error) for u in chunk.unparsable]
            lost.append(pl.DataFrame(broken, schema=lost[-1].schema, orient="row"))
            unparsable[file.name] += nameless.height + len(broken)
    table = pl.concat(frames, how="diagonal") if frames else pl.DataFrame()
    if not table.height:
        raise DataError(
            f"{files[0].where} contains no line with {len(files[0].columns)} cells: it is empty or not the file it is named after, download the data again"
        )
    repeated_keys = table.filter(~pl.col(key).is_first_distinct())
    for file in files:
        why = pl.format(f"an earlier line has {key} {{}}, and that one counts", pl.col(key))
        lost.append(_lines(repeated_keys.filter(pl.col(_FILE) == file.name), file, why))
    duplicates = {file.name: repeated_keys.filter(pl.col(_FILE) == file.name).height for file in files}
    lost_lines = pl.concat(lost).sort("file", "line", maintain_order=True).to_arrow().cast(SIDE_LINES)
    unique = table.filter(pl.col(key).is_first_distinct()).drop(_FILE, _LINE)
    return unique, SideLosses(lost_lines, unparsable, duplicates)


def joined_losses(*tables: SideLosses) -> SideLosses:
    """The losses of several side tables together."""
    return SideLosses(
        pa.concat_tables([t.lines for t in tables]),
        {name: count for t in tables for name, count in t.unparsable.items()},
        {name: count for t in tables for name, count in t.duplicates.items()},
    )


def _lines(frame: pl.DataFrame, file: SideFile, error: pl.Expr) -> pl.DataFrame:
    """Split lines as in the file; a cell that contains the delimiter is quoted again."""
    cells = []
    for name in file.columns:
        cell = pl.col(name).fill_null("")
        if file.quotes:
            quoted = pl.format('"{}"', cell.str.replace_all('"', '""', literal=True))
            cell = pl.when(cell.str.contains_any([file.delimiter, '"'])).then(quoted).otherwise(cell)
        cells.append(cell)
    raw = pl.concat_str(cells, separator=file.delimiter)
    return frame.select(
        pl.col(_FILE).alias("file"), pl.col(_LINE).alias("line"), raw.alias("raw"), error.cast(pl.String).alias("error")
    )
