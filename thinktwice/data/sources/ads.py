"""Two public ad logs in the layout they were published in: Criteo Display Advertising and Avazu, plain or gzipped."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from thinktwice.data.reading import Chunk, Reading, need_path
from thinktwice.data.sources.text import BLOCK_BYTES, file_opener, first_line, read_table
from thinktwice.errors import DataError
from thinktwice.files import sha256_file
from thinktwice.schema import LogSchema

CRITEO = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]


def _strings(columns: list[str]) -> pa.Schema:
    return pa.schema([(c, pa.string()) for c in columns])


def open_criteo(path: Path | str | None, limit: int, seed: int, schema: LogSchema) -> Reading:
    """``train.txt``: no header, tab separated, label, 13 counts, 26 hashed categories."""
    path = need_path(path, "criteo", "the Criteo train.txt or train.txt.gz")
    open_stream = file_opener(path)

    def chunks() -> Iterator[Chunk]:
        return read_table(open_stream, str(path), CRITEO, "\t", header=False)

    return Reading(str(path), _strings(CRITEO), {path.name: sha256_file(path)}, chunks, _expected(path))


def open_avazu(path: Path | str | None, limit: int, seed: int, schema: LogSchema) -> Reading:
    """``train.csv``: comma separated with a header line (id, click, hour as YYMMDDHH, C1, banner_pos, ...)."""
    path = need_path(path, "avazu", "the Avazu train.csv or train.gz")
    open_stream = file_opener(path)
    columns = header_of(first_line(open_stream, str(path)), path)

    def chunks() -> Iterator[Chunk]:
        return read_table(open_stream, str(path), columns, ",", header=True, quotes=True)

    return Reading(str(path), _strings(columns), {path.name: sha256_file(path)}, chunks, _expected(path))


def header_of(line: str, path: Path) -> list[str]:
    """Column names of a CSV header line.

    Raises:
        DataError: a name is missing or repeated.
    """
    columns = [c.strip() for c in next(csv.reader([line]), [])]
    repeated = sorted({c for c in columns if columns.count(c) > 1})
    if repeated or not columns or "" in columns:
        problem = f"column {repeated[0]!r} is repeated" if repeated and repeated[0] else "a column has no name"
        raise DataError(f"the first line of {path} is not a header ({problem}): give the file with its header line")
    return columns


def _expected(path: Path) -> int:
    return max(1, path.stat().st_size // BLOCK_BYTES)
