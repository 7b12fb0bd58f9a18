"""Reads parquet files in batches; a missing, empty or damaged one is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thinktwice.data.sources.base import readable
from thinktwice.errors import DataError

BATCH_ROWS = 1 << 17


def footer(file: Path) -> tuple[int, pa.Schema]:
    """Number of rows and arrow schema of a parquet file; dictionary columns count as columns of their values."""
    with readable(file), file.open("rb") as handle:
        if not handle.read(1):
            raise DataError(f"{file} is empty: give the whole file")
    try:
        with pq.ParquetFile(file) as opened:
            columns = [
                f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in opened.schema_arrow
            ]
            return opened.metadata.num_rows, pa.schema(columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} is no intact parquet file, perhaps truncated ({short(error)}): copy it again"
        ) from error


def batches(file: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file, about :data:`BATCH_ROWS` at a time."""
    with pq.ParquetFile(file) as opened:
        coming = opened.iter_batches(batch_size=BATCH_ROWS)
        while True:
            try:
                batch = next(coming)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file} is damaged, perhaps truncated ({short(error)}): copy it again") from error
            yield batch


def short(error: Exception) -> str:
    """First line of what an error of the parquet reader says."""
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
