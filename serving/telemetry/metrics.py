"""Prometheus metrics of the predictor. Labels have few values: arm and model version of the process, stages, outcomes.

Workers on one machine share their metrics through the folder ``PROMETHEUS_MULTIPROC_DIR``. The worker that has the metrics port
answers for all of them; when it ends, another one takes over the port.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app, values

from serving.outcome import OUTCOMES, Outcome
from thinktwice.records.answer import COUNTERS, Corrected

if TYPE_CHECKING:
    from serving.admission import Admission
    from serving.scorer import Answer

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1),
    *(0.15, 0.25, 0.5, 1.0, 2.5, 10.0),
)
STAGES = ("queue", "parse", "features", "encode", "counters", "engine", "respond")
SHARES = tuple(i / 20 for i in range(1, 21))
PATHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
HISTORIES = ("read", "late", "failed")
LOGGED = ("sampled", "written", "dropped", "failed")
BUDGET = (0, 8, 32, 64, 128, 256, 512, 1024, 4096)
RETRY_SECONDS = 5.0  # between attempts of a worker to get the metrics port


class Metrics:
    """The metrics of one model in one process.

    Args:
        arm: experiment arm of this process, "" for none.
        model_version: of the bundle.
        registry: registry of the metrics.
    """

    def __init__(self, arm: str, model_version: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._labels = {"arm": arm, "model_version": model_version}
        names = tuple(self._labels)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"thinktwice_{name}", text, (*names, *labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"thinktwice_{name}", text, (*names, *labels), buckets=buckets, registry=registry)

        def gauge(name: str, text: str, mode: Any = "livemax") -> Gauge:
            gauge_metric = Gauge(f"thinktwice_{name}", text, names, registry=registry, multiprocess_mode=mode)
            return gauge_metric.labels(**self._labels)

        requests = counter("requests", "HTTP requests by outcome.", "outcome")
        self._requests = {o: requests.labels(**self._labels, outcome=o) for o in OUTCOMES}
        seconds = histogram("request_seconds", "From the caller's sending to the answer.", SECONDS)
        self._seconds = Observer(seconds.labels(**self._labels))
        stages = histogram("stage_seconds", "Where the time of a request goes.", SECONDS, "stage")
        self._stages = {s: Observer(stages.labels(**self._labels, stage=s)) for s in STAGES}
        self._rows = counter("rows", "Scored candidates and raw rows.").labels(**self._labels)
        self._escalated = counter("escalated_rows", "Rows that got more than one pass.").labels(**self._labels)
        self._paths = Observer(histogram("row_paths", "Forward passes of a row.", PATHS).labels(**self._labels))
        uncertainty = histogram("row_uncertainty", "Uncertainty of a row.", SHARES)
        self._uncertainty = Observer(uncertainty.labels(**self._labels))
        cold = counter("cold", "Users and candidates that the feature store does not know.", "side")
        self._cold = {side: cold.labels(**self._labels, side=side) for side in ("user", "item")}
        self._anonymous = counter(
            "anonymous_requests", "Requests without a user id, where the model allows it."
        ).labels(**self._labels)
        stale = counter("stale", "Users and candidates with features older than allowed.", "side")
        self._stale = {side: stale.labels(**self._labels, side=side) for side in ("user", "item")}
        self._defaults = counter(
            "defaulted_lookups", "Lookups answered with default values, by the reason of the failure.", "side", "reason"
        )
        self._ignored = counter(
            "request_start_ignored", "Requests whose X-Request-Start was not used, by what is wrong with it.", "reason"
        )
        self._headers_ignored = counter(
            "experiment_headers_ignored", "Headers of the gateway that were missing or invalid.", "header"
        )
        self._budget = histogram(
            "path_budget_rows", "Extra rows a request was allowed, as far as something limits it.", BUDGET
        ).labels(**self._labels)
        self._shed = counter("shed_requests", "Requests that got no extra paths, for load.").labels(**self._labels)
        self._queue = gauge("queue_length", "Requests that wait for a worker.")
        self._waiting = gauge("waiting_share", "Share of the last second's requests that had to wait for another.")
        self._snapshot_age = gauge(
            "item_snapshot_age_seconds", "Since the item features were last read from the store."
        )
        self._lost = gauge(
            "item_snapshot_lost_items",
            "Items that had features and have none in the store now; the old ones are served.",
        )
        self._clock_offset = gauge(
            "caller_clock_offset_seconds", "What the clock behind X-Request-Start is behind by, which is corrected."
        )
        reads = counter("counter_reads", "Requests whose counters were read, by what became of them.", "outcome")
        self._counters = {outcome: reads.labels(**self._labels, outcome=outcome) for outcome in COUNTERS}
        reads = counter(
            "history_reads", "Requests that read the outcomes of their user, by what became of them.", "outcome"
        )
        self._histories = {outcome: reads.labels(**self._labels, outcome=outcome) for outcome in HISTORIES}
        self._corrected = counter("corrected_rows", "Rows corrected by their counters.").labels(**self._labels)
        self._uncorrected = counter(
            "uncorrected_rows", "Rows without a known counter, of a model that corrects rows."
        ).labels(**self._labels)
        self._mode = Gauge(
            "thinktwice_model_mode",
            "1 for the mode of the model's test-time work.",
            (*names, "mode"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        log = counter("prediction_log_requests", "Requests of the prediction log by outcome.", "outcome")
        self._log = {outcome: log.labels(**self._labels, outcome=outcome) for outcome in LOGGED}
        self._unwritable = gauge("prediction_log_unwritable", "1 while the prediction log cannot be written, else 0.")
        self._logged = dict.fromkeys(LOGGED, 0)
        self._logging = threading.Lock()

    def anonymous(self) -> None:
        """Record one request without a user id."""
        self._anonymous.inc()

    def answered(self, answer: Answer) -> None:
        """Record one scored request."""
        for stage, spent in answer.stages.items():
            self._stages[stage].observe(spent)
        rows = len(answer.num_paths)
        self._rows.inc(rows)
        if answer.path_rows == 0:
            self._paths.observe(1, rows)
        else:
            paths = np.asarray(answer.num_paths)
            self._escalated.inc(int((paths > 1).sum()))
            self._paths.observe_all(paths)
        self._uncertainty.observe_all(np.asarray(answer.uncertainty))
        for side, cold, stale in (
            ("user", int(answer.cold_user), int(answer.stale_user)),
            ("item", sum(answer.cold_items), sum(answer.stale_items)),
        ):
            if cold:
                self._cold[side].inc(cold)
            if stale:
                self._stale[side].inc(stale)
        if isinstance(answer, Corrected) and answer.counters:
            self._counters[answer.counters].inc()
            corrected = sum(answer.corrected)
            self._corrected.inc(corrected)
            self._uncorrected.inc(rows - corrected)
            if answer.history:
                self._histories[answer.history].inc()
        if answer.path_budget is not None:
            self._budget.observe(answer.path_budget)
        if answer.shed:
            self._shed.inc()

    def mode(self, mode: str) -> None:
        """Record the mode of the model's test-time work."""
        self._mode.labels(**self._labels, mode=mode).set(1)

    def defaulted(self, side: str, reason: str) -> None:
        """Record a lookup that was answered with defaults."""
        self._defaults.labels(**self._labels, side=side, reason=reason).inc()

    def logged(self, counts: Mapping[str, int]) -> None:
        """Record the counts of the prediction log since it was opened."""
        with self._logging:
            for outcome in LOGGED:
                if (increase := counts[outcome] - self._logged[outcome]) > 0:
                    self._logged[outcome] += increase
                    self._log[outcome].inc(increase)

    def log_writable(self, writable: bool) -> None:
        """Record whether the prediction log is writable. With several workers, one that cannot write is enough to report it."""
        self._unwritable.set(not writable)

    def start_ignored(self, reason: str) -> None:
        """Record an ignored ``X-Request-Start``."""
        self._ignored.labels(**self._labels, reason=reason).inc()

    def header_ignored(self, header: str) -> None:
        """Record a header of the gateway that was missing or invalid: its field is missing in the prediction log."""
        self._headers_ignored.labels(**self._labels, header=header).inc()

    def state(self, admission: Admission, reader: object, clock_offset: float = 0.0) -> None:
        """Record the queue length, the age of the item features, and the offset of the callers' clock."""
        self._clock_offset.set(clock_offset)
        self._queue.set(admission.waiting)
        self._waiting.set(admission.waiting_share())
        if (filled := getattr(reader, "filled", None)) is not None:
            self._snapshot_age.set(time.time() - filled)
            self._lost.set(getattr(reader, "lost", 0))

    def stage(self, name: str, seconds: float) -> None:
        """Record a stage outside the scorer: queue, parse, respond."""
        self._stages[name].observe(seconds)

    def finished(self, outcome: Outcome, seconds: float) -> None:
        """Record one finished HTTP request."""
        self._requests[outcome].inc()
        self._seconds.observe(seconds)


