"""The build_training_set step as a plain function, and both feature steps under the local runner."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import feast  # noqa: F401 - sets warning filters on import, which must not happen within a test
import numpy as np
import polars as pl
import pytest

from components.features.build_training_set import component
from feature_repo.store import build, open_store, read_info, write_config
from tests.features.conftest import SCHEMA, CleanLog, make_rows, write_clean
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.data.training_set import load_training_set
from thinktwice.errors import DataError, FeatureStoreError
from thinktwice.release.feature_store import REDIS_ADDRESS, REDIS_PASSWORD
from thinktwice.schema import load_schema

pytestmark = [
    # KFP's and Feast's own, on import and in their calls of pandas and protobuf.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> CleanLog:
    return write_clean(tmp_path_factory.mktemp("log") / "clean", SCHEMA, make_rows(num_rows=200))


@pytest.fixture(scope="module")
def store(log: CleanLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    build(log.folder, folder, feature_version="step-1")
    return folder


def run(log: CleanLog, store: Path, out: Path, split: str) -> tuple[Any, dict[str, float]]:
    logged: dict[str, float] = {}
    artifact = SimpleNamespace(path=str(out), metadata={})
    component.build_training_set.python_func(
        clean=SimpleNamespace(path=str(log.folder)),
        feature_store=SimpleNamespace(path=str(store)),
        log=SimpleNamespace(path=str(log.folder.parent / "raw")),
        split=split,
        seed=3,
        code_version="test",
        training_set=artifact,
        metrics=SimpleNamespace(log_metric=lambda name, value: logged.update({name: value})),
    )
    return artifact, logged


@pytest.mark.parametrize("split", ["time", "random"])
def test_every_clean_row_ends_in_one_part(log: CleanLog, store: Path, tmp_path: Path, split: str) -> None:
    artifact, logged = run(log, store, tmp_path / "set", split)
    assert artifact.metadata["rows"] == 200
    assert sum(logged[f"rows_{part}"] for part in ("train", "valid", "test")) == 200
    opened = load_training_set(tmp_path / "set")
    ids = [i for part in ("train", "valid", "test") for i in opened.rows(part)["row_id"].to_list()]
    assert sorted(ids) == sorted(r["row_id"] for r in log.rows)
    train = opened.part("train")
    assert len(train) == logged["rows_train"]
    assert set(train.sequences) == {"last_clicks", "last_genres"}
    assert train.vectors["picture"].shape == (logged["rows_train"], 3)


def test_a_column_of_the_raw_log_decides(log: CleanLog, store: Path, tmp_path: Path) -> None:
    parts = {row["row_id"]: ("Train", "dev", "test")[n % 3] for n, row in enumerate(log.rows)}
    raw = log.folder.parent / "raw"
    raw.mkdir(exist_ok=True)
    broken = {"f" * 16: "no part"}  # a quarantined row is not asked
    columns = {"row_id": [*parts, *broken], "part": [*parts.values(), *broken.values()]}
    pl.DataFrame(columns).sample(fraction=1, shuffle=True, seed=0).write_parquet(raw / "log.parquet")
    run(log, store, tmp_path / "set", "column:part")
    opened = load_training_set(tmp_path / "set")
    assert opened.info.split.words == "by column 'part'"
    for part, word in (("train", "Train"), ("valid", "dev"), ("test", "test")):
        assert {parts[i] for i in opened.rows(part)["row_id"]} == {word}


def test_dates_outside_the_log_are_explained(log: CleanLog, store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leaves no rows for valid, test: the rows are of .* choose dates within them"):
        run(log, store, tmp_path / "set", "dates:2090-01-01,2090-02-01")


def test_a_schema_with_instant_statistics_gives_counters(tmp_path: Path) -> None:
    instant = "statistics: {windows_days: [2, 7, 0], instant: {feedback_delay: {click: 5, no_click: 60}}}"
    text = SCHEMA.replace("statistics: {windows_days: [2, 7, 0]}", instant)
    log = write_clean(tmp_path / "clean", text, make_rows(num_rows=200))
    build(log.folder, tmp_path / "store", feature_version="step-1")
    run(log, tmp_path / "store", tmp_path / "set", "random")
    opened, definition = load_training_set(tmp_path / "set"), definition_of(load_schema(log.folder / "schema.yaml"))
    assert definition is not None and "user_views_2d" in [f.name for f in opened.schema.model_fields_in_order()]
    # Attributes are those of the feature store at the row's instant, as a server would have them.
    joined = pl.concat(opened.rows(part) for part in ("train", "valid", "test")).sort("event_time")
    expected = np.concatenate(list(log_counters(log_rows(lambda name: joined[name], definition), definition, tmp_path)))
    place = {row_id: n for n, row_id in enumerate(joined["row_id"])}
    for part in ("train", "valid", "test"):
        counted = opened.counters(part)
        assert counted is not None
        np.testing.assert_array_equal(counted, expected[[place[row_id] for row_id in opened.rows(part)["row_id"]]])
    assert np.isfinite(expected).mean() > 0.3


def test_the_address_of_a_redis_is_not_needed(
    log: CleanLog, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster only the steps that write to Redis get its address and password."""
    other = tmp_path / "store"
    shutil.copytree(store, other)
    write_config(other, read_info(store).project, "redis", "")
    for name in (REDIS_ADDRESS, REDIS_PASSWORD):
        monkeypatch.delenv(name, raising=False)
    artifact, _ = run(log, other, tmp_path / "redis", "time")
    assert artifact.metadata["rows"] == 200
    with pytest.raises(FeatureStoreError, match=f"{REDIS_ADDRESS}, which is not set"), open_store(other):
        pass


def test_an_unknown_split_fails_the_step(log: CleanLog, store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'weekly' is unknown: choose one of time, random, column:NAME"):
        run(log, store, tmp_path / "set", "weekly")


@pytest.mark.pipeline
def test_both_steps_under_the_local_runner(log: CleanLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kfp import dsl, local
    from kfp.dsl import Dataset

    from components.features.build_training_set.component import build_training_set
    from components.features.materialize.component import materialize

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))

    @dsl.pipeline
    def features_only():  # KFP reads the annotation of the result, and a string is none
        clean = dsl.importer(artifact_uri=str(log.folder), artifact_class=Dataset, reimport=False)
        filled = materialize(
            clean=clean.output, feature_version="step-1", online_store="sqlite", redis_address="", code_version="test"
        )
        build_training_set(
            clean=clean.output,
            feature_store=filled.outputs["feature_store"],
            log=clean.output,
            split="time",
            seed=0,
            code_version="test",
        )

    features_only()
    (made,) = (tmp_path / "root").rglob("training_set.json")
    opened = load_training_set(made.parent)
    assert opened.info.rows == 200
    (description,) = (tmp_path / "root").rglob("feature_store.json")
    assert '"feature_service": "ctr_step_1"' in description.read_text()
