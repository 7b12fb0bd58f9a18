"""The packaged backend against eager torch, on rows of real requests."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.serving.world import World, served
from thinktwice.data.encoded import Batch
from thinktwice.models.backends import Backend, Eager, parity_of, verify_sizes
from thinktwice.models.blocks import one_thread
from thinktwice.release.bundle import load_bundle

ROWS = (1, 100, 1000)


def backends(world: World, rounds: int) -> dict[str, Any]:
    """Microseconds of a request of 1, 100 and 1,000 rows.

    ``plain`` is ``model(batch)``; ``eager``, like ``chosen``, gives a row the same bits in any request. Each turn runs several
    requests, so that the tables are in the caches.
    """
    chosen = load_bundle(world.bundles["off"]).engine.backend
    model = chosen.model
    with torch.inference_mode(), one_thread():
        eager = Eager(model, chosen.table, chosen.fill)
        verify_sizes(eager)
        microseconds: dict[str, Any] = {}
        for rows in ROWS:
            requests = served(world, candidates=rows, count=16)
            calls = {
                "plain": [lambda b=batch: model(b) for batch in requests],
                "eager": [lambda b=batch: _scored(eager, b) for batch in requests],
                "chosen": [lambda b=batch: _scored(chosen, b) for batch in requests],
            }
            spent: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(rounds):
                for name, turn_calls in calls.items():
                    for call in turn_calls:
                        start = time.perf_counter()
                        call()
                        spent[name].append(1e6 * (time.perf_counter() - start))
            microseconds[str(rows)] = {name: float(np.median(values)) for name, values in spent.items()}
    parity = parity_of(chosen)
    return {
        "name": chosen.name,
        "microseconds": microseconds,
        "largest_difference_of_a_probability": parity.difference,
        "pairs_swapped": parity.swapped,
    }


def _scored(backend: Backend, batch: Batch) -> torch.Tensor:
    return backend.logits(backend.read(batch))