class Observer:
    """Records values in a histogram, equivalently to ``histogram.observe`` and faster."""

    def __init__(self, histogram: Histogram) -> None:
        self._sum, self._buckets = histogram._sum, histogram._buckets
        self._upper_bounds = list(histogram._upper_bounds)
        self._bounds = np.asarray(self._upper_bounds)

    def observe(self, value: float, times: int = 1) -> None:
        """Record a value this many times."""
        if times:
            self._sum.inc(value * times)
            self._buckets[bisect_left(self._upper_bounds, value)].inc(times)

    def observe_all(self, values: np.ndarray) -> None:
        """Record each value [n] in one call: a request has hundreds of rows."""
        if len(values) == 0:
            return
        counts = np.bincount(self._bounds.searchsorted(values)).tolist()
        self._sum.inc(float(values.sum()))
        for bucket, count in enumerate(counts):
            if count:
                self._buckets[bucket].inc(count)


def shared_registry() -> CollectorRegistry:
    """The metrics of all processes on this machine, or of this process if it is the only one."""
    if values.ValueClass is values.MutexValue or not os.environ.get(MULTIPROCESS):
        return REGISTRY
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry


def serve_metrics(host: str, port: int, retry: float = RETRY_SECONDS) -> None:
    """Serve ``GET /metrics`` from a thread, as soon as the port is free, until the process ends.

    All workers on one machine call this; one of them gets the port.
    """
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Do not log scrapes."""

    def run() -> None:
        while True:
            try:
                server = make_server(host, port, make_wsgi_app(shared_registry()), handler_class=Quiet)
            except OSError:
                time.sleep(retry)
                continue
            server.serve_forever()

    threading.Thread(target=run, name="metrics", daemon=True).start()
