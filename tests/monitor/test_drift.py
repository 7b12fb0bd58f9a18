"""Drift: silent on traffic like that of training, loud on an injected change, by its field and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from serving.telemetry.prediction_log import PredictionLog, PredictionLogConfig
from tests.monitor.conftest import FIELDS, Changed, serve
from tests.serving.fakes import make_service
from tests.serving.small import PLAIN_SCHEMA, SCHEMA, make_bundle, plain_rows, training_rows
from thinktwice.errors import BundleError, DataError
from thinktwice.files import read_json
from thinktwice.monitor.cli import drift
from thinktwice.monitor.drift import DriftReport, Shift, drift_of_log
from thinktwice.release.bundle import MANIFEST_FILE, load_bundle
from thinktwice.release.profile import PROFILE_FILE, BundleProfile, read_profile


def found(report: DriftReport) -> dict[str, Shift]:
    return {m.title: m for m in report.moved}


def test_traffic_like_training_has_not_drifted(small: Path, usual: Path) -> None:
    report = drift_of_log(usual, small / "bundle")
    assert (report.rows, report.matching, report.requests, report.clusters) == (400, 400, 400, 30)
    assert {m.name for m in report.moved if m.what == "values"} == set(FIELDS)
    assert {m.name for m in report.moved if m.what == "support"} == {"user_id", "item_id", "gender", "genre", "slot"}
    assert report.drifted == []
    judged = [m for m in report.moved if not m.unjudged]
    assert len(judged) > 15
    assert np.mean([m.nearer.psi for m in judged]) < 1.5 * np.mean([m.nearer.expected for m in judged])
    for m in report.moved:
        for shares in (m.train, m.valid, m.live):
            assert shares == () or (sum(shares) == pytest.approx(1) and len(shares) == len(m.labels))


def test_a_field_that_moved_is_named_and_no_other(small: Path, changed: Changed) -> None:
    moved = changed(
        "moved",
        pl.when(pl.col("slot") == "s0").then(pl.lit("s1")).otherwise(pl.col("slot")).alias("slot"),
        pl.col("bid") * 0.2,
        pl.when(pl.col("genre").is_in(["g1", "g2"]))
        .then(pl.lit("brand new"))
        .otherwise(pl.col("genre"))
        .alias("genre"),
        pl.when(pl.int_range(pl.len()) % 2 == 0).then(None).otherwise(pl.col("cover")).alias("cover"),
        pl.col("history").list.head(0),
    )
    report = drift_of_log(moved, small / "bundle")
    assert {m.name for m in report.drifted if m.what == "values"} == {"slot", "bid", "genre", "cover", "history"}
    assert {m.name for m in report.drifted if m.what == "support"} == {"genre"}, "a new value was never trained"
    by_title = found(report)
    assert by_title["genre"].facts[1] == ("unknown", 0.0, pytest.approx(0.4, abs=0.1))
    word, before, now = by_title["cover"].facts[0]
    assert word == "missing" and now - before == pytest.approx(0.5, abs=0.02)
    word, before, now = by_title["history"].facts[0]
    assert word == "empty" and before < 0.4 and now == 1
    assert by_title["slot"].nearer.js > 0.3


def test_missing_values_are_told_apart_from_unknown_ones(small: Path, changed: Changed) -> None:
    """Training saw no row without a genre, so the encoder knows no value for it."""
    some = pl.int_range(pl.len()) % 4 == 0
    moved = changed("gone", pl.when(some).then(None).otherwise(pl.col("genre")).alias("genre"))
    genre = found(drift_of_log(moved, small / "bundle"))["genre"]
    assert genre.facts == (("missing", 0.0, 0.25), ("unknown", 0.0, 0.0))
    assert genre.drifted()
    assert genre.labels[:2] == ("unknown", "missing") and genre.labels[-1] == "other values"


def test_vectors_of_another_length_show(small: Path, changed: Changed) -> None:
    longer = changed("longer", pl.col("cover").list.eval(pl.element() * 7.0))
    assert {m.name for m in drift_of_log(longer, small / "bundle").drifted} == {"cover"}


def test_rarer_values_and_other_scores_show(small: Path, changed: Changed) -> None:
    unknown = [
        pl.when(pl.int_range(pl.len()) % 2 == 0)
        .then(pl.concat_str(pl.lit("new-"), pl.col(name)))
        .otherwise(pl.col(name))
        .alias(name)
        for name in ("item_id", "genre", "gender")
    ]
    moved = changed("rare", *unknown, pl.lit(0.99).alias("log_probability"), pl.lit(4, pl.Int32).alias("log_num_paths"))
    report = drift_of_log(moved, small / "bundle")
    drifted = {m.title for m in report.drifted}
    assert drifted >= {"probability", "second opinion", "item_id (how often trained)", "genre (how often trained)"}
    assert "item_id" not in drifted, "new items come by nature"
    assert not drifted & {"slot", "bid", "uncertainty", "user_id (how often trained)"}
    by_title = found(report)
    word, before, now = by_title["second opinion"].facts[0]
    assert (word, now) == ("share of rows", 1.0) and 0 < before < 0.6
    assert by_title["item_id (how often trained)"].facts[0][2] == pytest.approx(0.5, abs=0.02)
    assert by_title["item_id (how often trained)"].live[0] == pytest.approx(0.5, abs=0.02)
    mean = by_title["missing support"].facts[0]
    assert mean[2] > mean[1]


def test_what_looks_like_validation_has_not_drifted(small: Path, tmp_path: Path) -> None:
    """Statistics grow over a log: by time, validation is not like training, and traffic after it is like validation."""
    rows = training_rows(1200).with_columns((pl.int_range(pl.len()) / 400 + pl.col("bid")).alias("bid"))
    make_bundle(tmp_path / "grown", frame=rows.head(800))
    late = serve(tmp_path / "grown" / "bundle", tmp_path / "late", rows.slice(640, 160))
    report = drift_of_log(late, tmp_path / "grown" / "bundle")
    bid = found(report)["bid"]
    assert bid.from_train is not None and bid.from_train.psi > 1 > bid.from_valid.psi
    assert not bid.drifted()
    stuck = serve(tmp_path / "grown" / "bundle", tmp_path / "stuck", rows.tail(300).with_columns(bid=0.9))
    assert "bid" in {m.name for m in drift_of_log(stuck, tmp_path / "grown" / "bundle").drifted}, "like neither"


def test_rows_of_one_request_are_one_piece_of_evidence(small: Path, usual: Path, tmp_path: Path) -> None:
    """Forty users ask once, with forty candidates each: 1,600 rows say no more of the users than forty do."""
    frame = pl.concat([pl.read_parquet(part) for part in sorted(usual.glob("*.parquet"))])
    folder = tmp_path / "wide"
    folder.mkdir()
    wide = pl.concat([frame.head(40)] * 40).with_columns(
        pl.concat_str(pl.lit("u"), pl.col("log_request_id")).alias("user_id")
    )
    items = frame.sample(wide.height, with_replacement=True, seed=1).select("item_id", "genre", "price", "cover")
    wide.with_columns(*items).write_parquet(folder / "served-1.parquet")
    report = drift_of_log(folder, small / "bundle")
    by_title = found(report)
    assert (report.rows, report.clusters) == (1600, 40)
    slot, genre = by_title["slot"].from_train, by_title["genre"].from_train
    assert slot is not None and genre is not None and slot.noise > 2 * genre.noise
    assert not by_title["slot"].drifted() and not by_title["bid"].drifted() and not by_title["genre"].drifted()


def test_too_few_requests_are_not_judged(small: Path, usual: Path, tmp_path: Path) -> None:
    frame = pl.concat([pl.read_parquet(part) for part in sorted(usual.glob("*.parquet"))])
    (tmp_path / "few").mkdir()
    frame.head(12).with_columns(pl.lit("s9").alias("slot")).write_parquet(tmp_path / "few" / "served-1.parquet")
    report = drift_of_log(tmp_path / "few", small / "bundle")
    assert report.drifted == [] and all(m.unjudged for m in report.moved)
    code, text = run("--log", str(tmp_path / "few"), "--bundle", str(small / "bundle"))
    assert code == 0 and "nothing was judged: only " in text


def test_hidden_user_ids_are_left_out(small: Path, tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, PredictionLogConfig(folder=str(tmp_path / "log"), sample=1.0, user_ids="none"))
    service = make_service(small / "bundle", log=log)
    for number in range(40):
        body = {"instances": [{"user_id": f"u{number % 30}", "candidates": ["i1", "i2"]}]}
        assert service.answer(json.dumps(body).encode(), {}).status == 200
    service.close()
    report = drift_of_log(tmp_path / "log", small / "bundle")
    assert "user_id" not in {m.name for m in report.moved if m.what == "values"}
    assert report.clusters == 40, "requests, where users cannot be told"


def test_a_log_without_users_and_items(tmp_path: Path) -> None:
    make_bundle(tmp_path, PLAIN_SCHEMA)
    log = PredictionLog(PLAIN_SCHEMA, PredictionLogConfig(folder=str(tmp_path / "log"), sample=1.0))
    service = make_service(tmp_path / "bundle", log=log)
    service.scorer.reader = None
    service.scorer.parser._online = False
    for row in plain_rows(60).select("site", "bid").to_dicts():
        assert service.answer(json.dumps({"instances": [{"rows": [row]}]}).encode(), {}).status == 200
    service.close()
    report = drift_of_log(tmp_path / "log", tmp_path / "bundle")
    assert {m.name for m in report.moved if m.what == "values"} == {"site", "bid"}
    assert report.clusters == 60


def test_only_the_rows_of_the_bundle_and_of_the_time_are_compared(
    small: Path, usual: Path, changed: Changed, tmp_path: Path
) -> None:
    folder = changed(
        "both",
        pl.when(pl.int_range(pl.len()) < 300)
        .then(pl.lit("f" * 64))
        .otherwise(pl.col("log_bundle_hash"))
        .alias("log_bundle_hash"),
        pl.lit("v2").alias("log_model_version"),
    )
    # Another model with other fields wrote into the same folder.
    (part,) = sorted(usual.glob("*.parquet"))
    pl.read_parquet(part).drop("genre").write_parquet(folder / "served-2.parquet")
    report = drift_of_log(folder, small / "bundle", most_rows=50)
    assert report.matching == 100 and 20 < report.rows < 80
    assert report.others == {"v2": 300, "small-20260101-abc": 400}
    assert drift_of_log(folder, small / "bundle", most_rows=50).rows == report.rows
    middle = pl.read_parquet(part)["log_at"].sort()[200]
    assert drift_of_log(usual, small / "bundle", since=middle).rows == 200


def test_the_profile_is_in_the_bundle_and_small(small: Path) -> None:
    profile = read_profile(small / "bundle")
    assert load_bundle(small / "bundle").manifest.files[PROFILE_FILE].size < 100_000
    assert BundleProfile.model_validate(read_json(small / "bundle" / PROFILE_FILE)) == profile
    assert [f.name for f in profile.fields] == FIELDS
    text = (small / "bundle" / PROFILE_FILE).read_text(encoding="utf-8")
    assert "u1" not in text and "i1" not in text, "bins are told by the vocabulary, no id is written again"
    for f in profile.fields:
        assert sum(f.train.counts) == profile.train_rows == 229 and sum(f.valid.counts) == profile.valid_rows == 136
        assert f.support is None or sum(f.support.counts) == 136
        assert 1 <= f.train.effective <= 229
    assert {s.name for s in profile.scores} == {"probability", "uncertainty", "missing support", "second opinion"}


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(drift)
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    return done.exit_code, done.output + str(done.exception or "")


def test_the_command(small: Path, usual: Path, changed: Changed, tmp_path: Path) -> None:
    bundle = str(small / "bundle")
    code, text = run("--log", str(usual), "--bundle", bundle, "--json", str(tmp_path / "drift.json"))
    assert code == 0 and "nothing has drifted" in text and "second opinion" in text, text
    value = json.loads((tmp_path / "drift.json").read_text())
    assert value["rows"] == 400 and value["drifted"] == [] and not any(m["drifted"] for m in value["moved"])
    moved = changed("moved", pl.lit("s9").alias("slot"))
    page = tmp_path / "drift.html"
    code, text = run("--log", str(moved), "--bundle", bundle, "--html", str(page))
    assert code == 1 and "drifted: slot" in text, text
    shown = page.read_text(encoding="utf-8")
    assert (
        "Drifted: slot" in shown
        and "<script" not in shown
        and "default-src 'none'" in shown
        and "//" not in shown.replace("</", "")
    )
    assert "u12" not in shown, "user ids are hashed on pages"
    code, text = run("--log", str(moved), "--bundle", bundle, "--fail-above", "1000")
    assert code == 0 and "nothing has drifted" in text


def test_what_cannot_be_compared_is_said(small: Path, usual: Path, changed: Changed, tmp_path: Path) -> None:
    other = changed("other", pl.lit("f" * 64).alias("log_bundle_hash"))
    with pytest.raises(DataError, match=r"contains no row to compare .it has 400 rows of other bundles.*small-2026"):
        drift_of_log(other, small / "bundle")
    with pytest.raises(DataError, match="contains no prediction log"):
        drift_of_log(tmp_path, small / "bundle")
    (other / "served-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"part .*served-0\.parquet of the prediction log cannot be read"):
        drift_of_log(other, small / "bundle")
    shutil.copytree(small / "bundle", tmp_path / "old")
    (tmp_path / "old" / PROFILE_FILE).unlink()
    manifest = read_json(tmp_path / "old" / MANIFEST_FILE)
    del manifest["files"][PROFILE_FILE]
    (tmp_path / "old" / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert load_bundle(tmp_path / "old"), "a bundle of before still loads"
    with pytest.raises(BundleError, match="has no profile"):
        drift_of_log(usual, tmp_path / "old")
    (tmp_path / "old" / PROFILE_FILE).write_text('{"rows": 1}')
    with pytest.raises(BundleError, match=r"has a profile.json that cannot be read"):
        read_profile(tmp_path / "old")


def test_a_file_that_is_no_part_of_the_log_is_named(small: Path, usual: Path, tmp_path: Path) -> None:
    for part in usual.glob("*.parquet"):
        shutil.copy(part, tmp_path)
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "served-9.parquet")
    with pytest.raises(
        DataError, match=r"served-9\.parquet is not a part of a prediction log \(no column 'log_request_id'\)"
    ):
        drift_of_log(tmp_path, small / "bundle")
