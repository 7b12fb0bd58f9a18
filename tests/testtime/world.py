"""A small log with known truth, and models of it trained in a second or two."""

from __future__ import annotations

import datetime as dt
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import torch

from thinktwice.data.encoded import count_values
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.package import write_candidate
from thinktwice.files import read_json
from thinktwice.models import (
    Backbone,
    Calibration,
    FieldSpace,
    ModelInfo,
    backbone_config,
    build_backbone,
    load_model,
    save_model,
)
from thinktwice.schema import LogSchema, parse_schema
from thinktwice.selection.fit import fit_test_time
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.report import TestTimeReport
from thinktwice.testtime.store import TEST_TIME_FILE, TestTimeFile
from thinktwice.train.measure import fit_calibration

SCHEMA = """
name: world
time: {column: event_time, format: us}
label: {column: label}
entities:
  user: {key: user_id}
  item: {key: item_id, title: title}
fields:
  - {name: site}
  - {name: device, protected: true}
  - {name: price, kind: numeric, entity: item, buckets: 8}
sequences:
  - {name: recent, of: item_id, length: 4}
vectors:
  - {name: look, dim: 3}
truth: truth
"""


def schema() -> LogSchema:
    return parse_schema(SCHEMA, where="test")


def log(rows: int = 6000, users: int = 400, items: int = 150, seed: int = 0) -> pl.DataFrame:
    """Clean rows in time order. Ids are skewed, and their effects are strong, so that rare values can be memorised."""
    rng = np.random.default_rng(seed)
    user = np.minimum((users * rng.random(rows) ** 2.5).astype(int), users - 1)
    item = np.minimum((items * rng.random(rows) ** 2).astype(int), items - 1)
    site, device = rng.integers(0, 40, rows), rng.integers(0, 3, rows)
    known = rng.random(rows) > 0.1  # a tenth of the impressions are of users who came lately
    price = rng.gamma(2.0, 1.0, items)[item]
    effect = rng.normal(0, 0.9, users)[user] + rng.normal(0, 0.8, items)[item] + rng.normal(0, 0.5, 40)[site]
    truth = 1 / (1 + np.exp(-(effect - 0.6 + 0.2 * device)))
    label = (rng.random(rows) < truth).astype(np.int8)
    look = rng.normal(0, 1, (items, 3)).astype(np.float32)
    start = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
    return pl.DataFrame(
        {
            "row_id": [f"{i:016x}" for i in range(rows)],
            "event_time": pl.Series(
                [start + dt.timedelta(minutes=i) for i in range(rows)], dtype=pl.Datetime("us", "UTC")
            ),
            "label": label,
            "user_id": [f"u{u}" if old else f"new{i // 9}" for i, (u, old) in enumerate(zip(user, known, strict=True))],
            "item_id": [f"i{i}" for i in item],
            "site": [f"s{s}" for s in site],
            "device": [f"d{d}" for d in device],
            "price": price,
            "recent": [[f"i{j}" for j in rng.integers(0, items, rng.integers(0, 4))] for _ in range(rows)],
            "look": [look[i].tolist() if i % 7 else None for i in item],
            "title": [f"Item {i}" for i in item],
            "truth": truth,
        },
        schema_overrides={"recent": pl.List(pl.String), "look": pl.List(pl.Float32)},
    )


def make_training_set(
    folder: Path, rows: int = 6000, *, users: int = 400, items: int = 150, seed: int = 0
) -> TrainingSet:
    build_training_set(log(rows, users, items, seed).to_arrow(), schema(), folder, SplitSpec(valid=0.25, test=0.25))
    return load_training_set(folder)


def train_model(
    data: TrainingSet, folder: Path, *, name: str = "deepfm", l2: float = 1e-3, epochs: int = 3, seed: int = 0
) -> Path:
    """A model of ``data`` with calibration, saved into ``folder``. Without L2 and many epochs it memorises rare ids."""
    train = data.part("train")
    fields = FieldSpace.of(data.schema, data.encoder)
    model = build_backbone(backbone_config(name=name, dim=6, hidden=(16,)), fields, seed=seed)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    label = torch.from_numpy(train.label)
    for _ in range(epochs):
        for index in torch.randperm(len(train), generator=generator).split(256):
            logit = model(train.batch(index.numpy()))
            loss = (
                torch.nn.functional.binary_cross_entropy_with_logits(logit, label[index])
                + l2 * model.embedding.table.square().sum()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    save_model(folder, model, ModelInfo(stage="finetuned", calibration=calibrated(model, data)))
    return folder


def calibrated(model: Backbone, data: TrainingSet) -> Calibration:
    valid = data.part("valid")
    with torch.inference_mode():
        return fit_calibration(model(valid.batch(slice(None))).numpy(), valid.label)


def memorise_rare_values(data: TrainingSet, source: Path, folder: Path, *, seed: int = 0) -> Path:
    """A copy of a model whose vectors of rarely seen values are noise, the way many epochs without L2 leave them."""
    model, _ = load_model(source)
    counts = torch.from_numpy(count_values(data.part("train").ids, model.fields.num_values).astype(np.float32))
    noise = torch.randn(model.embedding.table.shape, generator=torch.Generator().manual_seed(seed))
    scale = torch.where(counts > 0, 1.5 / (1 + counts), 0.0)[:, None]
    with torch.no_grad():
        model.embedding.table += noise * scale
    save_model(folder, model, ModelInfo(stage="finetuned", calibration=calibrated(model, data)))
    return folder


def finished_run(folder: Path) -> Path:
    """Folders ``set``, ``plain``, ``bad`` (rare values memorised), and for the trunks good and bad: ``test_time-*``,
    ``evaluation-*`` and ``bundle-*``."""
    one_thread()
    data = make_training_set(folder / "set", rows=6000)
    train_model(data, folder / "plain")
    memorise_rare_values(data, folder / "plain", folder / "bad")
    for name, trunk in (("good", "plain"), ("bad", "bad")):
        fit_test_time(folder / "set", folder / trunk, folder / "bad", folder / f"test_time-{name}")
        evaluation = evaluate(
            folder / "set", folder / trunk, folder / "bad", folder / f"test_time-{name}", folder / f"evaluation-{name}"
        )
        write_candidate(
            folder / f"bundle-{name}",
            evaluation=evaluation,
            evaluation_dir=folder / f"evaluation-{name}",
            training_set_dir=folder / "set",
            model_dirs={"plain": folder / trunk, "pretrained": folder / "bad"},
            test_time_dir=folder / f"test_time-{name}",
            snapshot_id="0123456789abcdef",
            model_version=f"world-{name}",
            feature_version=f"world-{name}",
            package_version="0.1.0",
        )
    return folder


def with_report(folder: Path, config: TestTimeConfig | None = None, **changes: object) -> TestTimeReport:
    """Write test-time parameters again with another configuration, or a report that says otherwise."""
    path = folder / TEST_TIME_FILE
    known = TestTimeFile.model_validate(read_json(path))
    assert known.report is not None
    report = known.report.model_copy(update=changes)
    known.model_copy(update={"report": report, "config": config or known.config}).write(path)
    return report


@cache
def one_thread() -> None:
    torch.set_num_threads(1)
