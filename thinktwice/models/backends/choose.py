"""Which backend a model is packaged with: the fastest of those whose scores are the eager ones, measured on its own trunk."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from thinktwice.data.encoded import Batch
from thinktwice.models.backends.backend import Backend, Eager, MakeBackend, random_rows, verify_sizes
from thinktwice.models.blocks import one_thread

ROWS = (1, 100, 1000)  # sizes of a request that are timed
PARITY_ROWS = 512
TOLERANCE = {"eager": 1e-5, "folded": 1e-5, "onnx": 1e-5, "bfloat16": 2e-3}  # of a probability
MARGIN = 1.1  # times faster that a backend must be than one that stands before it
TURNS = 3


@dataclass(frozen=True)
class Parity:
    """``difference``: the largest of a probability; ``swapped``: pairs of rows in another order though the eager scores differ
    by more than the tolerance; ``holds``: whether both are in order."""

    difference: float
    swapped: int
    holds: bool


@dataclass(frozen=True)
class Choice:
    """``seconds`` of requests of 1, 100 and 1,000 rows by backend, as measured; ``parity`` by backend."""

    name: str
    seconds: Mapping[str, tuple[float, ...]]
    parity: Mapping[str, Parity]


def parity_of(backend: Backend, seed: int = 0) -> Parity:
    """Compare a backend with eager torch on random rows."""
    batch = random_rows(backend.model, PARITY_ROWS, seed)
    eager = Eager(backend.model, backend.table, backend.fill)
    with torch.inference_mode(), one_thread():
        expected = eager.logits(eager.read(batch)).double().sigmoid()
        found = backend.logits(backend.read(batch)).double().sigmoid()
    tolerance = TOLERANCE[backend.name]
    difference = float((found - expected).abs().max())
    apart = expected[:, None] - expected[None] > tolerance
    swapped = int((apart & (found[:, None] <= found[None])).sum())
    return Parity(difference, swapped, math.isfinite(difference) and difference <= tolerance and swapped == 0)


def choose_backend(candidates: Mapping[str, MakeBackend], eager: Backend, rows: Sequence[Batch]) -> Choice:
    """Time ``eager`` and all candidates by turns, on the ``rows`` of real requests.

    A candidate must beat those before it clearly, so exact ones come first.
    """
    with torch.inference_mode(), one_thread():
        return _chosen(
            {name: make(eager.model, eager.table, eager.fill) for name, make in candidates.items()}, eager, rows
        )


def _chosen(backends: Mapping[str, Backend], eager: Backend, rows: Sequence[Batch]) -> Choice:
    parity = {name: parity_of(backend) for name, backend in backends.items()}
    running = {"eager": eager, **{name: b for name, b in backends.items() if parity[name].holds}}
    running = {name: backend for name, backend in running.items() if verify_sizes(backend) or name == "eager"}
    seconds = _timed(running, rows)
    best = "eager"
    for name in running:
        if _mean(seconds[name]) * MARGIN < _mean(seconds[best]):
            best = name
    return Choice(best, seconds, parity)


def _timed(backends: Mapping[str, Backend], rows: Sequence[Batch]) -> dict[str, tuple[float, ...]]:
    """Median seconds by size. Every turn of a backend takes several requests, so that it finds its own tables in the caches, as
    it does when it serves alone."""
    found: dict[str, list[float]] = {name: [] for name in backends}
    for size in ROWS:
        requests = [_request(batch, size) for batch in rows]
        spent: dict[str, list[float]] = {name: [] for name in backends}
        for _ in range(TURNS):
            for name, backend in backends.items():
                for request in requests:
                    start = time.perf_counter()
                    backend.logits(backend.read(request))
                    spent[name].append(time.perf_counter() - start)
        for name, seconds in spent.items():
            found[name].append(statistics.median(seconds))
    return {name: tuple(seconds) for name, seconds in found.items()}


def _request(batch: Batch, size: int) -> Batch:
    """The rows of a batch, again and again up to ``size``."""
    return batch.select(torch.arange(size) % len(batch))


def _mean(seconds: tuple[float, ...]) -> float:
    return math.exp(sum(map(math.log, seconds)) / len(seconds))
