"""Batch scoring of a file into a parquet file: fetches features, scores batch by batch, writes atomically.

Parquet is read in place; CSV, TSV and JSON lines are first read into a temporary parquet file, by the reader of logs.

The memory is bounded whatever the number of rows, except for a model that reads counters as of each row's time: the clean log is
then counted once for all rows, and the columns of the log and of the rows that counters are computed from are in memory at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.online import online_features
from feature_repo.retrieve import check_fits, features_at
from feature_repo.store import open_store, read_info
from thinktwice.data.evidence import Evidence
from thinktwice.data.feature_tables import CLEAN_FILE, TableSpec, table_specs
from thinktwice.data.instant.as_of import columns_of, evidence_as_of
from thinktwice.data.instant.definition import Definition, definition_of
from thinktwice.data.point_in_time import with_columns
from thinktwice.data.scoring_rows import as_table, event_times
from thinktwice.data.sources.file_kind import kind_of
from thinktwice.data.sources.own_log import open_files
from thinktwice.data.sources.paths import is_text_log
from thinktwice.errors import DataError, FeatureStoreError, SchemaError, reason
from thinktwice.files import atomic_file
from thinktwice.parquet import open_parquet, parquet_writer
from thinktwice.release.bundle import Bundle, load_bundle
from thinktwice.release.feature_store import DATA
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID, SCHEMA_FILE, load_schema
from thinktwice.schema.values import can_spell, spelled
from thinktwice.scoring import COLUMNS, MAX_REQUEST_ROWS, request_starts, score_table
from thinktwice.validate.side_tables import read_clean

FeaturesFrom = Literal["point-in-time", "online", "given"]
BATCH_BYTES = 64_000_000  # approximate decoded size of the rows in memory
BATCH_ROWS = 100_000
SPOOL = "rows.arrows"  # rows with their features, while the log is counted
OUT_TYPES = {"probability": pa.float64(), "uncertainty": pa.float64(), "num_paths": pa.int64()}

Fetch = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Counted:
    """Rows with their features, and their evidence."""

    rows: pa.Table
    evidence: Evidence


@dataclass(frozen=True)
class ScoredTable:
    """Result of a scoring run: rows, rows with more than one forward pass, and the model version."""

    rows: int
    escalated: int
    model_version: str


def score_file(
    source: Path | str,
    out: Path | str,
    bundle_dir: Path | str,
    *,
    features: FeaturesFrom = "given",
    store_dir: Path | str | None = None,
    request: str | None = None,
    clean_dir: Path | str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoredTable:
    """Score the rows of a file and write them, with ``probability``, ``uncertainty`` and ``num_paths``, to a parquet file.

    Args:
        source: parquet, CSV, TSV or JSON lines: rows with the ids of users and items and the context fields; with ``given`` all features too.
        out: file to write; an existing one is replaced when the new one is complete.
        features: where features of users and items come from: ``point-in-time``, the store's tables as of each row's time;
            ``online``, the online store now; ``given``, the columns of the file.
        store_dir: feature store of the model; not read with ``given``.
        request: column whose runs of equal values are requests, see :func:`thinktwice.score_table`.
        clean_dir: clean log whose outcomes are counted, for a model that reads counters; only with ``point-in-time``. Of each row,
            the outcomes that were known before its time count.
        on_progress: called with the number of scored rows and of all rows.

    Raises:
        DataError: ``source`` is not a readable file of rows, a line of it is broken, it has columns that would be overwritten, or contains an invalid value.
        SchemaError: a column is missing or has an unsupported type.
        BundleError: the bundle is damaged.
        FeatureStoreError: there is no store, it is that of another model, or it does not respond.
    """
    source, out = Path(source), Path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise DataError(f"{out} is the input itself: choose another output file")
    bundle = load_bundle(bundle_dir)
    with ExitStack() as stack:
        file = stack.enter_context(_open(source, stack))
        if conflicts := [name for name in COLUMNS if name in file.schema_arrow.names]:
            raise DataError(f"{source} has a column {conflicts[0]!r}, which the scores would replace: rename it")
        fetch = _fetch(bundle, features, store_dir, stack)
        counted = _counted(file, source, bundle, fetch, features, clean_dir, stack)
        schema = pa.schema([*file.schema_arrow, *(pa.field(name, kind) for name, kind in OUT_TYPES.items())])
        total, done, escalated = file.metadata.num_rows, 0, 0
        temporary = stack.enter_context(atomic_file(out))
        writer = stack.enter_context(parquet_writer(temporary, schema, compression="zstd"))
        for rows in _batches(file, source, bundle, request):
            with _located(source, done):
                if counted is None:
                    table, evidence = _looked_up(rows, bundle, fetch), None
                else:
                    part = slice(done, done + rows.num_rows)
                    table, evidence = counted.rows.slice(done, rows.num_rows), counted.evidence.take(part)
                scores = score_table(bundle, table, request=request, evidence=evidence)
            writer.write_table(with_columns(rows, scores.to_table()).cast(schema))
            done += len(scores)
            escalated += int((scores.num_paths > 1).sum())
            on_progress(done, total)
        if done != total:
            raise DataError(f"{source} has {total:,} rows by its footer and {done:,} were read: write the file again")
    return ScoredTable(done, escalated, bundle.manifest.model_version)


def _open(source: Path, stack: ExitStack) -> pq.ParquetFile:
    try:
        return open_parquet(source)
    except (OSError, pa.ArrowException) as error:
        kind = kind_of(source) if source.is_file() else None
        if kind is not None and is_text_log(source):
            return open_parquet(_as_parquet(source, stack))
        if kind is not None and kind.is_data and kind.fix and not kind.is_parquet:
            raise DataError(
                f"{source} is {kind.words}, and rows to score are read from parquet, CSV and JSON lines: {kind.fix}"
            ) from error
        raise DataError(
            f"{source} cannot be read as parquet ({reason(error)}): use a parquet, CSV or JSON lines file"
        ) from error


def _as_parquet(source: Path, stack: ExitStack) -> Path:
    """A temporary copy of a file of text, whose columns are read as those of a log."""
    reading = open_files(str(source), {})
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thinktwice-score-"))) / "rows.parquet"
    with parquet_writer(path, reading.columns, compression="zstd", compression_level=1) as out:
        for chunk in reading.chunks():
            if chunk.unparsable:
                error = chunk.unparsable[0].error
                raise DataError(f"{source}, {error}; mend it, because every row is scored or none is")
            out.write_table(chunk.table)
    return path


def _batches(file: pq.ParquetFile, source: Path, bundle: Bundle, request: str | None) -> Iterator[pa.Table]:
    """Tables of rows in order. The last request of a batch may continue in the next one, so it is kept for the next table."""
    pending: pa.Table | None = None
    for table in _tables(file, source, bundle):
        if request is None:
            yield table
            continue
        table = table if pending is None else pa.concat_tables([pending, table])
        last = int(request_starts(table, request)[-2]) if table.num_rows else 0
        pending = table.slice(last)
        if last:
            yield table.slice(0, last)
    if pending is not None and pending.num_rows:
        yield pending


def _tables(file: pq.ParquetFile, source: Path, bundle: Bundle) -> Iterator[pa.Table]:
    """Tables of at most :func:`_batch_rows` rows in order."""
    batches = file.iter_batches(batch_size=_batch_rows(bundle))
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{source} cannot be read to its end ({reason(error)}): write the file again") from error
        if batch is None:
            return
        yield pa.Table.from_batches([batch])


def _batch_rows(bundle: Bundle) -> int:
    fields = bundle.schema.model_fields_in_order()
    row_bytes = sum(64 + 16 * f.length + 16 * f.dim for f in fields)
    return max(2 * MAX_REQUEST_ROWS, min(BATCH_ROWS, BATCH_BYTES // row_bytes))


def _looked_up(rows: pa.Table, bundle: Bundle, fetch: Fetch | None) -> pa.Table:
    """Rows with the columns of their model."""
    table = as_table(rows, bundle.schema, bundle.encoder)
    return table if fetch is None else fetch(table)


@contextmanager
def _located(source: Path, done: int) -> Iterator[None]:
    """Let errors of rows name their file and the row that the batch starts with."""
    try:
        yield
    except (DataError, SchemaError) as error:
        location = f" (rows from {done} on)" if done else ""
        raise type(error)(f"{source}{location}: {error}") from error


def _fetch(bundle: Bundle, features: FeaturesFrom, store_dir: Path | str | None, stack: ExitStack) -> Fetch | None:
    """Function that adds features to a table of rows; None if they are in the file."""
    if features == "given":
        return None
    service = bundle.manifest.feature_service
    if not service:
        raise FeatureStoreError(
            f"model {bundle.manifest.model_version} has no features to look up (its log has no users and items): use --features given"
        )
    if store_dir is None:
        raise FeatureStoreError(f"--features {features} reads a feature store, and none is given: name its folder")
    folder = Path(store_dir)
    info, specs = read_info(folder), table_specs(bundle.schema)
    if info.feature_service != service:
        raise FeatureStoreError(
            f"feature store {folder} has the feature service {info.feature_service!r}, model "
            f"{bundle.manifest.model_version} was trained on {service!r}: use the store of that model"
        )
    check_fits(info, specs, bundle.schema, folder)
    if features == "online":
        store = stack.enter_context(open_store(folder))
        return lambda table: with_columns(table, online_features(_keys(table, specs), store, specs, folder))
    if absent := [spec.name for spec in specs if not (folder / DATA / f"{spec.name}.parquet").is_file()]:
        raise FeatureStoreError(
            f"feature store {folder} has no table {absent[0]}: use --features online, or give the store of the pipeline run"
        )

    def fetch(table: pa.Table) -> pa.Table:
        times = _times(table, bundle)
        rows = _keys(table, specs).append_column(EVENT_TIME, times.to_arrow().cast(pa.timestamp("us", "UTC")))
        ids = pa.array(np.char.mod("%016x", np.arange(len(times))).tolist(), pa.string())
        return with_columns(table, features_at(rows.append_column(ROW_ID, ids), folder, info, specs))

    return fetch


def _times(table: pa.Table, bundle: Bundle) -> pl.Series:
    times = event_times(table, bundle.schema)
    if times.null_count():
        row = int(times.is_null().arg_true()[0])
        raise DataError(f"row {row} has no time, and features are read as of a row's time: fill it in")
    return times


def _counted(
    file: pq.ParquetFile,
    source: Path,
    bundle: Bundle,
    fetch: Fetch | None,
    features: FeaturesFrom,
    clean_dir: Path | str | None,
    stack: ExitStack,
) -> Counted | None:
    """All rows of a file and their evidence; None if their counters are in the file, or the model reads none."""
    if not bundle.reads_counters or features == "given":
        return None
    version = bundle.manifest.model_version
    if features == "online":
        raise FeatureStoreError(
            f"model {version} reads counters, which --features online does not fetch, because the states of an online store are those "
            "of now and each row of a file has a time of its own: use point-in-time with --clean, or given"
        )
    if clean_dir is None:
        raise DataError(
            f"model {version} reads counters as of each row's time: give the clean log to count with --clean, or columns with "
            "--features given"
        )
    definition = definition_of(bundle.schema)
    assert definition is not None
    names = [EVENT_TIME, LABEL, *columns_of(definition)]
    path = Path(clean_dir) / CLEAN_FILE
    try:
        log = read_clean(path.parent, load_schema(path.parent / SCHEMA_FILE), names)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be counted ({reason(error)}): give the folder of a clean log") from error

    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thinktwice-evidence-")))
    columns, times = _spooled(file, source, bundle, fetch, definition, scratch / SPOOL)
    evidence = evidence_as_of(log, columns, times, definition, bundle.encoder, scratch)
    return Counted(_mapped(scratch / SPOOL, stack), evidence)


def _spooled(
    file: pq.ParquetFile, source: Path, bundle: Bundle, fetch: Fetch | None, definition: Definition, path: Path
) -> tuple[dict[str, pl.Series], pl.Series]:
    """Write all rows of a file with their features to ``path``; returns the columns that counters are computed from, spelled, and
    the times of the rows."""
    names, done = columns_of(definition), 0
    columns: dict[str, list[pl.Series]] = {name: [pl.Series(dtype=pl.String)] for name in names}
    times = [pl.Series(dtype=pl.Int64)]
    writer: pa.RecordBatchStreamWriter | None = None
    with path.open("wb") as sink, ExitStack() as stack:
        for rows in _tables(file, source, bundle):
            with _located(source, done):
                table = _looked_up(rows, bundle, fetch)
                if absent := [name for name in names if name not in table.column_names]:
                    raise SchemaError(
                        f"the rows have no column {absent[0]!r}, which counters are computed from: add it"
                    )
                times.append(_times(table, bundle))
                for name in names:
                    columns[name].append(spelled(table[name]).cast(pl.String))
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_stream(sink, table.schema))
            writer.write_table(table)
            done += rows.num_rows
    return {name: pl.concat(parts) for name, parts in columns.items()}, pl.concat(times)


def _mapped(path: Path, stack: ExitStack) -> pa.Table:
    """The rows that :func:`_spooled` wrote, read from disk as they are used."""
    if path.stat().st_size == 0:
        return pa.table({})
    return stack.enter_context(pa.ipc.open_stream(stack.enter_context(pa.memory_map(str(path))))).read_all()


def _keys(table: pa.Table, specs: tuple[TableSpec, ...]) -> pa.Table:
    """The ids of users and items as the store spells them."""
    out = {}
    for key in dict.fromkeys(spec.key for spec in specs):
        if key not in table.column_names:
            raise SchemaError(f"the rows have no column {key!r}, whose features are to be fetched: add it")
        if not can_spell(table[key].type):
            raise SchemaError(
                f"column {key!r} has type {table[key].type}, which cannot contain ids: use text or integers"
            )
        out[key] = spelled(table[key]).to_arrow().cast(pa.string())
    return pa.table(out)
