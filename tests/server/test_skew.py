"""Skew on a real store: none where the predictor served what the store says, and each injected bug by its field."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from feature_repo.cli import skew
from feature_repo.retrieve import features_at
from feature_repo.skew import measure_skew
from feature_repo.store import read_info
from serving.features.open_reader import FeatureConfig, open_reader
from serving.scorer import Scorer
from serving.telemetry.prediction_log import PredictionLog, PredictionLogConfig
from tests.serving.fakes import make_service
from tests.serving.small import FEATURE_SERVICE, PLAIN_SCHEMA, SCHEMA, START, clean_log
from tests.test_docs import ROOT, commands
from thinktwice.cli import main
from thinktwice.data.feature_tables import table_specs
from thinktwice.errors import DataError, FeatureStoreError
from thinktwice.monitor.record import HEAD, log_schema
from thinktwice.monitor.skew import SkewReport
from thinktwice.parquet import read_frame
from thinktwice.release.bundle import load_bundle
from thinktwice.release.champion import Champion

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
    frame = pl.concat([read_frame(part) for part in sorted(log.glob("*.parquet"))])
    frame.with_columns(*expressions).write_parquet(out / "served-1.parquet")
    return out


STATISTICS = {"user_views_all", "user_rate_all", "item_views_all", "item_rate_all"}
Replayed = Callable[[str, datetime, timedelta], Path]


@pytest.fixture
def replayed(log: Path, champion: Champion, tmp_path: Path) -> Replayed:
    """The log as if it had been served at ``at`` with the features of ``at + shift``, both within the log of the store."""

    def write(name: str, at: datetime, shift: timedelta) -> Path:
        frame = pl.concat([read_frame(part) for part in sorted(log.glob("*.parquet"))])
        frame = frame.filter(pl.col("log_item_id").is_not_null() & (pl.col("log_item_id") != "never seen"))
        rows = pa.table(
            {
                "row_id": [f"{i:016x}" for i in range(frame.height)],
                "event_time": pa.array([at + shift] * frame.height, pa.timestamp("us", "UTC")),
                "user_id": frame["log_user_id"].to_arrow().cast(pa.string()),
                "item_id": frame["log_item_id"].to_arrow().cast(pa.string()),
            }
        )
        store = champion.feature_store_dir
        then = pl.from_arrow(features_at(rows, store, read_info(store), table_specs(SCHEMA)))
        assert isinstance(then, pl.DataFrame)
        out = tmp_path / name
        out.mkdir()
        columns = [then[c].alias(c) for c in then.columns]
        frame.with_columns(*columns, pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("log_at")).write_parquet(
            out / "served-1.parquet"
        )
        return out

    return write


def by_name(report: SkewReport) -> dict[str, int]:
    return {f.name: f.mismatches for f in report.fields if f.mismatches}


def test_what_the_store_says_is_what_was_served(log: Path, champion: Champion) -> None:
    report = measure_skew(log, champion.feature_store_dir)
    assert report.rows == report.matching == 180 and report.others == {"small-20260101-abc": 1}, "raw rows are left out"
    names = {
        f.name for f in SCHEMA.model_fields_in_order() if f.origin in ("attribute", "vector", "statistic", "sequence")
    }
    assert {f.name for f in report.fields} == names - {"slot", "bid"}
    assert by_name(report) == {} and all(f.causes is None for f in report.fields)
    assert {(f.rows, f.cold) for f in report.fields if f.entity == "user"} == {(180, 0)}
    assert {(f.rows, f.cold) for f in report.fields if f.entity == "item"} == {(160, 20)}, "nobody knows 'never seen'"
    assert report.cold_known == {"user": 0, "item": 0}
    assert report.versions == {"small-20260101-abc": 180}


def test_a_shifted_number_and_swapped_words_are_found(log: Path, champion: Champion, tmp_path: Path) -> None:
    wrong = changed(
        log,
        tmp_path / "wrong",
        pl.col("price") + 0.25,
        pl.when(pl.col("genre") == "g1").then(pl.lit("g2")).otherwise(pl.col("genre")).alias("genre"),
        pl.col("history").list.reverse(),
        pl.lit(None, pl.List(pl.Float32)).alias("cover"),
    )
    report = measure_skew(wrong, champion.feature_store_dir)
    rates = {f.name: f.rate for f in report.fields}
    found = {f.name: f for f in report.fields}
    assert found["price"].mismatches == 160
    causes = found["price"].causes
    assert causes is not None and (causes.rows, causes.never) == (160, 160), "no item ever had such a price"
    assert 0.1 < rates["genre"] < 0.4
    assert rates["history"] > 0.3
    assert found["cover"].only_later == found["cover"].mismatches == 160 and found["cover"].causes is None
    assert rates["gender"] == rates["user_views_all"] == 0
    worst = report.worst()
    assert worst is not None and worst.rate == max(rates.values()) == 1
    assert [f.name for f in report.skewed(0.01)][-1] in ("genre", "history")


def test_features_of_that_moment_have_no_skew_within_the_log_either(replayed: Replayed, champion: Champion) -> None:
    out = replayed("same", START + timedelta(days=3, hours=1), timedelta(0))
    report = measure_skew(out, champion.feature_store_dir)
    assert report.rows == 160 and by_name(report) == {}


def test_features_of_the_day_before_are_told_to_be_late(replayed: Replayed, champion: Champion) -> None:
    out = replayed("late", START + timedelta(days=3, hours=1), timedelta(days=-1))
    found = {f.name: f for f in measure_skew(out, champion.feature_store_dir).fields}
    wrong = {name for name, f in found.items() if f.rate > 0.01}
    assert wrong >= STATISTICS and "gender" not in wrong
    for name in STATISTICS:
        causes = found[name].causes
        assert causes is not None and causes.rows == causes.old and causes.early == causes.never == 0
        assert causes.hours_old == pytest.approx(1.0), "replaced at midnight"


def test_features_of_the_day_after_are_told_to_be_from_the_future(replayed: Replayed, champion: Champion) -> None:
    out = replayed("early", START + timedelta(days=3, hours=1), timedelta(days=1))
    found = {f.name: f for f in measure_skew(out, champion.feature_store_dir).fields}
    for name in STATISTICS:
        causes = found[name].causes
        assert causes is not None and causes.rows == causes.early > 20
        assert causes.hours_early == pytest.approx(23.0)


def test_features_of_another_user_are_told_to_be_never_theirs(
    replayed: Replayed, champion: Champion, tmp_path: Path
) -> None:
    same = replayed("same", START + timedelta(days=4, hours=1), timedelta(0))
    columns = ["gender", "history", "user_views_all", "user_rate_all"]
    others = [pl.col(c).shift(8).alias(c) for c in columns]
    swapped = changed(same, tmp_path / "swapped", *others, pl.col("cover").shift(1).alias("cover"))
    report = measure_skew(swapped, champion.feature_store_dir)
    found = {f.name: f for f in report.fields}
    assert {f.name for f in report.skewed(0.1)} == {*columns, "cover"}
    causes = found["cover"].causes
    assert causes is not None and causes.never == causes.rows > 80
    causes = found["gender"].causes
    assert causes is not None and causes.never == causes.rows > 0
    causes = found["user_rate_all"].causes
    assert causes is not None and causes.never > 0.8 * causes.rows


def test_a_later_clean_log_takes_the_place_of_the_tables(
    log: Path, champion: Champion, tmp_path: Path, state: Path
) -> None:
    """The store was filled with 400 rows; served within the time of the next 200."""
    at = START + timedelta(minutes=17 * 500)
    within = changed(log, tmp_path / "within", pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("log_at"))
    assert by_name(measure_skew(within, champion.feature_store_dir)) == {}
    clean = tmp_path / "clean"
    clean.mkdir()
    clean_log(600).write_parquet(clean / "clean.parquet")
    (clean / "schema.yaml").write_text(SCHEMA.to_yaml(), encoding="utf-8")
    found = {f.name: f for f in measure_skew(within, champion.feature_store_dir, clean_dir=clean).fields}
    assert found["price"].mismatches == found["gender"].mismatches == 0
    assert found["user_views_all"].rate > 0.5
    (clean / "schema.yaml").write_text(PLAIN_SCHEMA.to_yaml(), encoding="utf-8")
    with pytest.raises(FeatureStoreError, match="describes other fields than the feature store"):
        measure_skew(within, champion.feature_store_dir, clean_dir=clean)


def test_rows_served_as_unknown_that_the_store_knows_are_no_excuse(
    log: Path, champion: Champion, tmp_path: Path
) -> None:
    """What a flushed online store looks like."""
    gone = [pl.lit(None).cast(pl.Float64).alias(c) for c in ("price", "item_views_all", "item_rate_all")]
    gone += [pl.lit(None, pl.String).alias("genre"), pl.lit(None, pl.List(pl.Float32)).alias("cover")]
    report = measure_skew(
        changed(log, tmp_path / "flushed", *gone, pl.lit(True).alias("log_cold_item")), champion.feature_store_dir
    )
    assert report.cold_known == {"user": 0, "item": 160}
    found = {f.name: f for f in report.fields}
    assert found["price"].only_later == found["price"].rows == 160


def test_statistics_of_another_day_are_found(log: Path, champion: Champion, tmp_path: Path) -> None:
    """Served a year late as if it were then: the store knows nothing that early."""
    early = changed(log, tmp_path / "early", pl.col("log_at") - timedelta(days=3650))
    found = {f.name: f for f in measure_skew(early, champion.feature_store_dir).fields}
    assert found["price"].only_served == 160


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
    found = {f.name: f for f in report.fields}
    assert (found["gender"].rows, found["gender"].mismatches, found["gender"].defaulted) == (171, 0, 9)
    assert found["genre"].rows == 160


def as_app() -> typer.Typer:
    app = typer.Typer()
    app.command()(skew)
    return app


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(as_app(), list(arguments), env={"COLUMNS": "160"})
    return done.exit_code, done.output + str(done.exception or "")


def test_the_command(log: Path, champion: Champion, state: Path, tmp_path: Path) -> None:
    code, text = run("--log", str(log), "--state", str(state), "--json", str(tmp_path / "skew.json"))
    assert (code, "no field is skewed" in text) == (0, True), text
    value = json.loads((tmp_path / "skew.json").read_text())
    assert value["rows"] == 180 and value["skewed"] == [] and not any(f["skewed"] for f in value["fields"])
    wrong = changed(log, tmp_path / "wrong", pl.col("price") * 1.001)
    page = tmp_path / "skew.html"
    code, text = run("--log", str(wrong), "--store", str(champion.feature_store_dir), "--html", str(page))
    assert (code, "skewed: price" in text, "never the value of this item" in text) == (1, True, True), text
    shown = page.read_text(encoding="utf-8")
    assert "Skewed: price" in shown and "<script" not in shown and "http" not in shown.replace("http-equiv", "")
    code, text = run("--log", str(wrong), "--state", str(state), "--max-mismatch", "1")
    assert (code, "no field is skewed: at most 100.00%" in text) == (0, True), text
    code, text = run("--log", str(log), "--state", str(state), "--since", "2100-01-01")
    assert code == 1 and "contains no row to compare" in text


def test_what_cannot_be_compared_is_said(log: Path, champion: Champion, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no prediction log"):
        measure_skew(tmp_path, champion.feature_store_dir)
    with pytest.raises(FeatureStoreError, match="is not a feature store"):
        measure_skew(log, tmp_path)
    anonymous = changed(log, tmp_path / "anonymous", pl.lit(None, pl.String).alias("log_user_id"))
    with pytest.raises(DataError, match="have no user id"):
        measure_skew(anonymous, champion.feature_store_dir)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (part,) = (p for p in log.glob("*.parquet"))
    table = pq.read_table(part).replace_schema_metadata(log_schema(SCHEMA, "hashed").metadata)
    pq.write_table(table, hidden / "served-1.parquet")
    with pytest.raises(DataError, match=r"user ids that are hashed: skew needs them as they are"):
        measure_skew(hidden, champion.feature_store_dir)


def test_every_command_of_the_page_runs(
    log: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "monitoring.md"
    lines = commands(page)
    assert {line.split()[1] for line in lines} == {"skew", "drift"}
    (tmp_path / ".thinktwice").mkdir()
    (tmp_path / ".thinktwice" / "state").symlink_to(state)
    (tmp_path / "served").symlink_to(log)
    (tmp_path / "later").mkdir()
    clean_log(400).write_parquet(tmp_path / "later" / "clean.parquet")
    (tmp_path / "later" / "schema.yaml").write_text(SCHEMA.to_yaml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr()}"
        shown = capsys.readouterr().out
        assert "no field is skewed" in shown or "nothing has drifted" in shown
    assert {"skew.html", "drift.html", "drift.json"} <= {p.name for p in tmp_path.iterdir()}


def test_the_page_names_all_settings_and_columns_of_the_log() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert [n for n in PredictionLogConfig.model_fields if f"`{n}`" not in page and n != "folder"] == []
    assert [n for n in HEAD if f"`{n}`" not in page] == []
    assert "`prediction_log.folder`" in page
