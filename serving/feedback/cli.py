"""The commands ``feedback run``, ``import``, ``replay`` and ``status``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinktwice.console.options import WORK, State, Work, state_folder

if TYPE_CHECKING:
    from serving.feedback.config import FeedbackConfig

app = typer.Typer(
    help="Accept impressions and clicks, and keep the counters and sequences of the online store up to date.",
    no_args_is_help=True,
)

Log = Annotated[Path, typer.Option(help="Folder of the event log.")]
Store = Annotated[
    Path | None, typer.Option(help="Feature store folder to keep up to date.", show_default="that of the champion")
]
Lateness = Annotated[
    float,
    typer.Option(
        min=0,
        max=86_400,
        help="Seconds by which events may come late and still be counted in their order. The counters wait as long.",
    ),
]
RecordOnly = Annotated[
    bool,
    typer.Option(
        "--record-only",
        help="Join and record events for outcomes; count and push nothing. For a model without statistics.instant.",
    ),
]
DEFAULT_PORT = 8090
READY = "ready"  # first word of the line that `run` prints when events are taken


@app.command()
def run(
    log: Log,
    store: Store = None,
    state: State = None,
    work: Work = WORK,
    lateness: Lateness = 0.0,
    record_only: RecordOnly = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = DEFAULT_PORT,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Anyone who can reach it can send events.")
    ] = "127.0.0.1",
) -> None:
    """Accept events at POST /v1/events until Ctrl-C, and push the changes to the online store.

    Prints one line "ready URL" when events are accepted. Events are answered with 202 once they are on disk. /healthz says whether
    events are accepted and pushed, /metrics has the counts for Prometheus. Without --store the service follows the champion: after a
    promotion the new champion's store gets every row. A champion with another definition of the counters is refused by name.
    """
    from functools import partial

    from serving.feedback.server import serve
    from thinktwice.console.output import say
    from thinktwice.console.stop import on_stop
    from thinktwice.console.terminal import console_here

    champion = partial(_store, None, state, work, record_only)
    on_stop("feedback stopped; every accepted event is in the log")
    serve(
        log,
        _store(store, state, work, record_only),
        _config(lateness, record_only),
        host,
        port,
        lambda url: typer.echo(f"{READY} {url}"),
        champion if store is None else None,
        lambda sentence: say(console_here(stderr=True), sentence),
    )


@app.command("import")
def import_events(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Training logs or prediction logs (folders), parquet files of impressions or clicks, files of JSON lines."
        ),
    ],
    log: Log,
    store: Store = None,
    state: State = None,
    work: Work = WORK,
    lateness: Lateness = 0.0,
    record_only: RecordOnly = False,
    push: Annotated[bool, typer.Option(help="Push what changes to the online store.")] = True,
    until: Annotated[
        str,
        typer.Option(
            help="Time up to which the files are complete, such as 2026-01-31T00:00:00Z: windows that end before are closed.",
            show_default="the time of the last event",
        ),
    ] = "",
) -> None:
    """Append the events of files to the log, in the order of their time, and push what they change.

    A log should begin with the training log: sequences and statistics of whole days are pushed only then. Importing a file again
    changes nothing.
    """
    from serving.feedback.offline import import_files

    done = import_files(
        log,
        _store(store, state, work, record_only),
        _config(lateness, record_only),
        sources,
        push=push,
        until=_instant(until) if until else None,
    )
    typer.echo(f"{done.events:,} events imported, {done.quarantined:,} set aside: {log}")
    _print_counts(done.counts)


@app.command()
def replay(
    log: Log,
    store: Store = None,
    state: State = None,
    work: Work = WORK,
    lateness: Lateness = 0.0,
    record_only: RecordOnly = False,
    check: Annotated[bool, typer.Option("--check", help="Only compare; change nothing.")] = False,
    push: Annotated[bool, typer.Option(help="Push every row to the online store again.")] = True,
) -> None:
    """Rebuild all counters from the log and replace the stored ones; with --check, only compare: the exit status is 1 if they differ.

    Needed after the definition of the counters or the lateness has changed, after an online store was emptied, and after the state beside
    the log was lost.
    """
    from serving.feedback.offline import replay_log

    folder = _store(store, state, work, record_only)
    done = replay_log(log, folder, _config(lateness, record_only), check=check, push=push)
    typer.echo(f"{done.records:,} records played, {done.rows:,} rows, {done.different:,} differ from those before")
    if check and done.different:
        raise typer.Exit(1)


@app.command()
def status(
    log: Log,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Print what happened to the events, and up to which time the counters are complete."""
    import json

    from serving.feedback.offline import log_status

    log_state = log_status(log)
    if json_out:
        typer.echo(json.dumps(log_state.as_json(), indent=2))
        return
    typer.echo(
        f"counters are complete up to {log_state.watermark or 'the beginning'}, {log_state.rows_to_push:,} rows wait for the store"
    )
    if log_state.quarantined:
        typer.echo(f"{log_state.quarantined:,} values that are not events were set aside: {log / 'quarantine.jsonl'}")
    if not log_state.complete:
        typer.echo("the log has records that are not yet counted: start 'thinktwice feedback run' if it is not running")
    _print_counts(log_state.counts)


def _instant(text: str) -> int:
    from thinktwice.errors import DataError
    from thinktwice.schema.times import in_window, instant_of, zone_named

    try:
        instant = instant_of(text, zone_named("UTC"))
    except ValueError as error:
        raise DataError(f"--until {text!r} {error}: pass a time such as 2026-01-31T00:00:00Z") from None
    if not in_window(instant):
        raise DataError(f"--until {text!r} is not between 1970 and 2100")
    return instant


def _print_counts(counts: dict[str, int]) -> None:
    from serving.feedback.counts import TEXT
    from thinktwice.console.output import Column, Record, print_table
    from thinktwice.console.terminal import console_here

    records = [Record((f"{counts[name]:,}", text)) for name, text in TEXT.items() if counts.get(name)]
    if records:
        print_table(console_here(), [Column("number", right=True), Column("what became of them")], records)


def _store(store: Path | None, state: Any, work: Any, record_only: bool) -> Path:
    """Folder of the feature store; to record only, that of the champion's bundle: a model may have no store."""
    if store is not None:
        return store
    from thinktwice.release.champion import require_champion

    champion = require_champion(state_folder(state, work), "--state, --work or --store")
    return champion.bundle_dir if record_only else champion.feature_store_dir


def _config(lateness: float, record_only: bool) -> FeedbackConfig:
    from serving.feedback.config import FeedbackConfig

    return FeedbackConfig(lateness=lateness, record_only=record_only)
