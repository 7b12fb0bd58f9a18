"""Any runs of the exposures and outcomes give the rows and counts of one run over all logs, whatever comes in between."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serving.feedback.event_log import EventLog
from serving.feedback.outcomes import join
from serving.feedback.records import Record
from tests.experiment.files import experiment, repeatable
from tests.experiment.growing import SETTLE, START, Growing
from tests.experiment.logs import T0, random_world
from thinktwice.data.outcome_log import LOG, write_outcome_log
from thinktwice.experiment import batches, exposures
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.closing import ROWS
from thinktwice.experiment.exposures import (
    KEPT,
    STATE,
    Collected,
    collect_exposures,
    part_name,
    sole_writer,
    widest_layout,
)
from thinktwice.experiment.gather import Sources
from thinktwice.experiment.join import EXPOSURES, REQUESTS, join_exposures
from thinktwice.experiment.outcomes import OUTCOMES, Window, join_outcomes
from thinktwice.experiment.query import shared_engine
from thinktwice.files import read_json
from thinktwice.parquet import num_rows
from thinktwice.schema import parse_schema

FILE = experiment("exp1", arms=3, coverage=0.8)
WINDOW = Window(seconds=60, late_seconds=10)
SCHEMA = parse_schema(
    "{name: shop, time: {column: at, format: datetime}, entities: {user: {key: user}, item: {key: item}}, fields: [{name: device}]}",
    where="test",
)


class Killed(BaseException):
    """The process ends here: nothing that follows runs, but for what clears temporary files."""


class Shop:
    """Growing logs, an event log, and the folders of the two commands."""

    def __init__(self, folder: Path, seed: int, late: float, requests: int) -> None:
        self.folder, self._rng = folder, random.Random(seed)
        self._logs = Growing(folder / "logs", random_world(seed, layout_of([FILE]), requests), seed, late)
        self._log = EventLog(folder / "events", 4_000)
        self._now, self._told = T0, 0
        self.clicks: list[dict[str, Any]] = []
        self.sources: Sources
        self.at = START

    def goes_on(self, seconds: int) -> None:
        """Write what is written in this time."""
        self._now += seconds
        self.sources = self._logs.until(self._now)
        self.at = max(START, datetime.fromtimestamp(self._now - SETTLE, timezone.utc))
        for table in self.sources.clicks[self._told :]:
            rows = pq.read_table(table).to_pylist()
            at = self._log.last_at
            for row in sorted(rows, key=lambda row: row["received_at"] or row["at"]):
                received = row["received_at"] or row["at"]
                at = max(at, round(received.timestamp() * 1e6))
                self._log.append([Record("click", at, row["request_id"], row["item_id"], None, micros(row["at"]))])
                self.clicks.append(row | {"received_at": datetime.fromtimestamp(at / 1e6, timezone.utc)})
        self._told = len(self.sources.clicks)
        self._log.append([Record("tick", max(self._log.last_at, micros(self.at)))])
        self.complete = datetime.fromtimestamp(self._log.last_at / 1e6, timezone.utc)

    def close(self) -> None:
        self._log.close()

    def run(self) -> tuple[Collected, Any]:
        """Both commands."""
        logs, out = self.sources.logs, self.folder / "exposures"
        with sole_writer(out):
            collected = collect_exposures([FILE], logs.access, logs.predictions, out, self.at)
        return collected, join(
            self.folder / "events", out, self.folder / "outcomes", WINDOW, schema=SCHEMA, ended=["exp1"]
        )

    def killed(self) -> None:
        """Both commands, which end at some rename."""
        last, counted, replace_file = self._rng.randint(1, 50), itertools.count(1), os.replace

        def renamed(*args: Any, last: int = last, counted: Iterator[int] = counted) -> None:
            if next(counted) == last:
                raise Killed
            replace_file(*args)

        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(os, "replace", renamed)
            self.run()

    def damage(self) -> None:
        """Flip a byte of a kept file."""
        folder = self.folder / self._rng.choice(["exposures", "outcomes"])
        files = sorted(read_json(folder / KEPT / STATE)["state"]["files"])
        path = folder / self._rng.choice([*files, f"{KEPT}/{STATE}"])
        content = bytearray(path.read_bytes())
        content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
        path.unlink()  # what is linked elsewhere is another file
        path.write_bytes(content)

    def whole(self) -> tuple[Any, ...]:
        """Counts and rows of one join of all logs."""
        logs, folder = self.sources.logs, self.folder / "whole"
        counts = join_exposures(replace_unit(logs), widest_layout([FILE]), folder, watermark=self.at)
        clicks = folder / "clicks.parquet"
        pl.DataFrame(self.clicks, schema=CLICKS).write_parquet(clicks)
        outcomes = join_outcomes([folder / EXPOSURES], [clicks], folder, self.complete, WINDOW, collected=self.at)
        log = write_outcome_log(folder / OUTCOMES, SCHEMA, folder / LOG, ended=["exp1"])
        tables = (EXPOSURES, REQUESTS, OUTCOMES, LOG)
        return counts, outcomes, log, *(rows_of(folder / name) for name in tables)

    def found(self, collected: Collected, joined: Any) -> tuple[Any, ...]:
        shown, out = self.folder / "exposures", self.folder / "outcomes"
        tables = (shown / EXPOSURES, shown / REQUESTS, out / OUTCOMES, out / LOG)
        return collected.counts, joined.counts, joined.log, *map(rows_of, tables)


CLICKS = {
    "request_id": pl.String, "item_id": pl.String, "at": pl.Datetime("us", "UTC"), "received_at": pl.Datetime("us", "UTC"),
}  # fmt: skip


def replace_unit(logs: Any) -> Any:
    """The command recomputes no buckets."""
    return type(logs)(logs.access, logs.predictions)


def micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def rows_of(table: Path) -> list[str]:
    files = sorted(table.glob("*.parquet")) if table.is_dir() else [table]
    return sorted(repr(row) for file in files for row in pq.read_table(file).to_pylist())


EVENTS = ["", "", "", "killed", "damaged", "a part is lost"]


@settings(repeatable, max_examples=2, phases=(Phase.generate,))
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.lists(st.tuples(st.integers(20, 900), st.sampled_from(EVENTS)), min_size=2, max_size=4),
    st.sampled_from([1, 25]),
    st.sampled_from([10, 40, batches.ROWS]),
)
def test_any_runs_equal_one(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    late: float,
    steps: list[tuple[int, str]],
    sealed: int,
    rows: int,
) -> None:
    shop = Shop(tmp_path_factory.mktemp("runs"), seed, late, 60)
    with pytest.MonkeyPatch.context() as patch, shared_engine(shop.folder):
        patch.setattr(exposures, "GRACE", timedelta(seconds=150))
        patch.setattr(exposures, "SEALED", sealed)
        patch.setattr(batches, "ROWS", rows)
        ran = False
        for seconds, event in [*steps, (3000, "")]:
            shop.goes_on(seconds)
            if ran and event == "damaged":
                shop.damage()
            elif ran and event == "a part is lost" and len(shop.sources.logs.predictions) > 1:
                shop.sources.logs.predictions[0].unlink()
                shop.goes_on(0)
            elif event == "killed":
                shop.killed()
            collected, joined = shop.run()
            assert shop.found(collected, joined) == shop.whole()
            if ran and event == "damaged":  # of outcomes whose exposures start over nothing is read
                assert collected.damaged + joined.damaged == 1 or (collected.from_start and not collected.damaged)
            ran = True
        shop.close()


def test_a_run_reads_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of closed requests are the same files after the next run, and open rows are few."""
    monkeypatch.setattr(exposures, "GRACE", timedelta(seconds=150))
    monkeypatch.setattr(exposures, "SEALED", 20)
    shop, inodes = Shop(tmp_path, 5, 0.0, 60), []
    tables = (
        "exposures/exposures.parquet",
        "exposures/requests.parquet",
        "outcomes/outcomes.parquet",
        "outcomes/log.parquet",
    )
    with shared_engine(tmp_path):
        for seconds in (350, 250):
            shop.goes_on(seconds)
            collected, joined = shop.run()
            inodes.append([(tmp_path / table / part_name(1)).stat().st_ino for table in tables])
    shop.close()
    assert not collected.from_start and not joined.from_start
    assert inodes[0] == inodes[1]
    assert 0 < num_rows(tmp_path / "exposures" / KEPT / ROWS) < sum(map(num_rows, shop.sources.logs.predictions)) / 2


