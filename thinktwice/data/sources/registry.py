"""Registry of sources by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources

from thinktwice.data.reading import Source
from thinktwice.data.simulator.source import open_sim
from thinktwice.data.sources.ads import open_avazu, open_criteo
from thinktwice.data.sources.kuairand import open_kuairand
from thinktwice.data.sources.movielens import opener
from thinktwice.data.sources.own_log import open_log
from thinktwice.data.sources.parquet import open_parquet_log
from thinktwice.data.sources.paths import joined
from thinktwice.errors import DataError, guessed
from thinktwice.schema import LogSchema, parse_schema

SOURCES = {
    s.name: s
    for s in (
        Source(
            name="ml-1m",
            about="MovieLens 1M: 1,000,209 ratings of 3,883 films by 6,040 people; a rating of 4 or 5 is a click",
            path="optional",
            path_help="official ml-1m.zip or its unpacked folder; without it the data set is fetched",
            open=opener("ml-1m"),
        ),
        Source(
            name="ml-100k",
            about="MovieLens 100K: 100,000 ratings of 1,682 films by 943 people; a rating of 4 or 5 is a click",
            path="optional",
            path_help="official ml-100k.zip or its unpacked folder; without it the data set is fetched",
            open=opener("ml-100k"),
        ),
        Source(
            name="criteo",
            about="Criteo Display Advertising: 13 counts and 26 hashed categories, in time order",
            path="required",
            path_help="train.txt or train.txt.gz, tab separated, no header",
            open=open_criteo,
        ),
        Source(
            name="avazu",
            about="Avazu mobile ads: 21 categories and the hour",
            path="required",
            path_help="train.csv or train.gz, with its header line",
            open=open_avazu,
        ),
        Source(
            name="kuairand",
            about="KuaiRand short videos (Pure, 1K): impressions with clicks, user and video features",
            path="required",
            path_help="folder with log_standard*.csv, user_features*.csv, video_features_basic*.csv",
            open=open_kuairand,
        ),
        Source(
            name="log",
            about="your own log, described by your schema file: parquet, CSV, TSV or JSON lines",
            path="required",
            path_help="a file, a folder of files or a pattern such as 'logs/*.csv', and --schema; --path may repeat",
            open=open_log,
            has_schema=False,
            several=True,
        ),
        Source(
            name="parquet",
            about="your own log in parquet files",
            path="required",
            path_help="a parquet file or a folder of them, and --schema; or the folder of `data simulate` or `data ingest`",
            open=open_parquet_log,
            has_schema=False,
        ),
        Source(
            name="sim",
            about="simulated ad log with the true click probability of every row",
            path="none",
            path_help="none: --limit is the number of rows, --seed the draw",
            open=open_sim,
            seeded=True,
        ),
    )
}


def source_named(name: str) -> Source:
    """The source called ``name``.

    Raises:
        DataError: it does not exist; the message lists the sources.
    """
    if name not in SOURCES:
        close = [repr(known) for known in difflib.get_close_matches(name, SOURCES, n=1)]
        known = f"known are {', '.join(SOURCES)}; see `thinktwice data list`; your own log is source 'log'"
        raise DataError(f"unknown source {name!r}: {guessed(close, known)}")
    return SOURCES[name]


def one_path(source: str, paths: Sequence[str]) -> str:
    """The values of ``--path`` as the one text that a source takes.

    Raises:
        DataError: several paths were given to a source that reads one.
    """
    if len(paths) > 1 and not source_named(source).several:
        raise DataError(f"source {source!r} reads one path, but {len(paths)} were given: give one, or use --source log")
    return joined(paths)


def builtin_schema(name: str) -> LogSchema:
    """The schema that ships with source ``name``."""
    return parse_schema(builtin_schema_text(name), where=f"{name}.yaml (built in)")


def builtin_schema_text(name: str) -> str:
    """Text of the schema file that ships with source ``name``, comments included.

    Raises:
        DataError: the source is unknown, or has no built-in schema.
    """
    if not source_named(name).has_schema:
        raise DataError(f"source {name!r} has no schema of its own: write one for your log and pass it with --schema")
    return resources.files("thinktwice.data.schemas").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
