"""Reading of parquet files in batches; errors name a missing, empty or damaged file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from thinktwice.data.reading import readable
from thinktwice.data.sources.file_kind import kind_of
from thinktwice.errors import DataError
from thinktwice.parquet import open_parquet
from thinktwice.storage.object_path import AnyPath

BATCH_ROWS = 1 << 17
BATCH_BYTES = 256 << 20  # of a batch, roughly: a file with thousands of columns is read in fewer rows at a time


def footer(file: AnyPath) -> tuple[int, pa.Schema]:
    """Number of rows and arrow schema of a parquet file.

    Raises:
        DataError: it is empty, damaged, or not parquet (then the message says how to convert it).
    """
    with readable(file):
        kind = kind_of(file)
    if kind.words == "empty":
        raise DataError(f"{file} is empty: {kind.fix}")
    if not kind.is_parquet and (kind.is_data or kind.fix):
        as_it_is = "; or read it as it is with --source log" if kind.is_text else ""
        raise DataError(f"{file} is {kind.words}, and a log is read from parquet: {kind.fix}{as_it_is}")
    try:
        with open_parquet(file) as opened:
            return int(opened.metadata.num_rows), opened.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} is not an intact parquet file, perhaps truncated ({short(error)}): copy it again"
        ) from error


def batches(file: AnyPath, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file, at most :data:`BATCH_ROWS` at a time.

    With ``columns`` only these are read; a column ``a.b`` may come along with ``a``.
    """
    with open_parquet(file) as opened:
        width = 16 * len(opened.schema_arrow.names if columns is None else columns)
        coming = opened.iter_batches(
            batch_size=max(1024, min(BATCH_ROWS, BATCH_BYTES // max(1, width))),
            columns=None if columns is None else list(columns),
        )
        while True:
            try:
                batch = next(coming)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file} is damaged, perhaps truncated ({short(error)}): copy it again") from error
            yield batch


def short(error: Exception, limit: int = 160) -> str:
    """First line of a library's message, cut between two words."""
    line = next(iter(str(error).strip().splitlines()), "").strip().rstrip(".:")
    if len(line) <= limit:
        return line or type(error).__name__
    return line[: line.rfind(" ", 0, limit) if " " in line[:limit] else limit].rstrip(" ,;:(") + " …"
