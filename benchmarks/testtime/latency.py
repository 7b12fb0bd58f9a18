"""Cost of every mode: matrix-multiply FLOPs and wall time relative to the plain model, in one run, alternately.

Requests have 1, 100 and 500 rows; the engine uses one thread, as in a server's worker.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch

from thinktwice.data.encoded import EncodedRows
from thinktwice.models.cost import flops
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine

SIZES = (1, 100, 500)
REQUESTS = 40


def measure(
    trial_model: TrialModel, configs: dict[str, TestTimeConfig], rows: EncodedRows, rounds: int
) -> list[dict[str, Any]]:
    """One entry per mode and request size; the first of ``configs`` is the baseline.

    A round scores every request once with every mode, one after the other, the order rotated by one each time. The ratio of
    the means and of the quantiles is over all rounds; ``ratio`` is the median over rounds of the ratio within a round.
    """
    engines = {name: trial_model.engine(config) for name, config in configs.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.disable()
    try:
        return [entry for size in SIZES for entry in _of_size(engines, rows, size, rounds)]
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def _of_size(engines: dict[str, Engine], rows: EncodedRows, size: int, rounds: int) -> list[dict[str, Any]]:
    spread = np.linspace(0, len(rows) - size, REQUESTS).astype(np.int64)
    requests = [rows.batch(np.arange(s, s + size)) for s in spread]
    names = list(engines)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for engine in engines.values():
        for request in requests[:3]:
            engine.score(request)
    for turn in range(rounds):
        round_ms: dict[str, list[float]] = {name: [] for name in names}
        for request in requests:
            for index in range(len(names)):
                name = names[(index + turn) % len(names)]
                start = time.perf_counter()
                engines[name].score(request)
                round_ms[name].append((time.perf_counter() - start) * 1000)
        for name in names:
            times[name].append(round_ms[name])
    work = {name: sum(flops(lambda e=e, r=r: e.score(r)) for r in requests[:10]) for name, e in engines.items()}
    base = np.array(times[names[0]])
    out = []
    for name in names:
        ms = np.array(times[name])  # [rounds, requests]
        p50, p99, p999 = (float(np.quantile(ms, q)) for q in (0.5, 0.99, 0.999))
        out.append(
            {
                "mode": name,
                "rows": size,
                "ms": {"mean": float(ms.mean()), "p50": p50, "p99": p99, "p99.9": p999},
                "ratio": float(np.median(ms.mean(axis=1) / base.mean(axis=1))),
                "p99_ratio": p99 / float(np.quantile(base, 0.99)),
                "flops_ratio": work[name] / work[names[0]],
            }
        )
    return out
