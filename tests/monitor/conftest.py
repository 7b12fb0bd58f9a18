"""A small model whose parts are random rows of one distribution, and what it served, for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from serving.telemetry.prediction_log import PredictionLog, PredictionLogConfig
from tests.serving.fakes import make_service
from tests.serving.small import SCHEMA, make_bundle, training_rows
from thinktwice.data.splits import SplitSpec

FIELDS = [f.name for f in SCHEMA.model_fields_in_order()]
Changed = Callable[..., Path]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``bundle/``; nobody writes into it."""
    folder = tmp_path_factory.mktemp("even")
    make_bundle(folder, split=SplitSpec(kind="random", valid=0.3, test=0.1))
    return folder


def serve(bundle: Path, folder: Path, frame: pl.DataFrame) -> Path:
    """Every row of a frame served by the real service as a request of its own, and logged."""
    log = PredictionLog(SCHEMA, PredictionLogConfig(folder=str(folder), sample=1.0, queue=10_000))
    service = make_service(bundle, log=log)
    service.scorer.parser._clock = lambda: 0.0
    for row in frame.select(FIELDS).to_dicts():
        reply = service.answer(json.dumps({"instances": [{"rows": [row]}]}).encode(), {})
        assert reply.status == 200, reply.body
    service.close()
    assert log.counts["written"] == frame.height
    return folder


@pytest.fixture(scope="session")
def usual(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other rows of the distribution of training, at the same hours."""
    frame = training_rows(800)
    times = frame.head(400).sample(fraction=1.0, shuffle=True, seed=0).select("hour", "weekday")
    return serve(small / "bundle", tmp_path_factory.mktemp("usual"), frame.tail(400).with_columns(*times))


@pytest.fixture
def changed(usual: Path, tmp_path: Path) -> Changed:
    """Write the usual log again with columns that differ."""

    def write(name: str, *expressions: pl.Expr) -> Path:
        out = tmp_path / name
        out.mkdir()
        frame = pl.concat([pl.read_parquet(part) for part in sorted(usual.glob("*.parquet"))])
        frame.with_columns(*expressions).write_parquet(out / "served-1.parquet")
        return out

    return write
