"""Headers of the gateway in the prediction log: valid ones as sent, the others as missing and counted, and no raw unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serving.config import ServingConfig
from serving.telemetry.exposures import PUBLIC_KEY, ExposureHeaders, is_shadow, unit_hash
from serving.telemetry.prediction_log import SALT, PredictionLog, PredictionLogConfig
from tests.serving.fakes import make_service
from tests.serving.small import SCHEMA
from thinktwice.experiment.assignment import bucket_of
from thinktwice.experiment.file import BUCKETS
from thinktwice.experiment.gateway_config import SERVED_ARM
from thinktwice.records.exposure import NO_EXPOSURE, Exposure
from thinktwice.records.served import PART

SENT = {
    "x-experiment": "fresh",
    "x-arm": "treatment",
    "x-enrolled": "1",
    "x-ab-unit": "user-1",
    "x-ab-salt": "fresh",
    "x-ab-host": "shop",
    "host": "shop",
    "x-envoy-attempt-count": "2",
}
FIELD = {
    "x-experiment": "experiment",
    "x-arm": "assigned",
    "x-enrolled": "enrolled",
    "x-ab-unit": "unit",
    "x-ab-salt": "bucket",
    "x-envoy-attempt-count": "attempt",
}
BODY = {"instances": [{"user_id": "u1", "candidates": ["i1", "i2"]}, {"user_id": "u1", "candidates": ["i1"]}]}
ODD = st.one_of(
    st.sampled_from(["", " ", "A", "a b", "a" * 300, "é", "\x00", "2", "-1", "0", "1000", "٣", "a,b", "a/b", '"', "\r\n"]),
    st.text(max_size=50),
)  # fmt: skip


def read(headers: dict[str, str], **more: Any) -> tuple[Exposure, list[str]]:
    ignored: list[str] = []
    return ExposureHeaders(more.get("user_ids", "raw"), ignored.append).exposure(headers), ignored


def test_every_header_has_its_column() -> None:
    exposure, ignored = read(SENT)
    expected = Exposure("fresh", "treatment", True, unit_hash("user-1", PUBLIC_KEY), bucket_of("fresh", "user-1"), 2)
    assert (exposure, ignored) == (expected, [])
    assert read({"host": "shop", "x-request-id": "r"}) == (NO_EXPOSURE, []), "there is no gateway"


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FIELD)), ODD))
def test_an_odd_header_is_a_missing_one_and_counted(odd: dict[str, str]) -> None:
    whole, _ = read(SENT)
    exposure, ignored = read(SENT | odd)
    for header, field in FIELD.items():
        value = getattr(exposure, field)
        if header not in odd and not (field == "bucket" and "x-ab-unit" in odd):
            assert value == getattr(whole, field) or (field == "bucket" and header in ignored)
        elif header in ignored:
            assert value is None
        elif field in ("experiment", "assigned"):
            assert value == odd[header] and value.isascii() and 0 < len(value) <= 40
    assert set(ignored) <= set(odd) and len(ignored) == len(set(ignored))
    assert exposure.bucket is None or 0 <= exposure.bucket < BUCKETS
    assert exposure.unit is None or 0 <= exposure.unit < 2**64


@pytest.mark.parametrize("missing", ["x-experiment", "x-arm", "x-enrolled"])
def test_an_incomplete_decision_is_counted(missing: str) -> None:
    exposure, ignored = read({name: value for name, value in SENT.items() if name != missing})
    assert getattr(exposure, FIELD[missing]) is None and ignored == [missing]


def test_the_unit_is_hashed_with_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    public = read(SENT)[0].unit
    assert read(SENT, user_ids="none")[0].unit is None, "it would be an id that anyone can compute"
    monkeypatch.setenv(SALT, "secret")
    hidden = read(SENT, user_ids="none")[0].unit
    assert (
        hidden not in (None, public) and hidden == read(SENT | {"x-experiment": "other", "x-ab-salt": "other"})[0].unit
    )
    monkeypatch.setenv(SALT, "another")
    assert read(SENT)[0].unit not in (public, hidden)


@pytest.mark.parametrize(
    ("sent", "host", "shadow"),
    [
        ("shop", "shop-shadow", True), ("127.0.0.1:80", "127.0.0.1-shadow:80", True), ("shop:80", "shop:80-shadow", True),
        ("my-shadow", "my-shadow", False), ("my-shadow", "my-shadow-shadow", True), ("shop", "shop", False), (None, "shop-shadow", False),
    ],
)  # fmt: skip
def test_a_shadow_is_what_the_gateway_copied(sent: str | None, host: str, shadow: bool) -> None:
    assert is_shadow({"host": host, **({} if sent is None else {"x-ab-host": sent})}) is shadow


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*SENT, "x-request-id"]), ODD))
def test_no_header_fails_a_request(small: Path, tmp_path_factory: pytest.TempPathFactory, odd: dict[str, str]) -> None:
    folder, registry = tmp_path_factory.mktemp("served"), CollectorRegistry()
    config = ServingConfig(
        arm="treatment", access_log=False, prediction_log=PredictionLogConfig(folder=str(folder), sample=1.0)
    )
    log = PredictionLog(SCHEMA, config.prediction_log)
    service = make_service(small / "bundle", config, registry, log=log)
    reply = service.answer(json.dumps(BODY).encode(), SENT | odd)
    service.close()
    assert reply.status == 200 and reply.headers[SERVED_ARM] == "treatment"
    rows = [row for part in folder.glob(PART) for row in pq.read_table(part).to_pylist()]
    assert [r["log_place"] for r in rows] == [0, 1, 2], "one position for each row of the body"
    expected, ignored = read(SENT | odd)
    logged = [
        (r["log_experiment"], r["log_assigned_arm"], r["log_enrolled"], r["log_unit"], r["log_bucket"]) for r in rows
    ]
    assert set(logged) == {(expected.experiment, expected.assigned, expected.enrolled, expected.unit, expected.bucket)}
    counted = {
        sample.labels["header"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "thinktwice_experiment_headers_ignored_total"
    }
    assert counted == dict.fromkeys(ignored, 1.0)
    assert "user-1" not in {value for r in rows for value in r.values() if isinstance(value, str)}


def test_enrolled_requests_are_logged_whatever_the_sample(small: Path, tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, PredictionLogConfig(folder=str(tmp_path), sample=1e-9))
    service = make_service(small / "bundle", ServingConfig(arm="treatment"), log=log)
    for number, headers in enumerate([SENT, SENT | {"x-enrolled": "0"}, SENT | {"host": "shop-shadow"}, {}]):
        service.answer(json.dumps(BODY).encode(), headers | {"x-request-id": f"r{number}"})
    service.close()
    rows = [row for part in tmp_path.glob(PART) for row in pq.read_table(part).to_pylist()]
    assert {r["log_request_id"] for r in rows} == {"r0"}
