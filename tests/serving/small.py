"""A small model of every kind of field, with random weights: what the tests of bundles and servers serve."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from thinktwice.calibration import Calibration
from thinktwice.combinations.counts import CombinationCounts, maskable_pairs
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.evaluate.package import write_bundle
from thinktwice.files import sha256_file, write_json
from thinktwice.models.backbone import Backbone
from thinktwice.models.config import DeepFMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone
from thinktwice.models.store import ModelInfo, load_model, save_model
from thinktwice.release.blessing import BLESSING_FILE, Blessing
from thinktwice.release.bundle import BundleIdentity, Manifest
from thinktwice.schema import LogSchema, parse_schema
from thinktwice.selection.config import FitConfig
from thinktwice.testtime.base_pass import Plain
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.heads import fit_heads
from thinktwice.testtime.modes import UTTSI_PATHS, preset
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.store import TestTime, load_test_time, save_test_time
from thinktwice.testtime.triggers import Budget, Dual

MODEL_VERSION = "small-20260101-abc"
FEATURE_SERVICE = "ctr_small_20260101_abc"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)

SCHEMA = parse_schema(
    """
name: small
time: {column: ts}
entities: {user: {key: user_id}, item: {key: item_id}}
fields:
  - {name: gender, entity: user}
  - {name: genre, entity: item}
  - {name: price, entity: item, kind: numeric, buckets: 4}
  - {name: slot}
  - {name: bid, kind: numeric, buckets: 4}
  - {name: hour, derived: hour}
  - {name: weekday, derived: weekday}
sequences: [{name: history, of: item_id, length: 5}]
vectors: [{name: cover, dim: 3}]
statistics: {windows_days: [0]}
""",
    where="test",
)

#: A log without users and items: only raw rows can be asked.
PLAIN_SCHEMA = parse_schema(
    "{name: plain, time: {column: ts}, fields: [{name: site}, {name: bid, kind: numeric, buckets: 4}]}", where="test"
)


def clean_log(rows: int = 400) -> pl.DataFrame:
    """Clean rows of SCHEMA, without looked-up features."""
    rng = np.random.default_rng(7)
    users, items = rng.integers(0, 30, rows), rng.integers(0, 60, rows)
    times = [START + timedelta(minutes=17 * i) for i in range(rows)]
    return pl.DataFrame(
        {
            "row_id": [f"{i:016x}" for i in range(rows)],
            "event_time": pl.Series(times, dtype=pl.Datetime("us", "UTC")),
            "label": ((users + items + rng.integers(0, 3, rows)) % 3 == 0).astype(np.int8),
            "user_id": [f"u{u}" for u in users],
            "item_id": [f"i{i}" for i in items],
            "gender": ["f" if u % 2 else "m" for u in users],
            "genre": [f"g{i % 5}" for i in items],
            "price": (items % 7).astype(np.float64),
            "slot": [f"s{s}" for s in rng.integers(0, 3, rows)],
            "bid": rng.random(rows),
            "hour": [str(t.hour) for t in times],
            "weekday": [str(t.weekday()) for t in times],
            "cover": pl.Series([[float(i % 3), 0.5, 1.0] for i in items], dtype=pl.List(pl.Float32)),
        }
    )


def training_rows(rows: int = 400) -> pl.DataFrame:
    """Clean rows of SCHEMA with made-up features of the right types."""
    frame = clean_log(rows)
    rng = np.random.default_rng(8)
    names = [n for e in ("user", "item") for n in SCHEMA.statistic_names(e)]  # type: ignore[arg-type]
    history = [[f"i{i}" for i in rng.integers(0, 60, rng.integers(0, 5))] for _ in range(rows)]
    return frame.with_columns(
        *(pl.Series(name, rng.random(rows)) for name in names), pl.Series("history", history, dtype=pl.List(pl.String))
    )


def plain_rows(rows: int = 400) -> pl.DataFrame:
    """Rows of PLAIN_SCHEMA."""
    rng = np.random.default_rng(9)
    return (
        clean_log(rows)
        .select("row_id", "event_time", "label")
        .with_columns(
            pl.Series("site", [f"s{s}" for s in rng.integers(0, 9, rows)]), pl.Series("bid", rng.random(rows))
        )
    )


def write_parts(
    folder: Path, schema: LogSchema = SCHEMA, split: SplitSpec | None = None, frame: pl.DataFrame | None = None
) -> dict[str, Path]:
    """The four folders a bundle is made of, as keyword arguments of ``write_bundle``; ``frame`` are its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if frame is None:
        frame = training_rows() if schema is SCHEMA else plain_rows()
    build_training_set(frame.to_arrow(), schema, folder / "training_set", split or SplitSpec())
    training_set = load_training_set(folder / "training_set")
    fields = FieldSpace.of(schema, training_set.encoder)
    torch.manual_seed(0)
    model = build_backbone(DeepFMConfig(dim=4, hidden=(8,), init_sd=0.2), fields)
    save_model(folder / "model", model, ModelInfo(stage="finetuned", calibration=Calibration(a=0.9, b=-0.2)))
    train = training_set.part("train")
    reliability = Reliability.fit(train.ids, train.label, fields)
    (folder / "test_time").mkdir()
    save_test_time(folder / "test_time", TestTime(_unsure_fifth(model, reliability, train), reliability, None))
    (folder / "evaluation").mkdir()
    write_json(folder / "evaluation" / "evaluation.json", {"auc": 0.5})
    (folder / "evaluation" / "report.html").write_text("<!doctype html><title>report</title>", encoding="utf-8")
    return {f"{name}_dir": folder / name for name in ("training_set", "model", "test_time", "evaluation")}


