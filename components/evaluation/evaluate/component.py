"""Pipeline step ``evaluate``: compare the models on test rows and write the candidate bundle."""

from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.step import step


@step
def evaluate(
    training_set: Input[Dataset],
    plain: Input[Model],
    pretrained: Input[Model],
    test_time: Input[Artifact],
    snapshot_id: str,
    feature_version: str,
    recipe: str,
    mode: str,
    seed: int,
    code_version: str,
    bundle: Output[Model],
    report: Output[HTML],
    metrics: Output[Metrics],
    classification: Output[ClassificationMetrics],
    numbers: Output[Artifact],
    max_cost: float = 2.0,
    backbone: str = "",
    pretraining: str = "",
) -> None:
    """Plain, pre-trained and test-time scores on the same rows; the bundle holds what validation chose.

    ``recipe``, ``backbone``, ``pretraining``, ``mode``, ``max_cost`` and ``seed`` are those the models were trained by; here they name the model version.
    """
    import tempfile
    from pathlib import Path

    from thinktwice.data.training_set import load_training_set
    from thinktwice.evaluate.compare import evaluate as compare
    from thinktwice.evaluate.package import model_version, write_candidate
    from thinktwice.evaluate.report import render
    from thinktwice.evaluate.tidy import write_numbers

    data = load_training_set(training_set.path)
    settings = " ".join(filter(None, (recipe, backbone, pretraining, data.continued)))
    name = model_version(
        data.schema, feature_version, split=data.info.split, recipe=settings, mode=mode, seed=seed, max_cost=max_cost
    )
    with tempfile.TemporaryDirectory() as folder:
        result = compare(training_set.path, plain.path, pretrained.path, test_time.path, f"{folder}/evaluation")
        write_candidate(
            bundle.path,
            evaluation=result,
            evaluation_dir=f"{folder}/evaluation",
            training_set_dir=training_set.path,
            model_dirs={"plain": plain.path, "pretrained": pretrained.path},
            test_time_dir=test_time.path,
            snapshot_id=snapshot_id,
            model_version=name,
            feature_version=feature_version,
            package_version=code_version,
        )
    # Timings are in the page beside the bundle and not in the one inside: they would change its hash in every run.
    Path(report.path).write_text(render(result.content, result.timings, result.candidate_timings), encoding="utf-8")
    write_numbers(result.content, numbers.path)
    bundle.metadata.update(model_version=name, trunk=result.content.trunk, verdict=result.content.verdict[0])
    for column in result.content.columns:
        for name, value in column.metrics:
            if value is not None:
                metrics.log_metric(f"{column.key}_{name}", value)
        metrics.log_metric(f"{column.key}_time_ratio", result.timings[column.key])
    point = result.content.operating_point
    metrics.log_metric("confusion_threshold", point.threshold)
    classification.log_confusion_matrix(["no click", "click"], [list(row) for row in point.confusion])
    if point.roc:
        classification.log_roc_curve(*(list(axis) for axis in zip(*point.roc, strict=True)))
