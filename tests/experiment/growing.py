"""Logs of a running experiment that grow from look to look."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.experiment.logs import COLUMNS, T0, World
from thinktwice.experiment.gather import Sources
from thinktwice.experiment.join import Logs
from thinktwice.records.events import CLICK_COLUMNS

START = datetime.fromtimestamp(T0, timezone.utc)
SETTLE = 30.0  # seconds until a log that is not late has a request


class Growing:
    """Logs that grow from look to look: an access log that is appended to and rotated, new parts, new tables of clicks.

    Args:
        late: share of lines, rows and clicks that are written only at one of the next looks.
    """

    def __init__(self, folder: Path, world: World, seed: int, late: float) -> None:
        self._folder, self._rng, self._late = folder, random.Random(seed), late
        self._number, self._rotated = 0, 0
        lines = [self._in_any_arm(line) for file in world.access for line in file]
        self._lines = [(self._written(_time_of(line)), line) for line in lines]
        self._rows = [(self._written(row["log_at"].timestamp()), row) for row in world.rows]
        clicks = []
        for row in world.rows[::3]:
            at = row["log_at"] + timedelta(seconds=self._rng.choice([-9, 1, 30, 59, 61, 500]))
            received = (
                None if self._rng.random() < 0.05 * late else at + timedelta(seconds=self._rng.choice([0, 5, 40]))
            )
            clicks.append({"request_id": row["log_request_id"], "item_id": row["log_item_id"], "at": at, "received_at": received})  # fmt: skip
        clicks += [dict(click, at=click["at"] + timedelta(seconds=1)) for click in clicks[::4]]
        clicks += [{"request_id": "nobody", "item_id": "i0", "at": START - timedelta(days=1), "received_at": None},
                   {"request_id": "r1", "item_id": None, "at": START, "received_at": START}]  # fmt: skip
        self._clicks = [(self._written((click["received_at"] or click["at"]).timestamp()), click) for click in clicks]
        folder.mkdir(parents=True)
        self._current = folder / "access.log"

    def _in_any_arm(self, line: str) -> str:
        """The line, now and then with another assigned arm, so that its unit is seen in two."""
        if self._rng.random() > 0.03 or '"assigned"' not in line:
            return line
        return json.dumps({**json.loads(line), "assigned": self._rng.choice(["control", "t1", "t2"])})

    def _written(self, at: float) -> float:
        return at + (
            self._rng.uniform(0, 1500) if self._rng.random() < self._late else self._rng.uniform(0, SETTLE / 2)
        )

    def until(self, now: float) -> Sources:
        """Write what is written by then."""
        self._number += 1
        lines, self._lines = _taken(self._lines, now)
        with self._current.open("ab") as log:
            log.write("".join(line + "\n" for line in lines).encode("latin-1"))
        if self._rng.random() < 0.4 and self._current.stat().st_size:
            self._rotated += 1
            self._current.rename(self._folder / f"access-{self._rotated:03d}.log")
            self._current.touch()
        torn = self._folder / "torn.log"  # of a gateway that is killed while it writes
        torn.write_text('{"ts": "1", "request_id": "half' if self._rng.random() < 0.5 else "")
        rows, self._rows = _taken(self._rows, now)
        for number in range(2):
            if part := rows[number::2]:
                path = self._folder / f"served-{self._number:03d}-{number}.parquet"
                pq.write_table(pa.Table.from_pylist(part, COLUMNS), path)
        clicks, self._clicks = _taken(self._clicks, now)
        pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), self._folder / f"clicks-{self._number:03d}.parquet")
        access = [*sorted(self._folder.glob("access-*.log")), self._current, torn]
        parts = sorted(self._folder.glob("served-*.parquet"))
        logs = Logs([path for path in access if path.stat().st_size], parts, "log_user_id")
        return Sources(logs, sorted(self._folder.glob("clicks-*.parquet")))


def _time_of(line: str) -> float:
    try:
        return float(json.loads(line)["ts"])
    except (ValueError, TypeError, KeyError):
        return T0


def _taken(entries: list[tuple[float, Any]], now: float) -> tuple[list[Any], list[tuple[float, Any]]]:
    return [entry for at, entry in entries if at <= now], [one for one in entries if one[0] > now]