def _unsure_fifth(model: Backbone, reliability: Reliability, rows: EncodedRows) -> TestTimeConfig:
    """Paths for the usual share of rows, every limit as shipped."""
    paths = UTTSI_PATHS.model_copy(update={"sampler": Bernoulli()})
    usual = preset("uttsi").model_copy(update={"base": Plain()})
    config = usual.looking(trigger=Dual(threshold=2.0), opinion=paths)
    signal = raw_rows(Engine(model, reliability, config), rows).signal
    threshold = float(np.quantile(signal, 1 - FitConfig().explored_share))
    return config.looking(trigger=Dual(threshold=threshold, signal_max=float(signal.max())))


def with_members(parts: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The same parts with a configuration that asks a further trunk over the model's table for the most uncertain fifth, and with
    extras that this configuration does not need."""
    model, _ = load_model(parts["model_dir"])
    before = load_test_time(parts["test_time_dir"])
    train = load_training_set(parts["training_set_dir"]).part("train")
    member = build_backbone(model.config, model.fields, seed=5)
    member.embedding = model.embedding
    own = build_backbone(model.config, model.fields, seed=6)
    maskable_fields = before.reliability.maskable_fields
    counts = CombinationCounts.fit(
        [train.ids], maskable_pairs(maskable_fields), (), before.reliability.num_values, capacity=64, width=256
    )
    extras = Extras(counts, fit_heads(model, train, maskable_fields), (member, own))
    config = preset("members").looking(trigger=Budget(share=0.2))
    weights = sha256_file(parts["model_dir"] / "weights.safetensors")
    folder.mkdir()
    save_test_time(folder, TestTime(config, before.reliability, None, extras, weights), model)
    return {**parts, "test_time_dir": folder}


def identity(schema: LogSchema = SCHEMA) -> BundleIdentity:
    return BundleIdentity(
        model_version=MODEL_VERSION,
        feature_service=FEATURE_SERVICE if schema is SCHEMA else "",
        schema_name=schema.name,
        snapshot_id="0123456789abcdef",
        package_version="0.1.0",
        created="2026-01-09T00:00:00+00:00",
        train_window=("2026-01-01T00:00:00+00:00", "2026-01-05T00:00:00+00:00"),
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``parts/`` and ``bundle/`` of SCHEMA; nobody writes into it."""
    folder = tmp_path_factory.mktemp("small")
    make_bundle(folder)
    return folder


def make_bundle(
    folder: Path, schema: LogSchema = SCHEMA, split: SplitSpec | None = None, frame: pl.DataFrame | None = None
) -> Manifest:
    """Write a whole bundle to ``folder / "bundle"``."""
    parts = write_parts(folder / "parts", schema, split, frame)
    return write_bundle(folder / "bundle", **parts, identity=identity(schema))


def bless(folder: Path, bundle_hash: str, *, blessed: bool = True, champion_hash: str | None = None) -> Path:
    """A blessing artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    verdict = Blessing(
        format=Blessing.FORMAT,
        blessed=blessed,
        reasons=("the first one",),
        bundle_hash=bundle_hash,
        champion_hash=champion_hash,
        model_version=MODEL_VERSION,
        rows=100,
        candidate={"auc": 0.6},
    )
    verdict.write(folder / BLESSING_FILE)
    return folder
