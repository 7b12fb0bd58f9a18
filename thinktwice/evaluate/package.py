"""From an evaluation to the candidate bundle: what validation chose, with the report that measured it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from thinktwice.release.bundle import BundleIdentity, Manifest, write_bundle
from thinktwice.data.feature_tables import feature_service_name
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import load_training_set
from thinktwice.evaluate.compare import Evaluation
from thinktwice.files import sha256_text
from thinktwice.schema import LogSchema


def model_version(
    schema: LogSchema, feature_version: str, *, split: SplitSpec, recipe: str, mode: str, seed: int
) -> str:
    """Name of the model that these features, split, recipe, test-time mode and training seed lead to, e.g.
    ``ml-1m-3f2a9c01d4e7``."""
    return f"{schema.name}-{sha256_text(feature_version, split.model_dump_json(), recipe, mode, str(seed))[:12]}"


def write_candidate(
    out_dir: Path | str,
    *,
    evaluation: Evaluation,
    evaluation_dir: Path | str,
    training_set_dir: Path | str,
    model_dirs: Mapping[str, Path | str],
    test_time_dir: Path | str,
    snapshot_id: str,
    model_version: str,
    feature_version: str,
    package_version: str,
) -> Manifest:
    """Write the bundle of the chosen trunk (a key of ``model_dirs``). Its date is the end of its data, so that the same
    inputs give the same identity."""
    data = load_training_set(training_set_dir)
    last = data.info["parts"]["test"]["window"][1]
    identity = BundleIdentity(
        model_version=model_version,
        feature_service=feature_service_name(data.schema, feature_version),
        schema_name=data.schema.name,
        snapshot_id=snapshot_id,
        package_version=package_version,
        created=last,
        train_window=data.train_window,
    )
    return write_bundle(
        out_dir,
        training_set_dir=training_set_dir,
        model_dir=model_dirs[evaluation.trunk],
        test_time_dir=test_time_dir,
        evaluation_dir=evaluation_dir,
        identity=identity,
    )
