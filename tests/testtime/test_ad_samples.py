"""Smoke: real ad clicks go through the whole fit. The samples are far too small to say what anything is worth."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.testtime import world
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.models import load_model
from thinktwice.schema import parse_schema
from thinktwice.selection.fit import fit_test_time
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.store import load_test_time

MODES = {"calibrated by support", "uttsi", "uttsi, exact", "matt", "sgctr"}  # gate and filter may fit to nothing


def training_set(folder: Path, sample: Path, categories: list[str]) -> TrainingSet:
    rows = pl.read_parquet(sample)
    start = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
    rows = rows.select(
        pl.Series("row_id", [f"{i:016x}" for i in range(rows.height)]),
        pl.Series(
            "event_time",
            [start + dt.timedelta(seconds=i) for i in range(rows.height)],
            dtype=pl.Datetime("us", "UTC"),
        ),
        pl.col("label").cast(pl.Int8),
        *(pl.col(c).cast(pl.String) for c in categories),
    )
    fields = "\n".join(f"  - {{name: {c}}}" for c in categories)
    schema = parse_schema(f"name: ads\ntime: {{column: event_time, format: us}}\nfields:\n{fields}\n", where="test")
    build_training_set(rows.to_arrow(), schema, folder, SplitSpec(kind="random", valid=0.3, test=0.3))
    return load_training_set(folder)


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("criteo-8k", [f"C{i}" for i in (1, 3, 4, 7, 10, 12, 16, 21)]),
        ("avazu-9k", ["site_id", "app_id", "device_id", "device_ip", "device_model", "C14", "C17"]),
    ],
)
def test_a_sample_of_real_ad_clicks_is_fitted_and_scored(
    name: str, categories: list[str], shared: Path, tmp_path: Path
) -> None:
    data = training_set(tmp_path / "set", shared / "data" / name / "ctr.parquet", categories)
    model = world.train_model(data, tmp_path / "model", epochs=1)
    found = fit_test_time(data.folder, model, None, tmp_path / "out")
    assert {c.name for c in found.report.candidates} >= MODES
    assert found.sentence.startswith("Test-time work ships")
    assert set(found.report.count_auc) == set(categories)
    shipped = load_test_time(tmp_path / "out")

    loaded, info = load_model(model)

    trial_model = TrialModel(loaded, info.calibration, shipped.reliability, shipped.extras)
    test = data.part("test")
    for candidate in found.report.candidates:
        logit, passes = trial_model.logits(candidate.config, test)
        assert np.isfinite(logit).all()
        assert passes >= 1
