"""The served world: a simulated log with users, items, statistics and histories, a model of usual size with random weights (the
cost does not depend on them), its features in a real Redis, and bundles that differ only in their test-time work."""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from components.deployment.package.archive import write_archive
from feature_repo.retrieve import training_set
from feature_repo.store import build
from serving.load.plan import requests_of
from serving.scorer import open_scorer
from thinktwice.calibration import Calibration
from thinktwice.data.encoded import Batch
from thinktwice.data.feature_tables import feature_service_name
from thinktwice.data.ingest import simulate
from thinktwice.data.simulator import SimConfig
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.evaluate.package import write_bundle
from thinktwice.files import write_json
from thinktwice.models.config import DeepFMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone
from thinktwice.models.store import ModelInfo, save_model
from thinktwice.parquet import read_frame, write_frame
from thinktwice.release.archive import ARCHIVE_FILE, MAR_MANIFEST
from thinktwice.release.blessing import BLESSING_FILE, Blessing
from thinktwice.release.bundle import BundleIdentity, bundle_hash, load_bundle
from thinktwice.schema import parse_schema
from thinktwice.selection.config import FitConfig
from thinktwice.testtime.base_pass import Gate, Plain
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.modes import UTTSI_PATHS, preset
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.store import TestTime, save_test_time
from thinktwice.testtime.triggers import Dual

VERSION = "bench-20260101-1"
SCHEMA = parse_schema(
    """
    name: sim-serving
    time: {column: time_us, format: us}
    label: {column: click}
    entities: {user: {key: user_id}, item: {key: item_id}}
    fields:
      - {name: age_band, entity: user}
      - {name: city, entity: user}
      - {name: author_id, entity: item}
      - {name: topic, entity: item}
      - {name: price, entity: item, kind: numeric, minimum: 0, buckets: 16}
      - {name: site_id}
      - {name: device}
      - {name: slot}
      - {name: hour, derived: hour}
      - {name: weekday, derived: weekday}
    sequences: [{name: clicked_before, of: item_id, length: 10}]
    statistics: {windows_days: [1, 7]}
    """,
    where="benchmarks/serving/world.py",
)
SIZES = DeepFMConfig(dim=16, hidden=(128, 64))
OTHER_HANDLER = "benchmarks.serving.handler_{name}"  # a module with one class


@dataclass(frozen=True)
class World:
    """Folders by mode: ``off``; ``gate``, which usually ships by default; ``uttsi`` with a fifth of the rows escalated, which
    costs more than the default allows, to test shedding."""

    store: Path
    bundles: dict[str, Path]
    archives: dict[str, Path]

    @property
    def service(self) -> str:
        return feature_service_name(SCHEMA, VERSION)


def make_world(folder: Path, quick: bool, *, config: SimConfig | None = None, sizes: DeepFMConfig = SIZES) -> World:
    """Build everything under ``folder``; the address of Redis is in THINKTWICE_REDIS_ADDRESS. ``config`` replaces the log of this benchmark."""
    config = config or SimConfig(
        rows=20_000 if quick else 80_000, users=2_000 if quick else 8_000, items=1_000 if quick else 4_000
    )
    clean, store = folder / "clean", folder / "store"
    write_clean(config, clean)
    build(clean, store, feature_version=VERSION, online="redis")
    build_training_set(training_set(clean, store), SCHEMA, folder / "training_set", SplitSpec())
    data = load_training_set(folder / "training_set")
    fields = FieldSpace.of(SCHEMA, data.encoder)
    torch.manual_seed(0)
    model = build_backbone(sizes, fields)
    save_model(folder / "model", model, ModelInfo(stage="finetuned", calibration=Calibration(a=1.0, b=-1.0)))
    train = data.part("train")
    reliability = Reliability.fit(train.ids, train.label, fields)
    (folder / "evaluation").mkdir()
    write_json(folder / "evaluation" / "evaluation.json", {})
    (folder / "evaluation" / "report.html").write_text("<!doctype html><title>none</title>", encoding="utf-8")
    last = data.info.parts["test"].window[1]
    identity = BundleIdentity(
        model_version=VERSION,
        feature_service=feature_service_name(SCHEMA, VERSION),
        schema_name=SCHEMA.name,
        snapshot_id="0" * 16,
        package_version="0",
        created=last,
        train_window=data.train_window,
    )
    bundles, archives = {}, {}
    world = World(store, bundles, archives)
    for name in ("off", "gate", "uttsi"):
        mode = _escalating_fifth(reliability, world) if name == "uttsi" else preset(name)
        if name == "gate":
            mode = mode.model_copy(update={"base": Gate(strength=2.0)})
        test_time = folder / f"test_time_{name}"
        test_time.mkdir()
        save_test_time(test_time, TestTime(mode, reliability, None))
        bundles[name] = folder / f"bundle_{name}"
        write_bundle(
            bundles[name],
            training_set_dir=folder / "training_set",
            model_dir=folder / "model",
            test_time_dir=test_time,
            evaluation_dir=folder / "evaluation",
            identity=identity,
        )
        blessing = folder / f"blessing_{name}"
        blessing.mkdir()
        verdict = Blessing(
            format=Blessing.FORMAT,
            blessed=True,
            reasons=("a benchmark",),
            bundle_hash=bundle_hash(bundles[name]),
            champion_hash=None,
            model_version=VERSION,
            rows=0,
            candidate={},
        )
        verdict.write(blessing / BLESSING_FILE)
        write_archive(bundles[name], blessing, folder / f"archive_{name}")
        archives[name] = folder / f"archive_{name}" / ARCHIVE_FILE
    return world