def test_a_first_run_over_large_logs_reads_them_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposures, "GRACE", timedelta(seconds=150))
    monkeypatch.setattr(exposures, "SEALED", 1)
    shop, ran = Shop(tmp_path, 5, 0.0, 60), []
    collect = exposures._collect

    def collected_now(logs: Any, layout: Any, folder: Path, before: Path | None, *rest: Any) -> Collected:
        ran.append((len(logs.access), len(logs.predictions), before is None))
        return collect(logs, layout, folder, before, *rest)

    monkeypatch.setattr(exposures, "_collect", collected_now)
    with shared_engine(tmp_path):
        for _ in range(4):
            shop.goes_on(200)
        monkeypatch.setattr(batches, "ROWS", sum(map(num_rows, shop.sources.logs.predictions)) // 4)
        collected, joined = shop.run()
        assert shop.found(collected, joined) == shop.whole()
    shop.close()
    assert collected.from_start and collected.sealed > 1
    parts = [part for _, part, _ in ran]
    assert len(ran) > 2 and parts == sorted(set(parts)) and parts[-1] == len(shop.sources.logs.predictions)
    assert [first for *_, first in ran] == [True] + [False] * (len(ran) - 1)
    assert not [path for path in (tmp_path / "exposures").iterdir() if path.name.startswith(".batches")]
