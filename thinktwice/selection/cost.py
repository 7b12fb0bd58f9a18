"""The cost of a configuration: the time of its engine relative to the plain model's, measured on validation rows.

Both engines use the backend that packaging chooses for the model, and take turns on the same requests in one thread. The clock
is the CPU time of that thread: waiting for a busy machine does not count. Caches shared with other processes still do, so
figures differ between runs by a few per cent. They decide nothing but whether a candidate keeps the limit.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.data.evidence import Evidence, History
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends import Backend, Eager, MakeBackend, verify_sizes
from thinktwice.models.backends.store import choice_for
from thinktwice.models.blocks import one_thread
from thinktwice.models.fields import FieldSpace
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.cost import CostFile, MeasuredCost, Ratio
from thinktwice.testtime.engine import Engine

REQUEST_ROWS = (1, 100, 500)
NUM_REQUESTS = (24, 4, 2)  # of each size
ROUNDS = 7
QUARTILES = (0.25, 0.5, 0.75)
CLOCK = "CPU time of the scoring thread"

Clock = Callable[[], float]  # seconds since any instant
Request = tuple[Batch, Evidence | None]
#: The cost of one configuration of a model.
Price = Callable[[TrialModel, TestTimeConfig], MeasuredCost]


@dataclass(eq=False)
class Meter:
    """Measures configurations against the plain configuration of ``base``.

    Args:
        base: the model of what every cost is relative to.
        rows: validation rows that requests are made of.
        clock: replaced in tests.
    """

    base: TrialModel
    rows: EncodedRows
    clock: Clock = time.thread_time
    _sizes: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._backends: dict[int, tuple[MakeBackend, str]] = {}
        self.requests = [
            requests_of(self.rows, self.base.model.fields, size, number)
            for size, number in zip(REQUEST_ROWS, NUM_REQUESTS, strict=True)
        ]
        self.plain = self.engine(self.base, TestTimeConfig())
        self.plain_seconds: list[list[float]] = [[] for _ in REQUEST_ROWS]
        with one_thread():
            for requests in self.requests:
                self._seconds(self.plain, requests)

    def __call__(self, trial_model: TrialModel, config: TestTimeConfig) -> MeasuredCost:
        """The cost of a configuration of a model."""
        engine = self.engine(trial_model, config)
        ratios = np.empty((ROUNDS, len(self.requests)))
        with one_thread():
            for requests in self.requests:
                self._seconds(engine, requests)
            for turn in range(ROUNDS):
                for size, requests in enumerate(self.requests):
                    both = {}
                    for measured in (engine, self.plain) if turn % 2 else (self.plain, engine):
                        both[measured is engine] = self._seconds(measured, requests)
                    self.plain_seconds[size].append(both[False] / len(requests))
                    ratios[turn, size] = both[True] / max(both[False], 1e-9)
        mean = _ratio(ratios.mean(axis=1))
        return MeasuredCost(**dict(mean), by_rows=tuple(_ratio(ratios[:, size]) for size in range(len(self.requests))))

    def file(self, max_cost: float | None, candidates: dict[str, MeasuredCost]) -> CostFile:
        """The record of all measurements."""
        return CostFile(
            format=CostFile.FORMAT,
            clock=CLOCK,
            backend=self.plain.backend.name,
            rows=REQUEST_ROWS,
            rounds=ROUNDS,
            plain_us=tuple(round(1e6 * float(np.median(s or [0.0])), 1) for s in self.plain_seconds),
            max_cost=max_cost,
            candidates=candidates,
        )

    def engine(self, trial_model: TrialModel, config: TestTimeConfig) -> Engine:
        """The engine as a server runs it."""
        trial_model = trial_model.of(config)
        model = trial_model.model
        make_backend, name = self._packaged(model)
        members = trial_model.extras.members if name == "onnx" else ()
        parts = (trial_model.reliability, config, trial_model.calibration, trial_model.extras)
        engine = Engine(model, *parts, make_backend, [self._packaged(member)[0] for member in members])
        for backend in (engine.backend, *engine.member_backends):
            backend.sizes = self._verified_sizes(backend)
        return engine

    def _packaged(self, model: Backbone) -> tuple[MakeBackend, str]:
        if id(model) not in self._backends:
            self._backends[id(model)] = packaged_backend(model)
        return self._backends[id(model)]

    def _verified_sizes(self, backend: Backend) -> tuple[int, ...]:
        """Block sizes depend on the shapes of a model only, not on a gate."""
        known = self._sizes.get(id(backend.model))
        if known is None:
            verify_sizes(backend)
            known = self._sizes[id(backend.model)] = backend.sizes
        return known

    def _seconds(self, engine: Engine, requests: Sequence[Request]) -> float:
        start = self.clock()
        for batch, evidence in requests:
            engine.score(batch, evidence=evidence)
        return self.clock() - start


def packaged_backend(model: Backbone) -> tuple[MakeBackend, str]:
    """The backend that packaging chooses for a model, and its name."""
    with torch.inference_mode(), one_thread(), tempfile.TemporaryDirectory() as folder:
        choice, make_backend = choice_for(Path(folder), Eager(model, None, model.fill().detach()))
    return make_backend, choice.name


def requests_of(rows: EncodedRows, fields: FieldSpace, size: int, number: int) -> list[Request]:
    """``number`` requests of ``size`` rows spread over ``rows``; repeated if there are fewer.

    As in a server, the rows of a request share one user: the user's and the context's sequences and vectors and the history are
    those of one row. Ids differ by row, so the share of rows with a second look is that of validation.
    """
    chosen = np.linspace(0, len(rows) - 1, size * number).astype(np.int64).reshape(number, size, order="F")
    shared = {name for name, entity in zip(fields.names, fields.entities, strict=True) if entity != "item"}
    return [_request(rows, positions, shared) for positions in chosen]


def _request(rows: EncodedRows, positions: np.ndarray, shared: set[str]) -> Request:
    batch, last = rows.batch(positions), len(positions)
    batch = Batch(
        batch.ids,
        {n: v[:1].expand(last, -1) if n in shared else v for n, v in batch.sequences.items()},
        {n: v[:1].expand(last, -1) if n in shared else v for n, v in batch.vectors.items()},
        weights={n: v[:1].expand(last, -1) if n in shared else v for n, v in batch.weights.items()},
    )
    evidence = rows.evidence
    if evidence is None:
        return batch, None
    counters = np.ascontiguousarray(evidence.counters[positions])
    histories = None if evidence.history is None else evidence.history()
    if histories is None:
        return batch, Evidence(counters)
    outcomes = slice(int(histories.start[positions[-1]]), int(histories.end[positions[-1]]))
    history = History.of_user(histories.items[outcomes], histories.clicked[outcomes], len(positions))
    return batch, Evidence(counters, lambda: history)


def _ratio(values: np.ndarray) -> Ratio:
    low, value, high = (round(float(q), 4) for q in np.quantile(values, QUARTILES))
    return Ratio(value=value, low=low, high=high)