def served(world: World, candidates: int, count: int) -> list[Batch]:
    """Requests of a load as batches of the model."""
    scorer = open_scorer(world.bundles["off"], world.store)
    assert scorer.reader is not None
    out = []
    for value in requests_of(world.store, SCHEMA, count=count, candidates=candidates, seed=3):
        request = scorer.parser.parse(value, "request")
        out.append(scorer.encode(request, scorer.reader.read(request.user_id, request.candidates))[0])
    scorer.reader.close()
    return out


def with_handler(archive: Path, name: str, out: Path) -> Path:
    """The same archive with another handler, ``nothing`` or ``obvious``."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / ARCHIVE_FILE
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry == MAR_MANIFEST:
                manifest = json.loads(data)
                manifest["model"]["handler"] = OTHER_HANDLER.format(name=name)
                data = json.dumps(manifest).encode()
            new.writestr(entry, data)
    return target


def _escalating_fifth(reliability: Reliability, world: World) -> TestTimeConfig:
    """A configuration that escalates a fifth of the rows of the load. It is fitted on requests, which lack context and are more
    uncertain than validation rows."""
    paths = UTTSI_PATHS.model_copy(update={"sampler": Bernoulli()})
    usual = preset("uttsi").model_copy(update={"base": Plain()})
    config = usual.looking(trigger=Dual(threshold=2.0), opinion=paths)
    plain = load_bundle(world.bundles["off"]).engine
    engine = Engine(plain.model, reliability, config, plain.calibration)
    signal = np.concatenate([engine.raw(batch, 0).signal for batch in served(world, 100, 50)])
    threshold = float(np.quantile(signal, 1 - FitConfig().explored_share))
    return config.looking(trigger=Dual(threshold=threshold, signal_max=float(signal.max())))


def write_clean(config: SimConfig, out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        simulate(config, Path(scratch) / "log")
        rows = read_frame(Path(scratch) / "log" / "log.parquet")
    at = pl.from_epoch(pl.col("time_us"), time_unit="us").dt.replace_time_zone("UTC")
    names = ("user_id", "item_id", "age_band", "city", "author_id", "topic", "site_id", "device", "slot")
    frame = rows.sort("time_us").select(
        pl.format("{}", pl.int_range(pl.len())).str.zfill(16).alias("row_id"),
        at.alias("event_time"),
        pl.col("click").cast(pl.Int8).alias("label"),
        *(pl.col(name).cast(pl.String) for name in names),
        pl.col("price").cast(pl.Float64),
        at.dt.hour().cast(pl.String).alias("hour"),
        (at.dt.weekday() - 1).cast(pl.String).alias("weekday"),
    )
    out.mkdir(parents=True)
    write_frame(frame, out / "clean.parquet")
    (out / "schema.yaml").write_text(SCHEMA.to_yaml(), encoding="utf-8")
    write_json(out / "clean.json", {})
