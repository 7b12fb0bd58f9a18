"""Wall time of test-time work, measured as in a server: on requests of a hundred rows."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.data.evidence import Evidence, History
from thinktwice.models.blocks import one_thread
from thinktwice.testtime.engine import Engine

REQUEST_ROWS = 100
REQUESTS = 20
ROUNDS = 5


def wall_ratio(engine: Engine, base: Engine, rows: EncodedRows) -> float:
    """Median over rounds of the time of ``engine`` divided by that of ``base`` on the same requests, run alternately."""
    take = min(len(rows), REQUEST_ROWS * REQUESTS)
    spread = np.linspace(0, len(rows) - 1, take).astype(np.int64)
    requests = [_request(rows, spread[s : s + REQUEST_ROWS]) for s in range(0, take, REQUEST_ROWS)]
    with one_thread():
        _seconds(engine, requests[:2])
        _seconds(base, requests[:2])
        ratios = [_seconds(engine, requests) / _seconds(base, requests) for _ in range(ROUNDS)]
    return float(median(ratios))


def _request(rows: EncodedRows, chosen: np.ndarray) -> tuple[Batch, Evidence | None]:
    """The chosen rows as one request, whose user has the history of the last row."""
    evidence = rows.evidence
    if evidence is None:
        return rows.batch(chosen), None
    rows_history = None if evidence.history is None else evidence.history()
    if rows_history is None:
        return rows.batch(chosen), Evidence(evidence.counters[chosen])
    outcomes = slice(int(rows_history.start[chosen[-1]]), int(rows_history.end[chosen[-1]]))
    history = History.of_user(rows_history.items[outcomes], rows_history.clicked[outcomes], len(chosen))
    return rows.batch(chosen), Evidence(np.asarray(evidence.counters[chosen]), lambda: history)


def _seconds(engine: Engine, requests: list[tuple[Batch, Evidence | None]]) -> float:
    start = time.perf_counter()
    for batch, evidence in requests:
        engine.score(batch, evidence=evidence)
    return time.perf_counter() - start
