"""A model that reads counters, its feature store, and the feedback that keeps the store up to date."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feature_repo.retrieve import training_set
from serving.features.open_reader import FeatureConfig
from serving.feedback.book import Book
from serving.feedback.online import OnlineStore
from serving.feedback.records import Record
from serving.scorer import Scorer, open_scorer
from tests.data.instant.oracle import Row
from tests.feedback.stores import full_schema, make_store, random_log
from tests.feedback.streams import SECOND, book_for, in_order, run, tick
from tests.models.test_logit_network import network
from thinktwice.calibration import Calibration
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.evaluate.package import write_bundle
from thinktwice.files import read_json, sha256_file, write_json
from thinktwice.models.config import AnyBackboneConfig, DeepFMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone
from thinktwice.models.store import ModelInfo, save_model
from thinktwice.release.bundle import BundleIdentity
from thinktwice.schema import LogSchema
from thinktwice.testtime.config import Correction, SecondLook, TestTimeConfig
from thinktwice.testtime.evidence.correction import CorrectionNetwork, Standard
from thinktwice.testtime.evidence.retrieval import NUM_FEATURES, Neighbours, Retrieval
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import Retrieve
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.store import TestTime, save_test_time
from thinktwice.testtime.triggers import Always

SCHEMA = full_schema()
LOG = random_log(150)
TRUNK = DeepFMConfig(dim=4, hidden=(8,), init_sd=0.2)
NOW = LOG[-1].time + 700 * SECOND  # every outcome of the log is known


@dataclass(frozen=True)
class Counted:
    """Folders; ``bundles`` by mode: "off", "corrected", "retrieve"."""

    store: Path
    bundles: dict[str, Path]

    def scorer(self, mode: str = "corrected", **features: Any) -> Scorer:
        config = FeatureConfig(**{"timeout_ms": 10_000, **features})
        return open_scorer(self.bundles[mode], self.store, features=config, on_default=lambda *_: None)


def make_counted(
    folder: Path,
    log: list[Row] = LOG,
    schema: LogSchema = SCHEMA,
    redis: str = "",
    version: str = "counted-1",
    trunk: AnyBackboneConfig = TRUNK,
) -> Counted:
    """Networks and weights are random, so every counter changes every score."""
    store = make_store(folder, log, schema, redis, version)
    build_training_set(training_set(folder / "clean", store), schema, folder / "training_set", SplitSpec())
    data = load_training_set(folder / "training_set")
    fields = FieldSpace.of(schema, data.encoder)
    torch.manual_seed(0)
    model = build_backbone(trunk, fields)
    save_model(folder / "model", model, ModelInfo(stage="finetuned", calibration=Calibration(a=0.9, b=-0.2)))
    train = data.part("train")
    reliability = Reliability.fit(train.ids, train.label, fields)
    (folder / "evaluation").mkdir()
    write_json(folder / "evaluation" / "evaluation.json", {})
    (folder / "evaluation" / "report.html").write_text("<!doctype html><title>none</title>", encoding="utf-8")
    bundles = {}
    for mode in ("off", "corrected", "retrieve"):
        config, extras = _test_time(mode, schema, fields)
        (folder / f"test_time_{mode}").mkdir()
        weights = sha256_file(folder / "model" / "weights.safetensors")
        save_test_time(folder / f"test_time_{mode}", TestTime(config, reliability, None, extras, weights), model)
        bundles[mode] = folder / f"bundle_{mode}"
        write_bundle(
            bundles[mode],
            training_set_dir=folder / "training_set",
            model_dir=folder / "model",
            test_time_dir=folder / f"test_time_{mode}",
            evaluation_dir=folder / "evaluation",
            identity=BundleIdentity(
                model_version=version,
                feature_service=read_json(store / "feature_store.json")["feature_service"],
                schema_name=schema.name,
                snapshot_id="0" * 16,
                package_version="0",
                created="2026-01-09T00:00:00+00:00",
                train_window=data.train_window,
            ),
        )
    return Counted(store, bundles)


def feed(store: Path, log: list[Row] = LOG, until: int = NOW, schema: LogSchema = SCHEMA) -> Book:
    """Apply a log and push everything that is known at ``until``, as the feedback service does."""
    book = book_for(schema)
    run(book, schema, [Record("start", 0), *in_order([r for r in log if r.time <= until]), tick(until)])
    push(store, book)
    return book


def push(store: Path, book: Book) -> None:
    """Write all rows of a book and its watermark."""
    online = OnlineStore(store)
    try:
        push_to(online, book)
    finally:
        online.close()


def push_to(online: OnlineStore, book: Book) -> None:
    """Like :func:`push`, to an open store."""
    online.write(row for row in book.rows() if row.kind != "log")
    content = book.content("log", "log")
    assert content is not None
    online.write_watermark(content, book.watermark, book.stamp)


def _test_time(mode: str, schema: LogSchema, fields: FieldSpace) -> tuple[TestTimeConfig, Extras]:
    if mode == "off":
        return TestTimeConfig(), Extras()
    definition, rng = definition_of(schema), np.random.default_rng(0)
    assert definition is not None
    number, correction = len(definition.names), Correction(definition=definition.hash)
    corrector = CorrectionNetwork(_standard(number, rng), network(1, 1 + 2 * number, last=0.003))
    if mode == "corrected":
        return TestTimeConfig(mode="corrected", correction=correction), Extras(correction=corrector)
    item = schema.key_of("item") or ""
    items = fields.num_values[fields.columns.index(item)]
    ids = rng.integers(0, items, (items, 4)).astype(np.int32)
    weights = np.where(ids > 0, rng.normal(0, 0.5, ids.shape), 0).astype(np.float16)
    near = Neighbours(ids, weights, rng.random(items).astype(np.float32))
    width = 1 + 2 * number + NUM_FEATURES
    retrieval = Retrieval(near, _standard(NUM_FEATURES, rng), network(2, width, last=0.003))
    look = SecondLook(trigger=Always(), opinion=Retrieve(item_field=item))
    config = TestTimeConfig(mode="retrieve", correction=correction, second_look=look)
    return config, Extras(correction=corrector, retrieval=retrieval)


def _standard(width: int, rng: np.random.Generator) -> Standard:
    return Standard(rng.normal(size=width).astype(np.float32), rng.uniform(0.5, 2, width).astype(np.float32))
