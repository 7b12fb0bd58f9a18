"""Pipeline step ``build_training_set``: point-in-time features for every clean row, split and encoded."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.step import step


@step
def build_training_set(
    clean: Input[Dataset],
    feature_store: Input[Artifact],
    log: Input[Dataset],
    split: str,
    seed: int,
    code_version: str,
    training_set: Output[Dataset],
    metrics: Output[Metrics],
    continue_from: str = "",
    continue_version: str = "",
) -> None:
    """Join, split and encode; every clean row ends in exactly one part. A split by column reads its column from ``log``.

    ``continue_from`` is a bundle (folder, or ``s3://BUCKET/FOLDER``) whose vocabularies and weights the training set continues, and
    ``continue_version`` its hash, "" for any.
    """
    from components.features.build_training_set.start import opened_start
    from feature_repo import retrieve
    from thinktwice.data.split_spec import parse_split
    from thinktwice.data.training_set import build_training_set as build
    from thinktwice.schema import load_schema

    spec = parse_split(split, seed)
    schema = load_schema(f"{clean.path}/schema.yaml")
    with opened_start(continue_from, schema, continue_version) as start:
        rows = retrieve.training_set(clean.path, feature_store.path)
        info = build(rows, schema, training_set.path, spec, log.path, start)
    training_set.metadata.update(rows=info.rows, split=split, seed=seed, code_version=code_version)
    for part, description in info.parts.items():
        metrics.log_metric(f"rows_{part}", description.rows)
        metrics.log_metric(f"click_rate_{part}", description.click_rate)
