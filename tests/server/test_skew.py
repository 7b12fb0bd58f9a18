"""Skew on a real store: none where the predictor served what the store says, and each injected bug by its field."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from feature_repo.cli import skew
from feature_repo.skew import measure_skew
from serving.open_reader import FeatureConfig, open_reader
from serving.prediction_log import PredictionLog, PredictionLogConfig
from serving.scorer import Scorer
from tests.serving.fakes import make_service
from tests.serving.small import FEATURE_SERVICE, SCHEMA
from thinktwice.bundle import load_bundle
from thinktwice.champion import Champion
from thinktwice.errors import DataError, FeatureStoreError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def log(champion: Champion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real scorer with the real store served."""
    folder = tmp_path_factory.mktemp("served")
    writer = PredictionLog(SCHEMA, PredictionLogConfig(folder=str(folder), sample=1.0))
    service = make_service(champion.bundle_dir, log=writer)
    bundle = load_bundle(champion.bundle_dir)
    reader = open_reader(
        champion.feature_store_dir, FEATURE_SERVICE, SCHEMA, bundle.encoder, FeatureConfig(timeout_ms=10_000)
    )
    service.scorer = Scorer(bundle, reader)
    for user in range(20):
        items = [f"i{(7 * user + k) % 60}" for k in range(8)] + ["never seen"]
        body = {"instances": [{"user_id": f"u{user}", "candidates": items, "context": {"slot": "s1", "bid": 0.5}}]}
        assert service.answer(json.dumps(body).encode(), {}).status == 200
    raw = service.answer(b'{"instances": [{"rows": [{}]}]}', {})
    assert raw.status == 200
    service.close()
    return folder


def changed(log: Path, out: Path, *expressions: pl.Expr) -> Path:
    out.mkdir()
    frame = pl.concat([pl.read_parquet(part) for part in sorted(log.glob("*.parquet"))])
    frame.with_columns(*expressions).write_parquet(out / "served-1.parquet")
    return out


def test_what_the_store_says_is_what_was_served(log: Path, champion: Champion) -> None:
    report = measure_skew(log, champion.feature_store_dir)
    assert report.rows == 180, "raw rows are not compared"
    names = {
        f.name for f in SCHEMA.model_fields_in_order() if f.origin in ("attribute", "vector", "statistic", "sequence")
    }
    assert {f.name for f in report.fields} == names - {"slot", "bid"}
    assert {f.name: f.mismatches for f in report.fields if f.mismatches} == {}
    assert all(f.rows == 180 for f in report.fields)


def test_a_shifted_number_and_swapped_words_are_found(log: Path, champion: Champion, tmp_path: Path) -> None:
    wrong = changed(
        log,
        tmp_path / "wrong",
        pl.col("price") + 1,
        pl.when(pl.col("genre") == "g1").then(pl.lit("g2")).otherwise(pl.col("genre")).alias("genre"),
        pl.col("history").list.reverse(),
        pl.lit(None, pl.List(pl.Float32)).alias("cover"),
    )
    report = measure_skew(wrong, champion.feature_store_dir)
    rates = {f.name: f.rate for f in report.fields}
    by_name = {f.name: f for f in report.fields}
    assert by_name["price"].mismatches == 160, "all but the 20 rows of an unknown item"
    assert 0.1 < rates["genre"] < 0.4
    assert rates["history"] > 0.3
    assert by_name["cover"].only_later == by_name["cover"].mismatches == 160
    assert rates["gender"] == rates["user_views_all"] == 0
    worst = report.worst()
    assert worst is not None and worst.rate == max(rates.values()) > 0.88


def test_statistics_of_another_day_are_found(log: Path, champion: Champion, tmp_path: Path) -> None:
    """Served a year late as if it were then: the store knows nothing that early."""
    early = changed(log, tmp_path / "early", pl.col("log_at") - timedelta(days=3650))
    report = measure_skew(early, champion.feature_store_dir)
    by_name = {f.name: f for f in report.fields}
    assert by_name["price"].only_served == 160


def test_rows_served_with_defaults_are_counted_apart(log: Path, champion: Champion, tmp_path: Path) -> None:
    out = changed(
        log,
        tmp_path / "late",
        pl.when(pl.col("log_user_id") == "u3")
        .then(pl.lit(["user"]))
        .otherwise(pl.col("log_defaulted"))
        .alias("log_defaulted"),
        pl.when(pl.col("log_user_id") == "u3").then(None).otherwise(pl.col("gender")).alias("gender"),
    )
    report = measure_skew(out, champion.feature_store_dir)
    assert report.defaulted == {"user": 9, "item": 0}
    by_name = {f.name: f for f in report.fields}
    assert (by_name["gender"].rows, by_name["gender"].mismatches) == (171, 0)
    assert by_name["genre"].rows == 180


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(skew)
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "140"})
    return done.exit_code, done.output + str(done.exception or "")


def test_the_command(log: Path, champion: Champion, state: Path, tmp_path: Path) -> None:
    code, text = run("--log", str(log), "--state", str(state), "--json", str(tmp_path / "skew.json"))
    assert (code, "no field is skewed" in text) == (0, True), text
    value = json.loads((tmp_path / "skew.json").read_text())
    assert value["rows"] == 180 and not any(f["skewed"] for f in value["fields"])
    wrong = changed(log, tmp_path / "wrong", pl.col("price") * 1.001)
    code, text = run("--log", str(wrong), "--store", str(champion.feature_store_dir))
    assert (code, "skewed: price" in text) == (1, True), text


def test_what_cannot_be_compared_is_said(log: Path, champion: Champion, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prediction log"):
        measure_skew(tmp_path, champion.feature_store_dir)
    with pytest.raises(FeatureStoreError, match="is no feature store"):
        measure_skew(log, tmp_path)
    anonymous = changed(log, tmp_path / "anonymous", pl.lit(None, pl.String).alias("log_user_id"))
    with pytest.raises(DataError, match="have no user id"):
        measure_skew(anonymous, champion.feature_store_dir)
