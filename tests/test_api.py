"""The public Python API: what it names, what it costs to import, and that it decides what the pipeline decides."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

import thinktwice
from components.data.validate.run import validate_log as pipeline_validates
from tests.pipelines.own_log import write_log
from tests.serving.small import small
from thinktwice.errors import BundleError, DataError, PipelineError, SchemaError
from thinktwice.files import write_json
from thinktwice.models import BACKBONES, register_backbone
from thinktwice.models.backbone import backbone_class
from thinktwice.models.config import CONFIGS, BackboneConfig
from thinktwice.models.deepfm import DeepFM

__all__ = ["small"]
ROOT = Path(__file__).resolve().parents[1]
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def test_every_public_name_is_there_and_documented():
    for name in thinktwice.__all__:
        value = getattr(thinktwice, name)
        assert name in dir(thinktwice)
        assert name == "__version__" or (value.__doc__ and value.__module__.startswith("thinktwice."))
    with pytest.raises(AttributeError, match="no attribute 'score'"):
        _ = thinktwice.score  # type: ignore[attr-defined]


def test_importing_it_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import thinktwice; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout))
    assert "thinktwice" in loaded
    assert {name.split(".")[0] for name in loaded} & {
        "torch",
        "numpy",
        "pydantic",
        "pyarrow",
        "polars",
        "duckdb",
    } == set()


@pytest.mark.long
def test_a_type_checker_sees_the_types(tmp_path: Path):
    (tmp_path / "user.py").write_text(
        textwrap.dedent(
            """
            import thinktwice
            bundle = thinktwice.open_bundle("bundle")
            scores = thinktwice.score_table(bundle, [{"a": 1}])
            reveal_type(scores.num_paths.shape)
            reveal_type(thinktwice.read_report(bundle).metrics)
            thinktwice.train_model("clean", "out", recipe=3)
            """
        )
    )
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--ignore-missing-imports", str(tmp_path / "user.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "dict[str, dict[str, float | None]]" in done.stdout
    assert 'Argument "recipe" to "train_model" has incompatible type' in done.stdout
    assert done.stdout.count("error:") == 1, done.stdout


LOGS: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "good": lambda log: log,
    "mostly broken": lambda log: log.with_columns(bought=pl.when(pl.int_range(pl.len()) % 3 > 0).then(7).otherwise("bought")),
    "all broken": lambda log: log.with_columns(bought=pl.lit(7)),
    "clicks only": lambda log: log.with_columns(bought=pl.lit(1)),
    "a copy of the label": lambda log: log.with_columns(price=pl.col("bought") * 5.0 + 1),
    "drift and a constant": lambda log: log.with_columns(
        device=pl.lit("phone"), color=pl.when(pl.int_range(pl.len()) < 700).then(pl.lit("red")).otherwise(pl.lit("blue"))
    ),
    "ids of floats": lambda log: log.with_columns(customer=pl.col("bought").cast(pl.Float64) + 2.0**53),
    "from the future": lambda log: log.with_columns(pl.col("shown_at") + pl.duration(days=3650)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Great Expectations' own
@pytest.mark.parametrize("name", LOGS)
def test_validation_decides_what_the_pipeline_decides(name: str, tmp_path: Path):
    log, schema = write_log(tmp_path, rows=1500)
    LOGS[name](pl.read_parquet(log)).write_parquet(log)
    thinktwice.ingest_log(log, tmp_path / "raw", schema=schema)
    ours = thinktwice.validate_log(tmp_path / "raw", tmp_path / "ours", as_of=NOW)
    theirs = pipeline_validates(
        tmp_path / "raw", *(tmp_path / part for part in ("clean", "quarantine", "report.html", "verdict")),
        run_id="r", as_of=NOW, ingested_at=NOW,
    )  # fmt: skip
    assert ours.passed == theirs.passed
    assert (ours.rows_in, ours.rows_clean, ours.rows_quarantined) == (
        theirs.split.rows_in, theirs.split.rows_clean, theirs.split.rows_quarantined,
    )  # fmt: skip
    broken = {f.rule: f.severity for f in theirs.findings if not f.passed}
    assert {found.rule: found.severity for found in ours.broken} == broken
    assert name == "good" or set(broken) - {"device:missing"}


def test_a_model_from_a_log(tmp_path: Path):
    log, schema = write_log(tmp_path, rows=1200)
    loaded = thinktwice.load_schema(schema)
    snapshot = thinktwice.ingest_log(log, tmp_path / "raw", schema=loaded)
    assert snapshot == thinktwice.ingest_log(log, tmp_path / "raw2", schema=schema)
    checked = thinktwice.validate_log(tmp_path / "raw", tmp_path / "checked", as_of=NOW)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    trained = thinktwice.train_model(checked.clean_dir, tmp_path / "model", recipe="tiny", test_time="off")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"bundle", "training_set", "notes.txt"}
    with pytest.raises(ValidationError, match="frozen"):
        trained.model_version = "other"  # type: ignore[misc]

    bundle = thinktwice.open_bundle(trained.bundle_dir)
    assert thinktwice.read_report(bundle) == trained.report == thinktwice.read_report(str(trained.bundle_dir))
    rows = pl.read_parquet(trained.training_set_dir / "rows.parquet").filter(pl.col("split") == "test")
    scores = thinktwice.score_table(bundle, rows)
    label, p = rows["label"].to_numpy(), scores.probability
    shipped = trained.report.metrics[trained.report.shipped]["logloss"]
    assert float(-np.mean(np.log(np.where(label == 1, p, 1 - p)))) == pytest.approx(shipped, abs=1e-6)

    again = thinktwice.train_model(checked.clean_dir, tmp_path / "again", recipe="tiny", test_time="off")
    assert thinktwice.open_bundle(again.bundle_dir).hash == bundle.hash
    other = thinktwice.train_model(checked.clean_dir, tmp_path / "again", recipe="tiny", test_time="off", seed=1)
    assert other.model_version != again.model_version


def test_mistakes_are_named(tmp_path: Path, small: Path):
    log, schema = write_log(tmp_path, rows=60)
    with pytest.raises(DataError, match="needs a schema file"):
        thinktwice.ingest_log(log, tmp_path / "raw")
    with pytest.raises(SchemaError, match="cannot be read"):
        thinktwice.load_schema(tmp_path / "none.yaml")
    thinktwice.ingest_log(log, tmp_path / "raw", schema=schema)
    with pytest.raises(DataError, match="is not a clean log"):
        thinktwice.train_model(tmp_path / "raw2", tmp_path / "model")
    checked = thinktwice.validate_log(tmp_path / "raw", tmp_path / "checked", as_of=NOW)
    with pytest.raises(PipelineError, match="recipe 'huge' is unknown"):
        thinktwice.train_model(checked.clean_dir, tmp_path / "model", recipe="huge")
    with pytest.raises(PipelineError, match="mode 'twice' is unknown"):
        thinktwice.train_model(checked.clean_dir, tmp_path / "model", test_time="twice")
    with pytest.raises(DataError, match="split 'alphabet' is unknown"):
        thinktwice.train_model(checked.clean_dir, tmp_path / "model", split="alphabet")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"snapshot\.json cannot be read"):
        thinktwice.validate_log(tmp_path / "nowhere", tmp_path / "checked")
    with pytest.raises(BundleError, match="is not a bundle"):
        thinktwice.open_bundle(tmp_path)
    with pytest.raises(BundleError, match="it has no format number"):
        thinktwice.read_report(small / "bundle")
    assert not (tmp_path / "model").exists()


def test_a_backbone_of_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "theirs.py").write_text(
        "from thinktwice.models import BackboneConfig\n"
        "from thinktwice.models.deepfm import DeepFM\n"
        "class TheirsConfig(BackboneConfig):\n"
        "    gain: float = 1.0\n"
        "class Theirs(DeepFM):\n"
        "    config_class = TheirsConfig\n"
        "    def head(self, hidden):\n"
        "        return self.config.gain * super().head(hidden)\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[thinktwice.backbones]\ntheirs = theirs:Theirs\n")
    with pytest.raises(ValidationError, match="backbone 'theirs' is unknown, known are autoint, dcnv2, deepfm, din"):
        thinktwice.Recipe.model_validate({"model": {"name": "theirs"}})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKBONES, "theirs", DeepFM)  # so that the entry is removed after the test
    monkeypatch.setitem(CONFIGS, "theirs", BackboneConfig)
    del BACKBONES["theirs"], CONFIGS["theirs"]
    recipe = thinktwice.Recipe.model_validate({"model": {"name": "theirs", "dim": 4, "hidden": [8], "gain": 0.5}})
    assert recipe.model_dump()["model"]["gain"] == 0.5
    assert thinktwice.Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValidationError, match="cross_layers"):
        thinktwice.Recipe.model_validate({"model": {"name": "theirs", "cross_layers": 2}})
    assert backbone_class("theirs").__name__ == "Theirs" == BACKBONES["theirs"].__name__
    with pytest.raises(ValueError, match="'theirs' exists already"):
        register_backbone("theirs", DeepFM)


def test_a_bundle_of_an_unknown_backbone_is_refused(small: Path, tmp_path: Path):
    from thinktwice.files import read_json
    from thinktwice.models import load_model

    for name in ("model.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((small / "bundle" / name).read_bytes())
    described = read_json(tmp_path / "model.json")
    described["backbone"]["name"] = "theirs"
    write_json(tmp_path / "model.json", described)
    with pytest.raises(BundleError, match="backbone 'theirs' is unknown"):
        load_model(tmp_path)
