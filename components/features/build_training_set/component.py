"""Pipeline step ``build_training_set``: point-in-time features for every clean row, split and encoded."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.step import step


@step
def build_training_set(
    clean: Input[Dataset],
    feature_store: Input[Artifact],
    split: str,
    seed: int,
    code_version: str,
    training_set: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Join, split (``time`` or ``random``) and encode; every clean row ends in exactly one part."""
    from typing import get_args

    from feature_repo import retrieve
    from thinktwice.choices import SplitKind, listed
    from thinktwice.data.splits import SplitSpec
    from thinktwice.data.training_set import build_training_set as build
    from thinktwice.errors import DataError
    from thinktwice.schema import load_schema

    if split not in get_args(SplitKind):
        raise DataError(f"split {split!r} is unknown: choose one of {listed(SplitKind)}")
    spec = SplitSpec.model_validate({"kind": split, "seed": seed})
    rows = retrieve.training_set(clean.path, feature_store.path)
    info = build(rows, load_schema(f"{clean.path}/schema.yaml"), training_set.path, spec)
    training_set.metadata.update(rows=info.rows, split=split, seed=seed, code_version=code_version)
    for part, description in info.parts.items():
        metrics.log_metric(f"rows_{part}", description.rows)
        metrics.log_metric(f"click_rate_{part}", description.click_rate)
