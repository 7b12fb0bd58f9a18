"""Which of several files is the log, and which are its side tables; and the roles of the columns of side tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.data.infer.decide import key_of_log, looks_like_log, place_fields
from thinktwice.data.infer.measure import Measured, measure
from thinktwice.data.infer.roles import Roles, Side, TableRole
from thinktwice.data.infer.times import time_format
from thinktwice.data.reading import ADDED, Reading
from thinktwice.data.sources.own_log import open_files
from thinktwice.data.sources.paths import SEPARATOR, joined
from thinktwice.errors import DataError
from thinktwice.storage.location import is_remote

ENOUGH = 0.5  # share of the ids of the log that a side table has


class Group(NamedTuple):
    """Files with the same columns."""

    path: str  # one path, or several, a line each
    reading: Reading


def groups_of(path: str) -> list[Group]:
    """The files of one or several paths (a line each), those with the same columns together, in the order given."""
    by_columns: dict[tuple[str, ...], list[str]] = {}
    given = list(filter(None, path.split(SEPARATOR)))
    if len(given) > 1:
        for part in given:
            by_columns.setdefault(tuple(sorted(open_files(part, {}).columns.names)), []).append(part)
    paths = [path] if len(by_columns) < 2 else [joined(parts) for parts in by_columns.values()]
    return [Group(each, open_files(each, {})) for each in paths]


def log_and_tables(groups: list[Group], label: str | None) -> tuple[Group, Measured, list[tuple[Group, Measured]]]:
    """The log, and the other groups, each with its measurement.

    The log is the group with the ids of both users and items, then the one with a label, then the longest.
    """
    measured = [(group, measure(group.reading)) for group in groups]
    for group, of in measured:
        if not of.rows:
            raise DataError(f"{group.reading.where} contains no rows: give the whole file")
        for added in ADDED:
            of.facts.pop(added, None)
    log = max(measured, key=lambda pair: (*looks_like_log(pair[1], label), pair[1].rows))
    return *log, [pair for pair in measured if pair is not log]


def table_role(group: Group, of: Measured, log: Measured, roles: Roles, clicked: pl.Series, base: Path) -> TableRole:
    """What a side table is.

    Raises:
        DataError: it has no column with the ids of the log, or several rows for an id without a time.
    """
    where = group.reading.where
    side, key, share = _key(of, log, roles, where)
    ids = of.text(key)
    at, form = None, None
    if not ids.drop_nulls().is_unique().all():
        at, form = _time(of, key)
        if at is None:
            again = ids.filter(~ids.is_first_distinct()).drop_nulls()[0]
            raise DataError(
                f"{where} has several rows for {key} {again!r}, and no column with the time from which each is valid: keep one row per "
                "id, or add that time"
            )
    column = roles.user if side == "user" else roles.item
    assert column is not None
    sample = _at_impressions(of, ids, log.text(column))
    columns = [name for name in of.facts if name not in (key, at)]
    shown = Measured({name: of.facts[name] for name in columns}, sample, of.rows, of.unparsable)
    items = None if roles.item is None else log.text(roles.item)
    placed = place_fields(shown, side, sample_key=log.text(column), clicked=clicked, items=items)
    roles.questions += placed.questions
    return TableRole(
        side,
        _relative(group.path, base),
        key,
        at,
        form,
        share,
        of.rows,
        tuple(placed.fields),
        placed.title,
        placed.left_out,
    )


def _key(of: Measured, log: Measured, roles: Roles, where: str) -> tuple[Side, str, float]:
    """The entity that a table describes, its column of ids, and the share of the log's rows whose id it has."""
    best: tuple[float, Side, str] | None = None
    sides: tuple[tuple[Side, str | None], ...] = (("user", roles.user), ("item", roles.item))
    for side, column in sides:
        if column is None:
            continue
        wanted = log.text(column).drop_nulls()
        for name in key_of_log(of, side, column):
            share = float(wanted.is_in(of.text(name).drop_nulls().unique().implode()).mean() or 0)  # type: ignore[arg-type]
            exact = share + (0.01 if name == column else 0)
            if share >= ENOUGH and (best is None or exact > best[0]):
                best = (exact, side, name)
    if best is None:
        ids = " and ".join(c for c in (roles.user, roles.item) if c is not None) or "none"
        raise DataError(
            f"{where} has other columns than the log, and none of them has the ids of the log ({ids}): give files of one log, "
            "with the users and items it has"
        )
    return best[1], best[2], min(1.0, best[0])


def _time(of: Measured, key: str) -> tuple[str | None, str | None]:
    """A column of times that tells the rows of an id apart."""
    for name, facts in of.facts.items():
        form = None if name == key else time_format(of, facts)
        if form is not None:
            pairs = pl.DataFrame({"key": of.text(key), "at": of.text(name)}).drop_nulls()
            if pairs.is_unique().all():
                return name, form
    return None, None


def _at_impressions(of: Measured, ids: pl.Series, wanted: pl.Series) -> pa.Table:
    """The rows of the table for the rows of the log's sample, null where it has none; of several rows of an id the last."""
    places = pl.DataFrame({"key": ids, "place": np.arange(len(ids))}).drop_nulls("key").unique("key", keep="last")
    found = pl.DataFrame({"key": wanted}).join(places, on="key", how="left", maintain_order="left")["place"]
    return of.sample.take(found.to_arrow().cast(pa.int64()))


def _relative(path: str, base: Path) -> str:
    if SEPARATOR in path:
        raise DataError(
            f"{path.replace(SEPARATOR, ' and ')} have the same columns and are a side table: put them into one folder, and give that"
        )
    return path if is_remote(path) else os.path.relpath(path, base)
