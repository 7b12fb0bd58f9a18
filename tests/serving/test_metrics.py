"""Numbers for Prometheus: right, in useful buckets, of few labels, and shared by the workers of a machine."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from serving.telemetry.metrics import SECONDS, STAGES, Observer
from tests.serving.fakes import make_service
from tests.serving.small import MODEL_VERSION

ONE = b'{"instances": [{"user_id": "u1", "candidates": ["i1", "i2", "never"], "context": {"slot": "s1"}}]}'
WHO = {"arm": "b", "model_version": MODEL_VERSION}


def test_an_observer_records_the_same_as_its_histogram() -> None:
    registry = CollectorRegistry()
    bounds = (0.1, 0.5, 1.0)
    histograms = {name: Histogram(name, "", buckets=bounds, registry=registry) for name in ("one", "single", "many")}
    single, many = Observer(histograms["single"]), Observer(histograms["many"])
    values = np.array([0.0, 0.1, 0.100001, 0.5, 0.5, 0.7, 1.0, 3.0])
    for value in values.tolist():
        histograms["one"].observe(value)
    for value, times in zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True):
        single.observe(value, times)
    single.observe(0.7, 0)
    many.observe_all(values)
    many.observe_all(values[:0])
    names = ("0.1", "0.5", "1.0", "+Inf")
    expected = [registry.get_sample_value("one_bucket", {"le": n}) for n in names]
    for name in ("single", "many"):
        assert [registry.get_sample_value(f"{name}_bucket", {"le": n}) for n in names] == expected
        assert registry.get_sample_value(f"{name}_sum") == pytest.approx(registry.get_sample_value("one_sum") or 0)


def test_what_a_request_leaves(small: Path) -> None:
    from serving.config import ServingConfig

    registry = CollectorRegistry()
    service = make_service(small / "bundle", ServingConfig(arm="b", access_log=False), registry)
    assert service.answer(ONE, {}).status == 200
    assert service.answer(b"{", {}).status == 400
    assert service.answer(ONE, {"x-deadline-ms": "0.000001"}).status == 503

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"thinktwice_{name}", {**WHO, **labels})

    outcomes = ("ok", "invalid", "refused", "failed")
    assert [value("requests_total", outcome=o) for o in outcomes] == [1, 1, 1, 0]
    assert value("rows_total") == value("row_paths_count") == value("row_uncertainty_count") == 3
    assert value("cold_total", side="item") == 1
    assert value("cold_total", side="user") == 0
    assert value("request_seconds_count") == 3
    assert {s: value("stage_seconds_count", stage=s) for s in STAGES} == {s: float(s != "counters") for s in STAGES}
    labels = {name for family in registry.collect() for sample in family.samples for name in sample.labels}
    assert labels == {"arm", "model_version", "outcome", "stage", "side", "le"}


def test_buckets_resolve_a_fast_request() -> None:
    assert tuple(sorted(SECONDS)) == SECONDS
    assert sum(bound <= 0.01 for bound in SECONDS) >= 8
    assert max(b / a for a, b in itertools.pairwise(SECONDS)) <= 4


WORKER = """
import sys, time
from serving.telemetry.metrics import Metrics, serve_metrics
metrics = Metrics("a", "v1")
metrics.finished("ok", 0.001)
metrics.finished("ok", 0.002)
serve_metrics("127.0.0.1", int(sys.argv[1]), retry=0.05)
print("up", flush=True)
sys.stdin.read()
"""


def scraped(port: int, until: float) -> float:
    """Requests that ended well as the port says, tried until it says so many."""
    for _ in range(400):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                families = text_string_to_metric_families(answer.read().decode())
        except OSError:
            time.sleep(0.05)
            continue
        found = [
            s.value
            for f in families
            for s in f.samples
            if s.name == "thinktwice_requests_total" and s.labels["outcome"] == "ok"
        ]
        if sum(found) == until:
            return until
        time.sleep(0.05)
    return sum(found)


@pytest.mark.server
def test_two_workers_answer_with_one_voice_and_one_takes_over(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WORKER, str(port)]
    root = Path(__file__).resolve().parents[2]
    pipe = subprocess.PIPE
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=root, env=environment) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == b"up\n"
        assert scraped(port, 4) == 4
        workers[0].kill()
        workers[0].wait()
        assert scraped(port, 4) == 4  # nothing that was counted is lost, and the other answers
        workers[1].kill()
        workers[1].wait()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    stream.close()
