"""Drift: silent on traffic like that of training, loud on an injected change, by its field and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
from scipy.stats import entropy
from typer.testing import CliRunner

from serving.prediction_log import PredictionLog, PredictionLogConfig
from tests.serving.fakes import make_service
from tests.serving.small import SCHEMA, training_rows
from thinktwice.bundle import MANIFEST_FILE, PROFILE_FILE, load_bundle
from thinktwice.errors import BundleError, DataError
from thinktwice.files import read_json
from thinktwice.monitor.cli import drift
from thinktwice.monitor.drift import DriftReport, _moved
from thinktwice.monitor.from_log import drift_of_log
from thinktwice.monitor.profile import SCORE_BINS, Profile, histogram

FIELDS = [f.name for f in SCHEMA.model_fields_in_order()]


def logged(small: Path, folder: Path, frame: pl.DataFrame) -> Path:
    """Every row of a frame served as a request of its own."""
    log = PredictionLog(SCHEMA, PredictionLogConfig(folder=str(folder), sample=1.0, queue=10_000))
    service = make_service(small / "bundle", log=log)
    service.scorer.parser._clock = lambda: 0.0
    for row in frame.select(FIELDS).to_dicts():
        body = {"instances": [{"rows": [row]}]}
        reply = service.answer(json.dumps(body).encode(), {})
        assert reply.status == 200, reply.body
    service.close()
    return folder


@pytest.fixture(scope="module")
def usual(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other rows of the distribution of training, at the same hours."""
    frame = training_rows(800)
    times = frame.head(400).sample(fraction=1.0, shuffle=True, seed=0).select("hour", "weekday")
    return logged(small, tmp_path_factory.mktemp("usual"), frame.tail(400).with_columns(*times))


def changed(usual: Path, out: Path, *expressions: pl.Expr) -> Path:
    out.mkdir()
    frame = pl.concat([pl.read_parquet(part) for part in sorted(usual.glob("*.parquet"))])
    frame.with_columns(*expressions).write_parquet(out / "served-1.parquet")
    return out


def by_name(report: DriftReport) -> dict[str, float]:
    return {m.name: m.psi for m in (*report.fields, *report.scores)}


def test_traffic_like_training_has_not_drifted(small: Path, usual: Path) -> None:
    report = drift_of_log(usual, small / "bundle")
    assert (report.rows, report.requests) == (400, 400)
    assert {m.name for m in report.fields} == set(FIELDS)
    assert report.drifted == []
    assert all(m.noise > 0 and 0 <= m.js <= 1 for m in report.fields)


def test_a_field_that_moved_is_named_and_no_other(small: Path, usual: Path, tmp_path: Path) -> None:
    moved = changed(
        usual,
        tmp_path / "moved",
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
    fields = {m.name for m in report.fields if m.drifted}
    assert fields == {"slot", "bid", "genre", "cover", "history"}
    genre = next(m for m in report.fields if m.name == "genre")
    assert genre.before == 0 and genre.now == pytest.approx(0.4, abs=0.1), "values that training never saw"
    cover = next(m for m in report.fields if m.name == "cover")
    assert cover.now - cover.before == pytest.approx(0.5, abs=0.02), "missing vectors"


def test_rarer_values_and_other_scores_show(small: Path, usual: Path, tmp_path: Path) -> None:
    unknown = [
        pl.concat_str(pl.lit("new-"), pl.col(name)).alias(name) for name in ("user_id", "item_id", "genre", "gender")
    ]
    moved = changed(
        usual, tmp_path / "rare", *unknown, pl.lit(0.99).alias("log_probability"), pl.lit(4).alias("log_num_paths")
    )
    report = drift_of_log(moved, small / "bundle")
    drifted = {m.name for m in report.scores if m.drifted}
    assert drifted == {"probability", "missing support"}
    support = next(m for m in report.scores if m.name == "missing support")
    assert support.now > support.before
    assert report.trigger_rate[1] == 1.0 > report.trigger_rate[0]


def test_psi_and_distance_are_what_they_are_elsewhere() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    found = _moved("x", "categorical", p, q, 10**9, 10**9, 0, 0)
    assert found.psi == pytest.approx(entropy(p, q) + entropy(q, p), rel=1e-6)
    m = (p + q) / 2
    assert found.js == pytest.approx(((entropy(p, m, 2) + entropy(q, m, 2)) / 2) ** 0.5, rel=1e-6)
    assert found.drifted


def test_noise_is_what_chance_exceeds_once_in_a_thousand() -> None:
    rng = np.random.default_rng(1)
    p = np.array([0.5, 0.3, 0.15, 0.05])
    above = 0
    for _ in range(2000):
        one, two = rng.multinomial(800, p) / 800, rng.multinomial(500, p) / 500
        found = _moved("x", "categorical", one, two, 800, 500, 0, 0)
        above += found.psi > found.noise
        assert not found.drifted
    assert above <= 10


def test_the_profile_is_in_the_bundle_and_its_shares_are_shares(small: Path) -> None:
    profile = Profile.model_validate(read_json(small / "bundle" / PROFILE_FILE))
    assert load_bundle(small / "bundle").manifest.files[PROFILE_FILE].size < 100_000
    for field in profile.fields:
        assert sum(field.shares) + field.missing == pytest.approx(1.0)
        assert len(field.values) == len(field.shares)
    for shares in (profile.probability, profile.uncertainty, profile.missing_support):
        assert len(shares) == SCORE_BINS and sum(shares) == pytest.approx(1.0)
    assert 0 < profile.trigger_rate < 0.6
    assert histogram(np.array([0.0, 1.0, 1.5])) == pytest.approx([1 / 3, *[0.0] * (SCORE_BINS - 2), 2 / 3])


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(drift)
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "140"})
    return done.exit_code, done.output + str(done.exception or "")


def test_the_command(small: Path, usual: Path, tmp_path: Path) -> None:
    bundle = str(small / "bundle")
    code, text = run("--log", str(usual), "--bundle", bundle, "--json", str(tmp_path / "drift.json"))
    assert code == 0 and "nothing has drifted" in text and "second opinion" in text, text
    value = json.loads((tmp_path / "drift.json").read_text())
    assert value["rows"] == 400 and not any(m["drifted"] for m in value["fields"])
    moved = changed(usual, tmp_path / "moved", pl.lit("s9").alias("slot"))
    code, text = run("--log", str(moved), "--bundle", bundle)
    assert code == 1 and "drifted: slot" in text, text


def test_what_cannot_be_compared_is_said(small: Path, usual: Path, tmp_path: Path) -> None:
    other = changed(usual, tmp_path / "other", pl.lit("f" * 64).alias("log_bundle_hash"))
    with pytest.raises(DataError, match="holds no row of small-2026"):
        drift_of_log(other, small / "bundle")
    shutil.copytree(small / "bundle", tmp_path / "old")
    (tmp_path / "old" / PROFILE_FILE).unlink()
    manifest = read_json(tmp_path / "old" / MANIFEST_FILE)
    del manifest["files"][PROFILE_FILE]
    (tmp_path / "old" / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert load_bundle(tmp_path / "old"), "a bundle of before still loads"
    with pytest.raises(BundleError, match="has no profile"):
        drift_of_log(usual, tmp_path / "old")
